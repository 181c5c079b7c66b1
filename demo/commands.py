"""daycap run and replay: the main job, with every server that it needs."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click
from honcho.environ import parse_procfile
from rich.console import Console

from daycap.cli.client import answer_of, ask
from daycap.delivery.celery import CeleryTransport
from daycap.errors import Unavailable
from daycap.ledger.engine import Ledger
from daycap.process import me
from daycap.settings import Settings
from demo.local_server import LocalProcess, LocalServer, free_port

_ROOT = Path(__file__).resolve().parent.parent
_PROCFILE = _ROOT / "Procfile"
_START_S = 60

_SHORT_TIMES = {
    "DAYCAP_LEASE_TTL_SECONDS": "3",
    "DAYCAP_GRACE_SECONDS": "1",
    "DAYCAP_RESEND_SECONDS": "2",
}
"""With chaos: a replay is too short to wait half a minute each time that the counter lost everything."""

Process = TypeVar("Process", bound=LocalProcess)

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
            click.option("--chaos", is_flag=True, help="Kill worker and server in the middle of it, and restart them."),
            click.option("--json", "as_json", is_flag=True, help="Write the result as JSON."),
        )
    ):
        command = option(command)
    return command


@click.command()
@replay_options
def replay(as_json: bool, chaos: bool, **options: Any) -> None:
    """Replay inference calls through real runner processes and audit what was recorded.

    The trace has columns TIMESTAMP, ContextTokens, GeneratedTokens; without one a day is made up. A worker
    must be running, but for --chaos, which starts its own servers as daycap run does. Ends with status 1 if
    anything differs.
    """
    sys.exit(_run(as_json, chaos, keep=False, **options) if chaos else _replay(as_json, **options))


@click.command()
@replay_options
@click.option("--keep", is_flag=True, help="Keep everything running afterwards, until Ctrl-C.")
def run(as_json: bool, chaos: bool, keep: bool, **options: Any) -> None:
    """Show the main job: start every server here, replay a day, audit it, stop all.

    Needs nothing installed or running. Servers listen on free ports of 127.0.0.1; ledger and logs stay in
    .run/latest until the next run.
    """
    sys.exit(_run(as_json, chaos, keep, **options))


def _run(as_json: bool, chaos: bool, keep: bool, **options: Any) -> int:
    _stop_on_signals()
    directory = _new_directory()
    if chaos:
        os.environ.update(_SHORT_TIMES)
    try:
        with _everything(directory, chaos) as (flower, victims):
            note = f"Flower {flower}"
            status = _replay(as_json, note=note, victims=victims, directory=directory / "replay", **options)
            if keep:
                _keep(flower)
            else:
                _say(f"Flower {flower} ends now, with all else; --keep leaves everything up")
    except KeyboardInterrupt:
        notes.print("\nstopped everything")
        return 130
    return status


def _keep(flower: str) -> None:
    """Say how to look around from another shell, then wait for Ctrl-C."""
    names = ("DAYCAP_REDIS_URL", "DAYCAP_BROKER_URL", "DAYCAP_LEDGER_URL", *_SHORT_TIMES)
    _say("\neverything is still up; try it from another shell:\n")
    for name in names:
        if name in os.environ:
            _say(f"  export {name}={shlex.quote(os.environ[name])}")
    _say(f"  export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    for words in ("status", "agent add me --cap 5.00", "reserve me 0.05", "audit", "doctor"):
        _say(f"  daycap {words}")
    _say(f"\nFlower {flower}\nCtrl-C stops everything")
    with suppress(KeyboardInterrupt):
        signal.pause()
    _say("stopping everything")


def _say(line: str) -> None:
    notes.print(line, soft_wrap=True, highlight=False, markup=False)


def _new_directory() -> Path:
    """A directory of this run's own below .run, where `latest` leads to; those of runs that ended go."""
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
def _everything(directory: Path, chaos: bool) -> Iterator[tuple[str, dict[str, LocalProcess]]]:
    """Server, ledger, worker, beat and Flower, while the block runs. Yields Flower's address and who may be killed."""
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
            if release.wait(_START_S):
                raise _failed("the ledger was not migrated", release)
        notes.print(f"[green]✓[/] ledger      sqlite:///{_near(directory / 'ledger.sqlite3')}")
        victims: dict[str, LocalProcess] = {}
        if chaos:
            # honcho ends everything when one process does: the one that will be killed is started apart from it.
            victims = {"server": server, "worker": stack.enter_context(_started(_of_procfile(directory, "worker")))}
            processes = stack.enter_context(_started(_honcho(directory, "beat", "flower")))
        else:
            processes = stack.enter_context(_started(_honcho(directory, "worker", "beat", "flower")))
        _wait_for_worker(victims.get("worker", processes))
        notes.print(f"[green]✓[/] worker, beat and Flower; their log is {_near(processes.log)}")
        yield f"http://127.0.0.1:{flower_port}", victims


@contextmanager
def _started(process: Process) -> Iterator[Process]:
    process.start()
    try:
        yield process
    finally:
        process.stop()


def _honcho(directory: Path, *names: str) -> LocalProcess:
    """Processes of the Procfile, each ended with all others."""
    command = [sys.executable, "-m", "honcho", "start", "-f", str(_PROCFILE), *names]
    return LocalProcess(command, directory / f"{'-'.join(names)}.log", directory=_ROOT)


def _of_procfile(directory: Path, name: str) -> LocalProcess:
    """One process of the Procfile, by itself."""
    command = parse_procfile(_PROCFILE.read_text()).processes[name]
    return LocalProcess(["sh", "-c", f"exec {command}"], directory / f"{name}.log", directory=_ROOT)


def _wait_for_worker(worker: LocalProcess) -> None:
    end = time.monotonic() + _START_S
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


def _replay(
    as_json: bool,
    note: str = "",
    directory: Path | None = None,
    victims: dict[str, LocalProcess] | None = None,
    **options: Any,
) -> int:
    settings = Settings.from_env()
    for name in ("redis_url", "broker_url", "ledger_url"):
        if not getattr(settings, name):
            raise click.ClickException(f"replay needs DAYCAP_{name.upper()}; daycap run brings its own servers")
    from demo.replay import ReplayOptions  # noqa: PLC0415
    from demo.replay import replay as replay_calls  # noqa: PLC0415

    ledger = Ledger(settings.ledger_url)
    try:
        result = replay_calls(
            ReplayOptions(**options),
            settings=settings,
            ledger=ledger.engine,
            add_agents=lambda caps: ask("daycap.add_agents", caps=caps, changed_by=me()),
            backlog=CeleryTransport(settings.broker_url).backlog,
            reconcile=lambda: answer_of("daycap.reconcile", timeout_s=_START_S),
            chaos=victims,
            directory=directory,
            note=note,
            as_json=as_json,
        )
    finally:
        ledger.close()
    return 0 if result.ok else 1


def _failed(what: str, process: LocalProcess) -> Unavailable:
    return Unavailable(f"{what}; the end of {_near(process.log)}:\n{process.last_words}")


def _near(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _stop_on_signals() -> None:
    """A closed terminal and a SIGTERM end everything as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
