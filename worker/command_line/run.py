"""daycap run and replay: the main job, with every server that it needs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from daycap.celery_transport import waiting_messages
from daycap.errors import Unavailable
from daycap.settings import Settings
from worker.command_line.client import ask, me
from worker.ledger import Ledger
from worker.local_server import LocalServer, free_port

_ROOT = Path(__file__).resolve().parent.parent.parent
_START_S = 60

notes = Console(stderr=True)


def replay_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is replayed."""
    for option in reversed(
        (
            click.option("--trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CSV file."),
            click.option("--seed", type=int, help="Of the synthetic day; without it one is drawn and printed."),
            click.option("--seconds", type=click.FloatRange(1), default=30, show_default=True, help="How long."),
            click.option("--agents", type=click.IntRange(1, 1000), default=50, show_default=True),
            click.option("--runners", type=click.IntRange(1, 64), default=4, show_default=True),
            click.option("--json", "as_json", is_flag=True, help="Write the result as JSON."),
        )
    ):
        command = option(command)
    return command


@click.command()
@replay_options
def replay(as_json: bool, **options: Any) -> None:
    """Replay inference calls through real runner processes and audit what was recorded.

    The trace has columns TIMESTAMP, ContextTokens, GeneratedTokens; without one a day is made up. A worker
    must be running. Ends with status 1 if anything differs.
    """
    sys.exit(_replay(as_json, **options))


@click.command()
@replay_options
@click.option("--keep", is_flag=True, help="Keep everything running afterwards, until Ctrl-C.")
def run(keep: bool, as_json: bool, **options: Any) -> None:
    """Show the main job: start every server here, replay a day, audit it, stop all.

    Needs nothing installed or running. Servers listen on free ports of 127.0.0.1; ledger and logs stay in
    .run/latest.
    """
    _stop_on_sigterm()
    directory = Path(".run/latest").absolute()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        flower = stack.enter_context(_everything(directory))
        status = _replay(as_json, note=f"Flower {flower}", directory=directory / "replay", **options)
        if keep:
            notes.print(f"\nstill running: Flower at [link]{flower}[/link]; Ctrl-C stops everything")
            signal.pause()
    sys.exit(status)


@contextmanager
def _everything(directory: Path) -> Iterator[str]:
    """Server, ledger, worker, beat and Flower, while the block runs. Yields Flower's address."""
    with _redis(directory) as server:
        flower_port = free_port()
        os.environ.update(
            DAYCAP_REDIS_URL=server.url(0),
            DAYCAP_BROKER_URL=server.url(1),
            DAYCAP_LEDGER_URL=f"sqlite:///{directory}/ledger.sqlite3",
            DAYCAP_FLOWER_PORT=str(flower_port),
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        )
        with _honcho(directory / "release.log", "release") as release:
            if release.wait(_START_S):
                raise _failed("the ledger was not migrated", directory / "release.log")
        notes.print(f"[green]✓[/] ledger      sqlite:///{_near(directory / 'ledger.sqlite3')}")
        log = directory / "processes.log"
        with _honcho(log, "worker", "beat", "flower") as processes:
            _wait_for_worker(processes, log)
            notes.print(f"[green]✓[/] worker, beat and Flower; their log is {_near(log)}")
            yield f"http://127.0.0.1:{flower_port}"


@contextmanager
def _redis(directory: Path) -> Iterator[LocalServer]:
    server = LocalServer(directory=directory / "redis")
    try:
        server.start()
        notes.print(f"[green]✓[/] {server.name:<11} {server.url(0)} (counter), database 1 is the broker")
        yield server
    finally:
        server.stop()


@contextmanager
def _honcho(log: Path, *names: str) -> Iterator[subprocess.Popen[bytes]]:
    """Processes of the Procfile, ended when the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  (our own arguments)
            [sys.executable, "-m", "honcho", "start", "-f", str(_ROOT / "Procfile"), *names],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is ours to handle: the processes end in order.
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_for_worker(processes: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    with notes.status("starting worker, beat and Flower"):
        while processes.poll() is None:
            try:
                ask("daycap.check_ledger", timeout_s=3)
            except click.ClickException:
                if time.monotonic() > end:
                    break
            else:
                return
    raise _failed("the worker did not start", log)


def _replay(as_json: bool, note: str = "", directory: Path | None = None, **options: Any) -> int:
    settings = Settings.from_env()
    for name in ("redis_url", "broker_url", "ledger_url"):
        if not getattr(settings, name):
            raise click.ClickException(f"replay needs DAYCAP_{name.upper()}; daycap run brings its own servers")
    from worker.celery import app  # noqa: PLC0415  (its settings need the broker's URL)
    from worker.replay.replay import ReplayOptions  # noqa: PLC0415
    from worker.replay.replay import replay as replay_calls  # noqa: PLC0415

    ledger = Ledger(settings.ledger_url)
    try:
        result = replay_calls(
            ReplayOptions(**options),
            settings=settings,
            ledger=ledger.engine,
            add_agents=lambda caps: ask("daycap.add_agents", caps=caps, changed_by=me()),
            backlog=lambda: waiting_messages(app),
            directory=directory,
            note=note,
            as_json=as_json,
        )
    finally:
        ledger.close()
    return 0 if result.ok else 1


def _failed(what: str, log: Path) -> Unavailable:
    return Unavailable(f"{what}; the end of {_near(log)}:\n{log.read_text(errors='replace')[-3000:]}")


def _near(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _stop_on_sigterm() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
