"""Others at the same work: many callers on one small cap. docs/peers.md says how, and in which mode each of them runs.

`python -m tests.benchmarks.bench_peers` shows it alone, in a table of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Group as Lines
from rich.live import Live
from rich.table import Table

from tests.benchmarks.figures import Figure, number
from tests.benchmarks.peers.audit import Outcome, outcome
from tests.benchmarks.peers.contenders import CONTENDERS, Contender
from tests.benchmarks.peers.environments import LeftOut, interpreter
from tests.benchmarks.peers.group import Group
from tests.benchmarks.place import place
from tests.postgresql import LocalPostgreSQL

PROCESSES, CALLERS = 4, 8
CAP_MICROS = 2_000_000
ROUNDS = 3
SCENARIOS = {"exact estimates": 1, "estimates 3x too high": 3}
WORK: dict[str, Any] = {"callers": CALLERS, "least": 100, "most": 1000, "patience": 10, "pause_s": 0.25}

T = TypeVar("T")

Results = dict[tuple[str, str], list[Outcome] | str]
"""What each contender did in each scenario, round by round; or why it did nothing."""


@dataclass(frozen=True)
class PeerFigure(Figure):
    """Cycles a second of one contender in one scenario; what else was measured of it, or why it was left out."""

    measured: Outcome | None = None
    left_out: str = ""

    @classmethod
    def of(cls, contender: str, scenario: str, found: list[Outcome] | str) -> PeerFigure:
        """Of all its rounds."""
        what = f"{contender}, {scenario}"
        if isinstance(found, str):
            return cls(what, 0.0, "cycles/s", f"left out: {found}", left_out=found)
        its = Outcome.of_rounds(found)
        said = (
            f"over {its.over_micros:,}; false {its.false_refusals:,} of {its.refusals:,}, {its.for_good:,} for good;"
            f" used {its.used:.1%}; p50 {number(its.p50_us)} us, p99 {number(its.p99_us)} us"
        )
        return cls(what, its.cycles_per_s, "cycles/s", said, measured=its)


def figures() -> Iterator[Figure]:
    """Each contender in each scenario, when all rounds are over: they take turns."""
    results = empty(CONTENDERS)
    for now in measured(results, CONTENDERS, ROUNDS):
        print(f"peers: {now}")
    for key, found in results.items():
        yield PeerFigure.of(*key, found)


def empty(contenders: Sequence[Contender]) -> Results:
    return {(each.name, scenario): [] for each, scenario in product(contenders, SCENARIOS)}


def measured(results: Results, contenders: Sequence[Contender], rounds: int) -> Iterator[str]:
    """Fill `results`, and say what is done next."""
    with ExitStack() as stack:
        groups: dict[object, Group | str] = {}
        for contender in contenders:
            if contender.processes not in groups:
                yield f"installing and starting {contender.name}"
                groups[contender.processes] = _or_reason(partial(_group, contender, stack))
        for nth, scenario, contender in product(range(rounds), SCENARIOS, contenders):
            yield f"round {nth + 1} of {rounds}, {scenario}: {contender.name}"
            _add_round(results, contender, scenario, nth, groups[contender.processes])
    yield "done"


def _add_round(results: Results, contender: Contender, scenario: str, nth: int, group: Group | str) -> None:
    """One round of one contender; once left out it stays so."""
    so_far = results[contender.name, scenario]
    if isinstance(so_far, str):
        return
    found = group if isinstance(group, str) else _or_reason(partial(_run, group, contender, SCENARIOS[scenario], nth))
    if isinstance(found, str):
        results[contender.name, scenario] = found
    else:
        so_far.append(found)


def _run(group: Group, contender: Contender, factor: int, nth: int) -> Outcome:
    """Under a new key. The same round draws the same costs for every contender."""
    key = f"{contender.name.replace(' ', '-').replace(',', '')}-{factor}-{nth}"
    group.open(key, CAP_MICROS)
    rows = group.run(
        key=key, seed=f"{factor}-{nth}", factor=factor, options=dict(contender.options), cap=CAP_MICROS, **WORK
    )
    return outcome(rows, CAP_MICROS)


def _group(contender: Contender, stack: ExitStack) -> Group:
    """The contender's processes, with the servers that they need; gone when the stack is. Raises `LeftOut`."""
    python = interpreter(contender)
    here = stack.enter_context(place(1))
    servers, env = {"redis": here.settings.redis_url}, dict(contender.variables)
    if contender.adapter == "daycap_wallet":
        here.environment.update(env)
        env = here.environment
        stack.enter_context(here.worker()).ready()
    if contender.adapter == "agentgov_fleet":
        servers["postgresql"] = _postgresql(here.ledger_path.parent, stack)
    group = Group(python, contender.adapter, PROCESSES, servers, env, here.ledger_path.with_suffix(".log"))
    stack.callback(group.close)
    return group


def _postgresql(directory: Path, stack: ExitStack) -> str:
    try:
        server = LocalPostgreSQL(directory / "postgresql")
    except Exception as error:
        raise LeftOut(f"no PostgreSQL here: {error}") from error
    stack.callback(server.close)
    return server.new_database().replace("+psycopg", "")


def _or_reason(do: Callable[[], T]) -> T | str:
    """What it made, or why it made nothing."""
    try:
        return do()
    except LeftOut as error:
        return str(error)


def table(results: Results) -> Table:
    """A line for each contender and scenario."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("", no_wrap=True)
    for name in ("over", "false", "for good", "of refusals", "used", "cycles/s", "p50 us", "p99 us"):
        shown.add_column(name, justify="right")
    for scenario in SCENARIOS:
        shown.add_row(f"[bold]{scenario}[/]")
        for (contender, its), found in results.items():
            if its == scenario:
                shown.add_row(f"  {contender}", *_cells(found))
    return shown


def _cells(found: list[Outcome] | str) -> list[str]:
    if isinstance(found, str):
        return [f"[dim]{found}[/]"]
    if not found:
        return []
    its = Outcome.of_rounds(found)
    counts = (its.over_micros, its.false_refusals, its.for_good, its.refusals)
    rates = (its.cycles_per_s, its.p50_us, its.p99_us)
    return [*(f"{count:,}" for count in counts), f"{its.used:.1%}", *map(number, rates)]


@click.command()
@click.option(
    "--only", type=click.Choice([each.name for each in CONTENDERS]), multiple=True, help="This one, or these."
)
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
def main(only: tuple[str, ...], rounds: int) -> None:
    """Show what each round adds."""
    contenders = tuple(each for each in CONTENDERS if not only or each.name in only)
    results = empty(contenders)
    with Live(auto_refresh=False) as live:
        for now in measured(results, contenders, rounds):
            live.update(Lines(table(results), now), refresh=True)


if __name__ == "__main__":
    main()
