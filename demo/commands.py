"""The commands daycap run and daycap demo: let runner processes work, with or without their own servers."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from daycap.cli.client import answer_of, ask
from daycap.delivery.celery import CeleryTransport
from daycap.ledger.engine import Ledger
from daycap.process import me
from daycap.settings import Settings
from demo.stack import START_S, everything, new_directory, notes

_SHORT_TIMES = {
    "DAYCAP_LEASE_TTL_SECONDS": "3",
    "DAYCAP_GRACE_SECONDS": "1",
    "DAYCAP_RESEND_SECONDS": "2",
}
"""With chaos: the demo is too short to wait half a minute after each loss of the counter's data."""


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose the calls."""
    for option in reversed(
        (
            click.option(
                "--trace",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Make the calls of a CSV file with columns TIMESTAMP, ContextTokens, GeneratedTokens.",
            ),
            click.option("--seed", type=int, help="Repeat a run; without it a seed is drawn and printed."),
            click.option("--seconds", type=click.FloatRange(1), default=30, show_default=True, help="How long."),
            click.option("--agents", type=click.IntRange(1, 1000), default=20, show_default=True),
            click.option("--runners", type=click.IntRange(1, 64), default=4, show_default=True),
            click.option(
                "--chaos",
                is_flag=True,
                help="Kill worker and Redis in the middle, and compare with a naive Redis counter on the same calls.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Write the result as JSON."),
        )
    ):
        command = option(command)
    return command


@click.command()
@_options
def demo(as_json: bool, chaos: bool, **options: Any) -> None:
    """Let agents work on your servers, and audit what was recorded.

    A worker must be running. --chaos starts servers of its own, as daycap run does. Ends with status 1 if anything
    differs.
    """
    if chaos:
        sys.exit(_run(as_json, chaos, keep=False, **options))
    _draw_seed(options)
    again = f"daycap demo {_same_again(options['seed'])}"
    suggestions = [("daycap status", "what is left"), ("daycap audit", "check the books"), (again, "same calls again")]
    sys.exit(_demo(as_json, suggestions=suggestions, **options))


replay = demo
"""The old name."""


@click.command()
@_options
@click.option("--keep", is_flag=True, help="Keep everything running afterwards, until Ctrl-C.")
def run(as_json: bool, chaos: bool, keep: bool, **options: Any) -> None:
    """Show daycap at work: start every server here, let agents work, audit, stop all.

    Needs nothing installed or running. Servers listen on free ports of 127.0.0.1; ledger and logs stay in
    .run/latest until the next run.
    """
    sys.exit(_run(as_json, chaos, keep, **options))


def _run(as_json: bool, chaos: bool, keep: bool, **options: Any) -> int:
    _stop_on_signals()
    _draw_seed(options)
    directory = new_directory()
    if chaos:
        os.environ.update(_SHORT_TIMES)
    suggestions = [] if keep else _suggestions(chaos, options["seed"])
    try:
        with everything(directory, chaos) as (flower, victims):
            status = _demo(
                as_json,
                notes=[f"Flower {flower}"],
                victims=victims,
                directory=directory / "runners",
                suggestions=suggestions,
                **options,
            )
            if keep:
                _keep(flower)
    except KeyboardInterrupt:
        notes.print("\nstopped everything")
        return 130
    return status


def _draw_seed(options: dict[str, Any]) -> None:
    if options["seed"] is None:
        options["seed"] = secrets.randbelow(1_000_000)


def _same_again(seed: int) -> str:
    """Return the command-line options that repeat the same calls."""
    words = sys.argv[2:]
    given = any(word.startswith("--seed") for word in words)
    return shlex.join(words if given else [*words, "--seed", str(seed)])


def _suggestions(chaos: bool, seed: int) -> list[tuple[str, str]]:
    """Return three commands to try next."""

    def command(words: str) -> str:
        return f"make run ARGS={shlex.quote(words)}" if "MAKELEVEL" in os.environ else f"daycap run {words}"

    logs = ("less .run/latest/worker.log", "the worker's log")
    kill = (command("--chaos"), "kill worker and Redis")
    keep = (command("--keep"), "keep Flower and servers up")
    return [keep, logs if chaos else kill, (command(_same_again(seed)), "same calls again")]


def _keep(flower: str) -> None:
    """Print how to explore from another shell, then wait for Ctrl-C."""
    names = ("DAYCAP_REDIS_URL", "DAYCAP_BROKER_URL", "DAYCAP_LEDGER_URL", *_SHORT_TIMES)
    _say("\neverything is still up; try it from another shell:\n")
    for name in names:
        if name in os.environ:
            _say(f"  export {name}={shlex.quote(os.environ[name])}")
    _say(f"  export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
    for words, meaning in (
        ("status", "what each agent spent"),
        ("agent add me --cap 5.00", "a cap of yours"),
        ("reserve me 0.05", "hold five cents"),
    ):
        _say(f"  daycap {words:<24} # {meaning}")
    _say(f"\nFlower {flower}\nCtrl-C stops everything")
    with suppress(KeyboardInterrupt):
        signal.pause()
    _say("stopping everything")


def _say(line: str) -> None:
    notes.print(line, soft_wrap=True, highlight=False, markup=False)


def _demo(as_json: bool, **options: Any) -> int:
    settings = Settings.from_env()
    for name in ("redis_url", "broker_url", "ledger_url"):
        if not getattr(settings, name):
            raise click.ClickException(f"daycap demo needs DAYCAP_{name.upper()}; daycap run brings its own servers")
    from demo.run import Options, Services, run_demo  # noqa: PLC0415

    ledger = Ledger(settings.ledger_url)
    services = Services(
        settings=settings,
        ledger=ledger.engine,
        add_agents=lambda caps: ask("daycap.add_agents", caps=caps, changed_by=me()),
        add_team=_add_team,
        backlog=CeleryTransport(settings.broker_url).backlog,
        reconcile=lambda: answer_of("daycap.reconcile", timeout_s=START_S),
    )
    try:
        result = run_demo(Options(**options), services, as_json=as_json)
    finally:
        ledger.close()
    return 0 if result.ok else 1


def _add_team(name: str, agents: list[str], cap_micros: int) -> None:
    from demo.plan import TEAM_PERIOD  # noqa: PLC0415

    ask("daycap.add_group", group=name, agents=agents, member_groups=[], changed_by=me())
    facts = {"group": name, "cap_micros": cap_micros, "period": TEAM_PERIOD.to_json()}
    ask("daycap.add_budget", name=name, facts=facts, changed_by=me())


def _stop_on_signals() -> None:
    """Make a closed terminal and SIGTERM end everything, as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
