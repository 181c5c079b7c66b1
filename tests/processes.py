"""pytest-celery's containers over child processes: a real redis-server, a real `celery -A worker worker`.

Its nodes, clusters and `celery_setup` work on them unchanged. Tests marked `docker` use its own containers.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker
from pytest_celery import CeleryTestWorker, CeleryWorkerContainer, RedisContainer, RedisTestBroker

from demo.local_server import free_port, server_binary
from tests.fake_clock import FakeClock
from tests.warm import WarmProcess, is_warm

ROOT = Path(__file__).resolve().parent.parent
_PYTHON_M = [sys.executable, "-m"]
_READY_S = 30


@functools.cache
def engine_answers() -> bool:
    """Whether containers can be had here."""
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return False
    try:
        client = docker.from_env(timeout=2)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    finally:
        client.close()


class LocalProcess:
    """The surface of a container over one child process, in a session of its own."""

    _numbers = itertools.count(1)

    ready_prompt: str

    source = ROOT
    """The checkout that it runs from."""

    def __init__(self, command: list[str], directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._id = f"local{os.getpid():06d}{next(self._numbers):04d}"
        self._log = directory / f"{self._id}.log"
        self.process: subprocess.Popen[bytes] | WarmProcess | None = None
        self.start()

    @property
    def id(self) -> str:
        return self._id

    @property
    def name(self) -> str:
        return f"{type(self).__name__}-{self.id}"

    @property
    def status(self) -> str:
        return "running" if self.process is not None and self.process.poll() is None else "exited"

    @property
    def attrs(self) -> dict[str, Any]:
        return {"Config": {"Hostname": "127.0.0.1"}}

    def start(self) -> None:
        with self._log.open("ab") as output:
            if self._command[:2] == _PYTHON_M and self.source == ROOT and is_warm(self._environment):
                self.process = WarmProcess(self._command[2:], ROOT, self._environment, output, output)
                return
            self.process = subprocess.Popen(
                self._command,
                cwd=self.source,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def logs(self) -> str:
        return self._log.read_text(errors="replace")

    def reload(self) -> None:
        """A container's cached state is read anew; a process has none."""

    def ready(self) -> bool:
        """Wait until it says that it is. A process that does not is ended: its fixture would not get to that."""
        end = time.monotonic() + _READY_S
        while time.monotonic() < end:
            if self.status == "exited":
                raise RuntimeError(f"{self.name} ended:\n{self.logs()[-4000:]}")
            if self.ready_prompt in self.logs():
                return True
            time.sleep(0.02)
        self.teardown()
        raise RuntimeError(f"{self.name} was not ready within {_READY_S} s:\n{self.logs()[-4000:]}")

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal. SIGKILL ends the whole session, as it ends a whole container."""
        number = _number(signal)
        if number == _number("SIGKILL"):
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        if number not in (_number("SIGSTOP"), _number("SIGCONT")):
            self.process.wait(_READY_S)

    def restart(self, timeout: float = _READY_S) -> None:
        self._end(timeout)
        self._log.write_bytes(b"")
        self.start()
        self.ready()

    def teardown(self) -> None:
        self._end(15)

    def _end(self, timeout: float) -> None:
        if self.status != "running":
            return
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)  # One that a test stopped would not see the other.
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill("SIGKILL")


def _number(name: str | int) -> int:
    return name if isinstance(name, int) else int(getattr(signal, name))


class LocalRedis(LocalProcess, RedisContainer):
    """A redis-server (or valkey-server) on a port of its own."""

    def __init__(self, directory: Path, clock: FakeClock | None = None) -> None:
        self._port = free_port()
        options = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(directory)]
        environment = clock.environment if clock else None
        super().__init__([server_binary(), *self.command()[1:], *options], directory, environment)

    @property
    def hostname(self) -> str:
        return "127.0.0.1"

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/{self.vhost}"

    @property
    def host_url(self) -> str:
        return self.url


class LocalWorker(LocalProcess, CeleryWorkerContainer):
    """A worker as the Procfile starts it, in the environment and with the options that it is given."""

    def __init__(
        self, directory: Path, environment: Mapping[str, str], *options: str, clock: FakeClock | None = None
    ) -> None:
        environment = {**environment, **(clock.environment if clock else {})}
        super().__init__([sys.executable, "-m", "celery", *procfile("worker")[1:], *options], directory, environment)

    @classmethod
    def worker_name(cls) -> str:
        return "celery"


class LocalBeat(LocalProcess):
    """Beat as the Procfile starts it."""

    ready_prompt = "beat: Starting..."

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        super().__init__([sys.executable, "-m", "celery", *procfile("beat")[1:]], directory, environment)


class LocalFlower(LocalProcess):
    """Flower as the Procfile starts it."""

    ready_prompt = "Connected to"

    def __init__(self, directory: Path, environment: Mapping[str, str], *options: str) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        words = [*procfile("flower")[1:], *options]
        environment = {**environment, "DAYCAP_FLOWER_PORT": str(port), "FLOWER_UNAUTHENTICATED_API": "true"}
        super().__init__([sys.executable, "-m", "celery", *words], directory, environment)

    def get(self, path: str) -> str:
        """A page; empty as long as there is none."""
        try:
            with urllib.request.urlopen(f"{self._url}{path}", timeout=10) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, TimeoutError):
            return ""


class SharedBroker(RedisTestBroker):
    """A broker that outlives the test."""

    def teardown(self) -> None:
        pass


class SharedWorker(CeleryTestWorker):
    """A worker that outlives the test."""

    def teardown(self) -> None:
        pass


def run_daycap(*words: str, environment: Mapping[str, str], status: int = 0) -> str:
    """What the command daycap wrote; it must end with `status`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DAYCAP_")}
    environment = {**clean, "COLUMNS": "160", **environment}
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as noted:
        if is_warm(environment):
            ended = WarmProcess(["daycap", *words], ROOT, environment, said, noted).wait()
        else:
            command = [*_PYTHON_M, "daycap", *words]
            ended = subprocess.call(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=noted
            )
        wrote = "".join(Path(f"/dev/fd/{file.fileno()}").read_text() for file in (said, noted))
    assert ended == status, wrote
    return wrote


def procfile(name: str) -> list[str]:
    """The words of one of the Procfile's commands."""
    for line in (ROOT / "Procfile").read_text().splitlines():
        process, _, command = line.partition(":")
        if process == name:
            return command.replace("${DAYCAP_LOG_LEVEL:-INFO}", "INFO").split()
    raise KeyError(name)
