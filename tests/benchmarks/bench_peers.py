"""Others at the same work: many callers on one small cap. docs/peers.md says how, and in which mode each of them runs.

`python -m tests.benchmarks.bench_peers` shows it alone, in a table of its own.
"""

from __future__ import annotations

import statistics
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
from tests.benchmarks.place import Place, place
from tests.postgresql import LocalPostgreSQL

PROCESSES, CALLERS = 4, 8
CAP_MICROS = 2_000_000
ROUNDS = 3
SCENARIOS = {"exact estimates": 1, "estimates 3x too high": 3}
WORK: dict[str, Any] = {"callers": CALLERS, "least": 100, "most": 1000, "patience": 5, "pause_s": 0.2}

T = TypeVar("T")

Results = dict[tuple[str, str], list[Outcome] | str]
"""What each contender did in each scenario, round by round; or why it did nothing."""


@dataclass(frozen=True)
class PeerFigure(Figure):
    """Cycles a second, and what else was measured of one contender in one scenario. Times and shares are medians of
    the rounds, `over_micros` is the worst of them, and refusals are those of all."""

    over_micros: int = 0
    used: float = 0.0
    refusals: int = 0
    false_refusals: int = 0
    for_good: int = 0
    unavailable: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    left_out: str = ""

    @classmethod
    def of(cls, contender: str, scenario: str, found: list[Outcome] | str) -> PeerFigure:
        """Of all rounds of one contender in one scenario."""
        what = f"{contender}, {scenario}"
        if isinstance(found, str):
            return cls(what, 0.0, "cycles/s", f"left out: {found}", left_out=found)

        def middle(name: str) -> float:
            return float(statistics.median(getattr(each, name) for each in found))

        def all_of(name: str) -> int:
            return sum(getattr(each, name) for each in found)

        measured = {
            "over_micros": max(each.over_micros for each in found),
            **{name: middle(name) for name in ("used", "p50_us", "p99_us")},
            **{name: all_of(name) for name in ("refusals", "false_refusals", "for_good", "unavailable")},
        }
        said = (
            "over {over_micros:,}; false {false_refusals:,} of {refusals:,}, {for_good:,} for good; used {used:.1%};"
            " p50 {p50_us:,.0f} us, p99 {p99_us:,.0f} us".format(**measured)
        )
        return cls(what, middle("cycles_per_s"), "cycles/s", said, **measured)


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
    with place(1) as here, ExitStack() as stack:
        groups: dict[str, Group | str] = {}
        for contender in {each.adapter: each for each in contenders}.values():
            yield f"installing {contender.adapter}"
            groups[contender.adapter] = _or_reason(partial(_group, contender, here, stack))
        for nth, scenario, contender in product(range(rounds), SCENARIOS, contenders):
            yield f"round {nth + 1} of {rounds}, {scenario}: {contender.name}"
            _add_round(results, contender, scenario, nth, groups[contender.adapter])
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


def _group(contender: Contender, here: Place, stack: ExitStack) -> Group:
    """The contender's processes, with the servers that they need; gone when the stack is. Raises `LeftOut`."""
    python = interpreter(contender)
    directory = here.ledger_path.parent
    servers, env = {"redis": here.settings.redis_url.rsplit("/", 1)[0] + "/2"}, {}
    if contender.adapter == "daycap_wallet":
        stack.enter_context(here.worker()).ready()
        env = here.environment
    elif contender.adapter == "agentgov_fleet":
        servers["postgresql"] = _postgresql(directory, stack)
    elif contender.adapter == "litellm_proxy":
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # Else it asks the net for prices.
    group = Group(python, contender.adapter, PROCESSES, servers, env, directory / f"{contender.adapter}.log")
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
    if not found:
        return []
    figure = PeerFigure.of("", "", found)
    if figure.left_out:
        return [f"[dim]{figure.left_out}[/]"]
    return [
        f"{figure.over_micros:,}",
        f"{figure.false_refusals:,}",
        f"{figure.for_good:,}",
        f"{figure.refusals:,}",
        f"{figure.used:.1%}",
        number(figure.value),
        number(figure.p50_us),
        number(figure.p99_us),
    ]


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
