"""A real RabbitMQ on 127.0.0.1, where its program is on PATH: plain and perhaps with TLS, ended with the test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from demo.local_server import free_port

_READY_S = 60


def rabbitmq_program() -> str | None:
    """Where rabbitmq-server is; None if it is not here."""
    found = shutil.which("rabbitmq-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        return None
    # Debian's command changes its user and can only run one server: what it wraps is beside it.
    wrapped = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return str(wrapped) if wrapped.exists() else found


class RabbitMq:
    """One broker of the test's own, with the port `port` and, given authority, certificate and key, `tls_port`."""

    def __init__(self, directory: Path, program: str, *files: Path, management: bool = False) -> None:
        self.port, self.tls_port, self._epmd_port, dist_port = (free_port() for _ in range(4))
        self._last_port = self.port
        config = directory / "rabbitmq.conf"
        lines = [f"listeners.tcp.1 = 127.0.0.1:{self.port}"]
        if files:
            self._last_port = self.tls_port
            names = ("cacertfile", "certfile", "keyfile")
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                *(f"ssl_options.{name} = {file}" for name, file in zip(names, files, strict=True)),
                "ssl_options.verify = verify_none",
                "ssl_options.fail_if_no_peer_cert = false",
            ]
        if management:
            self.management_port = free_port()
            lines += [f"management.tcp.port = {self.management_port}", "management.tcp.ip = 127.0.0.1"]
        config.write_text("\n".join([*lines, ""]))
        enabled = directory / "enabled_plugins"
        enabled.write_text("[rabbitmq_management].\n" if management else "[].\n")
        self._home = directory
        self._log = directory / "output.log"
        self._program = program
        self._environment = {
            **os.environ,
            "HOME": str(directory),
            "RABBITMQ_NODENAME": f"daycap{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": str(config.with_suffix("")),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(enabled),
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_DIST_PORT": str(dist_port),
            # One scheduler, which sleeps instead of spinning when it has nothing to do.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1"
            " +sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> RabbitMq:
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [self._program],
                cwd=self._home,  # Where it leaves a dump if it ends badly.
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        end = time.monotonic() + _READY_S
        while not _listens(self._last_port):
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"RabbitMQ did not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.1)
        return self

    def signal(self, number: int) -> None:
        """To the broker and all its processes."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL; what it has on disk stays for the next `start`."""
        self.signal(signal.SIGKILL)
        self.process.wait(30)

    def control(self, *words: str) -> str:
        """What rabbitmqctl answers. It takes over a second."""
        command = [str(Path(self._program).with_name("rabbitmqctl")), "-q", *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def evaluate(self, erlang: str) -> str:
        """What the expression gives in the broker, as Erlang writes it."""
        if found := shutil.which("erl_call"):
            node, cookie = self._environment["RABBITMQ_NODENAME"], (self._home / ".erlang.cookie").read_text()
            done = subprocess.run(
                [found, "-c", cookie, "-n", node, "-e"],
                input=erlang + ".\n", env=self._environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return done.stdout.removeprefix("{ok, ").removesuffix("}")
        return self.control("eval", erlang + ".")

    def messages(self) -> dict[str, tuple[int, int]]:
        """How many are ready and how many are unacknowledged, by queue."""
        said = self.evaluate(
            'lists:flatten([io_lib:format("~s=~p+~p;", [element(4, N), R, U]) || '
            "[{name, N}, {messages_ready, R}, {messages_unacknowledged, U}] <- "
            'rabbit_amqqueue:info_all(<<"/">>, [name, messages_ready, messages_unacknowledged])])'
        )
        return {name: (int(ready), int(taken)) for name, ready, taken in re.findall(r'([^";]+)=(\d+)\+(\d+);', said)}

    def stop(self) -> None:
        """End the broker, and the name service of Erlang's that it started."""
        self.process.terminate()
        self.process.wait(30)
        subprocess.run(["epmd", "-kill"], env=self._environment, capture_output=True, check=False)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True
