"""`python -m MODULE` without its imports: a process that has them already forks, for each program that is started.

What runs is the whole program, a process with its own arguments, environment, directory, signals and end. Only what it
would import first, most of its CPU time, is there. `python -m tests.warm` is the process that forks: it starts no
thread and reads no setting. A process of pytest starts one when it first needs it; both end together.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any

_IMPORTS = (
    *("celery.bin.celery", "celery.apps.worker", "celery.apps.beat", "celery.concurrency.solo", "kombu.pidbox"),
    *("celery.backends.redis", "kombu.transport.redis", "kombu.transport.pyamqp", "sqlalchemy.dialects.sqlite"),
    *("worker.batching", "worker.broker", "worker.consumer", "worker.dead_letter_replay", "worker.deployment"),
    *("worker.environment", "worker.housekeeping", "worker.queue", "tasks.arguments", "rich.console", "rich.table"),
)
"""Nothing here reads the environment as it is imported: the program's is not there yet."""

_MOST_BYTES = 1 << 20


def is_warm(environment: Mapping[str, str]) -> bool:
    """Whether a program with this environment can be forked: nothing of it is read before daycap starts."""
    own = ("DAYCAP_", "COLUMNS")
    changed = {name for name, value in environment.items() if os.environ.get(name) != value}
    return sys.platform == "linux" and all(name.startswith(own) for name in changed)


class WarmProcess:
    """The part of `subprocess.Popen` that tests need, over a program of which this process is not the parent."""

    def __init__(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], output: IO[bytes], errors: IO[bytes]
    ) -> None:
        self.returncode: int | None = None
        self._report, theirs = socket.socketpair()
        request = {"words": [*words], "cwd": str(cwd), "environment": dict(environment)}
        with theirs:
            _forker().start(request, theirs.fileno(), output.fileno(), errors.fileno())
        self.pid = self._hear()

    def poll(self) -> int | None:
        """The status, if it has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The status, once it has ended. Raises `TimeoutExpired`."""
        if self.returncode is None:
            self._report.settimeout(timeout)
            try:
                self.returncode = os.waitstatus_to_exitcode(self._hear())
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a warm process", timeout or 0) from None
            self._report.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _hear(self) -> int:
        numbers = array.array("q")
        numbers.frombytes(self._report.recv(numbers.itemsize))
        return numbers[0]


class _Forker:
    """The other end of `python -m tests.warm`."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
                cwd=Path(__file__).resolve().parent.parent,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for pytest.
            )

    def start(self, request: Mapping[str, object], *files: int) -> None:
        with self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], files)

    def close(self) -> None:
        self._control.close()
        self._process.wait(20)


@functools.cache
def _forker() -> _Forker:
    forker = _Forker()
    atexit.register(forker.close)
    return forker


# --- the process that forks --------------------------------------------------------------------------------------


def _serve(control: socket.socket) -> None:
    """Fork for each request until pytest ends. Returns in each program's process, and at the end."""
    waiting = selectors.DefaultSelector()
    waiting.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is not control:  # The pidfd of a program that has ended.
                pid, report = key.data
                _report(report, os.waitpid(pid, 0)[1])
                waiting.unregister(key.fileobj)
                os.close(key.fd)
                os.close(report)
                continue
            message, files, _, _ = socket.recv_fds(control, _MOST_BYTES, 3)
            if not message:
                return
            report, *output = files
            pid = os.fork()
            if pid == 0:
                waiting.close()
                control.close()
                os.close(report)
                return _become(json.loads(message), *output)
            for file in output:
                os.close(file)
            _report(report, pid)
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, report))


def _report(report: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # A test that does not ask for the status.
        os.write(report, array.array("q", [number]).tobytes())


def _become(request: dict[str, Any], output: int, errors: int) -> None:
    """Run a program in this process, in a session of its own."""
    os.setsid()
    for number, file in ((1, output), (2, errors)):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    module, *sys.argv[1:] = request["words"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in _IMPORTS:
        import_module(name)
    gc.freeze()  # Otherwise each child's collections copy all of that.
    _serve(socket.socket(fileno=int(sys.argv[1])))
