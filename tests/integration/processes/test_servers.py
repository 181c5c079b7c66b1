"""Servers that start and end the processes of their users' applications: a deployment loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from daycap import BudgetUnavailable, Wallet
from demo.local_server import free_port
from tests.integration.processes.session import PATIENT, PROGRAMS, end_session
from tests.processes import ROOT
from tests.spine import Spine, wait_for

M = 1_000_000
REQUESTS, COST = 12, 1_000
BIN = Path(sys.executable).parent
WSGI, ASGI = f"{PROGRAMS}.wsgi_app:app", f"{PROGRAMS}.asgi_app:app"


def gunicorn(*options: str, app: str = WSGI) -> Callable[[int], list[str]]:
    start = ["gunicorn", "-w", "2", "--no-control-socket", "--graceful-timeout", "8", *options]
    return lambda port: [*start, "-b", f"127.0.0.1:{port}", app]


def uwsgi(*options: str) -> Callable[[int], list[str]]:
    return lambda port: ["uwsgi", "--die-on-term", *options, "--http-socket", f"127.0.0.1:{port}", "--module", WSGI]


def uvicorn(*options: str) -> Callable[[int], list[str]]:
    return lambda port: ["uvicorn", "--port", str(port), *options, ASGI]


SERVERS = {
    "gunicorn": gunicorn(),
    "gunicorn-preload": gunicorn("--preload"),
    "gunicorn-gthread": gunicorn("-k", "gthread", "--threads", "2"),
    "gunicorn-uvicorn": gunicorn("-k", "uvicorn_worker.UvicornWorker", app=ASGI),
    "gunicorn-max-requests": gunicorn("--max-requests", "2"),
    "uwsgi-preload": uwsgi("--master", "--processes", "2"),
    "uwsgi-hooks": uwsgi("--master", "--processes", "2", "--py-call-uwsgi-fork-hooks"),
    "uwsgi-lazy": uwsgi("--master", "--lazy-apps"),  # One that is told to end while it loads an application hangs.
    "uvicorn-workers": uvicorn("--workers", "2"),
    "uvicorn": uvicorn(),
}


@contextmanager
def running(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A server in a session of its own; told to end by SIGTERM on leaving."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=ROOT,
            env={**os.environ, **PATIENT, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            text=True,
        )
    try:
        yield process
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            raise AssertionError(log.read_text()) from None
    finally:
        end_session(process)


def answer(port: int, path: str = "/") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as reply:
        return reply.read().decode()


def is_ready(port: int) -> bool:
    """By a request that spends nothing: one without an answer may have been served."""
    try:
        answer(port, "/ready")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_server_books_all(spine: Spine, command: Callable[[int], list[str]], tmp_path: Path) -> None:
    agent, preload, port, log = spine.add("agent-7", 5 * M), spine.add("preload", 5 * M), free_port(), tmp_path / "log"
    with running(command(port), spine.environment, log):
        wait_for(lambda: is_ready(port), 60)
        if "--processes" in command(port):  # uwsgi hangs if it is told to end before it has started all of them.
            wait_for(lambda: "spawned uWSGI worker 2" in log.read_text(), 60)
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(lambda _: answer(port), range(REQUESTS)))

    assert spine.settled_once(agent) == (REQUESTS, REQUESTS * COST), log.read_text()
    count, spent = spine.settled_once(preload)
    assert spent == count * COST
    assert "not known to be settled" not in log.read_text()


@pytest.mark.parametrize("options", [(), ("--max-tasks-per-child=2",)], ids=["", "recycled"])
def test_celery_prefork_books_all(spine: Spine, options: tuple[str, ...], tmp_path: Path) -> None:
    agent, log, module = (
        spine.add("agent-7", 5 * M),
        tmp_path / "log",
        f"{PROGRAMS}.celery_app",
    )
    url = spine.environment["DAYCAP_BROKER_URL"][:-1] + "5"
    command = ["celery", "-A", module, "worker", "-P", "prefork", "-c", "2", "--without-mingle", *options]
    with running(command, {**spine.environment, "USERS_BROKER_URL": url}, log), Celery(broker=url, backend=url) as app:
        results = [app.send_task(f"{module}.spend") for _ in range(REQUESTS)]
        for result in results:
            result.get(60)

    assert spine.settled_once(agent) == (REQUESTS, REQUESTS * COST), log.read_text()


@pytest.fixture
def uwsgi_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for what uwsgi shows of itself: a worker of three. Today's always runs threads."""
    module = types.ModuleType("uwsgi")
    module.__dict__.update(has_threads=1, masterpid=lambda: 1, worker_id=lambda: 2, numproc=3, opt={})
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    return module


def test_uwsgi_without_threads_is_refused(uwsgi_module: Any) -> None:
    with Wallet.from_env(caps={"agent-7": 5 * M}, environ={}) as wallet:
        uwsgi_module.has_threads = 0
        with pytest.raises(BudgetUnavailable, match="--enable-threads"):
            wallet.reserve("agent-7", 1)
        uwsgi_module.has_threads = 1
        wallet.reserve("agent-7", 5 * M).release()  # Nothing is held.


@pytest.mark.parametrize("master", [os.getpid(), 0], ids=["master", "worker"])
def test_uwsgi_before_its_forks_is_refused(uwsgi_module: Any, master: int) -> None:
    with Wallet.from_env(caps={"agent-7": 5 * M}, environ={}) as wallet:
        uwsgi_module.worker_id, uwsgi_module.masterpid = (lambda: 0), (lambda: master)
        with pytest.raises(BudgetUnavailable, match="--lazy-apps or --py-call-uwsgi-fork-hooks"):
            wallet.reserve("agent-7", 1)
        uwsgi_module.opt = {"py-call-uwsgi-fork-hooks": True}
        wallet.reserve("agent-7", 5 * M).release()
