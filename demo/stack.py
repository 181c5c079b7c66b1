"""The demo's servers on this machine: Redis, ledger, worker, beat and Flower."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import click
from honcho.environ import parse_procfile
from rich.console import Console

from daycap.cli.client import ask
from daycap.errors import Unavailable
from demo.local_server import LocalProcess, LocalServer, free_port

START_S = 60
"""How long a server may take to start."""

_ROOT = Path(__file__).resolve().parent.parent
_PROCFILE = _ROOT / "Procfile"

Process = TypeVar("Process", bound=LocalProcess)

notes = Console(stderr=True, highlight=False)


def new_directory() -> Path:
    """Create this run's directory in .run, with the link `latest`. Removes those of runs that have ended."""
    runs = Path(".run").absolute()
    runs.mkdir(exist_ok=True)
    for old in runs.glob("run-*"):
        try:
            os.kill(int(old.name.removeprefix("run-")), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(old, ignore_errors=True)
    made = runs / f"run-{os.getpid()}"
    made.mkdir()
    latest = runs / "latest"
    if latest.is_dir() and not latest.is_symlink():
        shutil.rmtree(latest)
    latest.unlink(missing_ok=True)
    latest.symlink_to(made.name)
    return made


@contextmanager
def everything(directory: Path, chaos: bool) -> Iterator[tuple[str, dict[str, LocalProcess]]]:
    """Run server, ledger, worker, beat and Flower in this block. Yields Flower's address and the processes to kill."""
    server = LocalServer(directory=directory / "redis")
    with _started(server), ExitStack() as stack:
        notes.print(f"[green]✓[/] {server.name:<11} {server.url(0)} (counter), database 1 is the broker")
        flower_port = free_port()
        os.environ.update(
            DAYCAP_REDIS_URL=server.url(0),
            DAYCAP_BROKER_URL=server.url(1),
            DAYCAP_LEDGER_URL=f"sqlite:///{directory}/ledger.sqlite3",
            DAYCAP_FLOWER_PORT=str(flower_port),
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        )
        migration = LocalProcess(["alembic", "upgrade", "head"], directory / "release.log", directory=_ROOT)
        with _started(migration) as release:
            if release.wait(START_S):
                raise _failed("the ledger was not migrated", release)
        notes.print(f"[green]✓[/] ledger      sqlite:///{_near(directory / 'ledger.sqlite3')}")
        victims: dict[str, LocalProcess] = {}
        if chaos:
            # honcho stops everything when one process ends, so start the worker separately if it will be killed.
            victims = {"server": server, "worker": stack.enter_context(_started(_of_procfile(directory, "worker")))}
            processes = stack.enter_context(_started(_honcho(directory, "beat", "flower")))
        else:
            processes = stack.enter_context(_started(_honcho(directory, "worker", "beat", "flower")))
        _wait_for_worker(victims.get("worker", processes))
        notes.print(f"[green]✓[/] worker, beat, Flower; logs in {_near(directory)}")
        yield f"http://127.0.0.1:{flower_port}", victims


@contextmanager
def _started(process: Process) -> Iterator[Process]:
    process.start()
    try:
        yield process
    finally:
        process.stop()


def _honcho(directory: Path, *names: str) -> LocalProcess:
    """Start processes of the Procfile. If one ends, all do."""
    command = [sys.executable, "-m", "honcho", "start", "-f", str(_PROCFILE), *names]
    return LocalProcess(command, directory / f"{'-'.join(names)}.log", directory=_ROOT)


def _of_procfile(directory: Path, name: str) -> LocalProcess:
    """Start one process of the Procfile by itself."""
    command = parse_procfile(_PROCFILE.read_text()).processes[name]
    return LocalProcess(["sh", "-c", f"exec {command}"], directory / f"{name}.log", directory=_ROOT)


def _wait_for_worker(worker: LocalProcess) -> None:
    end = time.monotonic() + START_S
    with notes.status("starting worker, beat and Flower"):
        while worker.alive:
            try:
                ask("daycap.check_ledger", timeout_s=3)
            except click.ClickException:
                if time.monotonic() > end:
                    break
            else:
                return
    raise _failed("the worker did not start", worker)


def _failed(what: str, process: LocalProcess) -> Unavailable:
    return Unavailable(f"{what}; the end of {_near(process.log)}:\n{process.last_words}")


def _near(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
