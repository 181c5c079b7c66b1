"""The result of the demo, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from daycap.cli.output import table
from demo.chaos import Chaos
from demo.journal_audit import Check, Recorded, excess_micros
from demo.naive import Comparison
from demo.watch import Tally, Watch

_MOST_SHOWN = 20

_PROMISES = {
    "": "every call counted",
    "P1": "never past the cap",
    "P2": "never charged twice",
    "P3": "the books agree",
    "P4": "true cost inside the cap",
    "P5": "leased money comes back",
    "P6": "never locked out",
    "P7": "nothing lost",
}
"""Each promise of docs/explanation/promises.md in a few words."""

_NAIVE = (
    "over caps: true cost beyond   forgotten: missing in books   unanswered: not made",
    "naive: GET spent, compare spent + estimate with the cap, call, INCRBY the cost;",
    "       no call without an answer. Redis keeps nothing on disk here, for both",
)
"""Explains the figures of the comparison, and the naive counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The calls, their outcomes and all checks. Amounts are micros, times seconds.

    `stopped_micros` is what the refused calls would have cost.
    """

    source: str
    seed: int
    seconds: float
    directory: str
    agents: int
    agents_refused: int
    calls: Tally
    settled: int
    spent_micros: int
    stopped_micros: int
    uncovered_micros: int
    excess_micros: int
    given_up_micros: int
    kills: dict[str, int]
    checks: list[Check]
    comparison: Comparison | None

    @classmethod
    def of(
        cls,
        source: str,
        seed: int,
        seconds: float,
        directory: Path,
        watch: Watch,
        recorded: Recorded,
        checks: Sequence[Check],
        chaos: Chaos | None,
        comparison: Comparison | None,
    ) -> Result:
        """Sum up."""
        return cls(
            source=source,
            seed=seed,
            seconds=round(seconds, 1),
            directory=str(directory),
            agents=len(watch.plan.agents),
            agents_refused=sum(tally.refused > 0 for tally in watch.tally.values()),
            calls=watch.total,
            settled=len(recorded.settlements),
            spent_micros=sum(row.spent_micros for row in recorded.days),
            stopped_micros=sum(entry.stopped_micros for entry in watch.entries),
            uncovered_micros=sum(row.uncovered_micros for row in recorded.days),
            excess_micros=excess_micros(watch.entries),
            given_up_micros=sum(reading.given_up_micros for _, _, reading in recorded.readings if reading),
            kills=dict(chaos.kills) if chaos else {},
            checks=list(checks),
            comparison=comparison,
        )

    @property
    def ok(self) -> bool:
        """Whether every check found what it expected."""
        return not self.differences

    @property
    def differences(self) -> int:
        """The number of differences."""
        return sum(len(check.differences) for check in self.checks)

    @property
    def verdict(self) -> str:
        """The result in one line."""
        if self.ok:
            return (
                f"OK: {self.settled:,} calls settled, each once; spent {cents(self.spent_micros)}, "
                f"stopped {cents(self.stopped_micros)} at the caps"
            )
        return f"DIFFERENT: {self.differences:,} differences; plans, journals and logs are in {self.directory}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        checks = [
            {**check._asdict(), "differences": [each._asdict() for each in check.differences]} for check in self.checks
        ]
        sides = self.comparison._asdict() if self.comparison else {}
        comparison = {side: calls._asdict() for side, calls in sides.items()} or None
        facts = {**asdict(self), "calls": asdict(self.calls), "checks": checks, "comparison": comparison}
        return {"ok": self.ok, "verdict": self.verdict, **facts}


def cents(amount_micros: int) -> str:
    """Format an amount for display, rounded down to a cent. A smaller amount above zero shows as a cent."""
    rounded = max(abs(amount_micros) // 10_000, 1 if amount_micros else 0)
    return f"{'-' if amount_micros < 0 else ''}${rounded // 100:,}.{rounded % 100:02d}"


def show_result(console: Console, result: Result, suggestions: Sequence[tuple[str, str]]) -> None:
    """Print the figures, the promises, each difference, what to try next, and last the verdict."""
    for part in (_figures(result), _promises(result)):
        console.print()
        console.print(part)
    console.print()
    _show_differences(console, result)
    if suggestions:
        width = max(len(command) for command, _ in suggestions)
        console.print("try next", style="bold")
        for command, meaning in suggestions:
            console.print(
                Text.assemble(f"  {command:<{width}}  ", (f"# {meaning}", "dim")), soft_wrap=True, highlight=False
            )
        console.print()
    style = "bold green" if result.ok else "bold red"
    console.print(result.verdict, style=style, soft_wrap=True, highlight=False, markup=False)
    if result.comparison is not None:
        _show_comparison(console, result.comparison)


def _figures(result: Result) -> Table:
    calls = result.calls
    figures = table("figure|", ">", "which is")
    for name, figure, meaning in (
        ("calls", f"{calls.calls:,} in {result.seconds:,.0f} s", "made by runners"),
        ("finalized", f"{calls.finalized:,}", "charged actual cost"),
        ("released", f"{calls.released:,}", "never sent, free"),
        ("refused", f"{calls.refused:,}", f"over the cap ({result.agents_refused} of {result.agents} agents)"),
        ("unavailable", f"{calls.unavailable:,}", "no answer, retried"),
        ("spent", cents(result.spent_micros), "booked in ledger"),
        ("stopped", cents(result.stopped_micros), "refused calls' cost"),
        ("uncovered", cents(result.uncovered_micros), "cost beyond cap"),
        ("above estimate", cents(result.excess_micros), "estimates too low"),
        ("given up", cents(result.given_up_micros), "leases written off"),
        *((f"{name} killed", f"{times}", "by the chaos") for name, times in sorted(result.kills.items())),
    ):
        bold = "bold" if name == "stopped" else ""
        figures.add_row(Text(name, style=bold), Text(figure, style=bold), Text(meaning, style="dim"))
    return figures


def _promises(result: Result) -> Table:
    grid = table("promise", "", "checked", "compared>", "differences>")
    before = None
    for check in result.checks:
        count = Text(f"{len(check.differences):,}", style="red bold" if check.differences else "green")
        says = "" if check.promise == before else _PROMISES[check.promise]
        number = Text("" if check.promise == before else check.promise, style="dim")
        grid.add_row(says, number, Text(check.says, style="dim"), f"{check.compared:,}", count)
        before = check.promise
    return grid


def _show_differences(console: Console, result: Result) -> None:
    for check in result.checks:
        for each in check.differences[:_MOST_SHOWN]:
            words = (each.promise, each.agent, f"{each.what}: expected {each.expected}, found {each.found}")
            console.print(" ".join(filter(None, words)), style="red", soft_wrap=True, highlight=False, markup=False)
        if len(check.differences) > _MOST_SHOWN:
            console.print(f"{check.promise} and {len(check.differences) - _MOST_SHOWN:,} more", style="red")


def _show_comparison(console: Console, comparison: Comparison) -> None:
    """Print the naive counter's figures beside daycap's, and a last line that compares them in words."""
    naive, daycap = comparison
    grid = table("the same calls|", "true cost>", "over caps>", "agents over>", "forgotten>", "unanswered>")
    for name, side in (("naive counter", naive), ("daycap", daycap)):
        over = Text(cents(side.over_micros), style="red" if side.over_micros else "green")
        forgotten = Text(cents(side.forgotten_micros), style="red" if side.forgotten_micros else "green")
        grid.add_row(name, cents(side.spent_micros), over, f"{side.agents_over}", forgotten, f"{side.unanswered:,}")
    console.print()
    console.print(grid)
    for line in _NAIVE:
        console.print(line, style="dim", soft_wrap=True, highlight=False)
    console.print()
    console.print(
        f"the naive counter overspent {cents(naive.over_micros)} and forgot {cents(naive.forgotten_micros)}; "
        f"daycap {cents(daycap.over_micros)} and {cents(daycap.forgotten_micros)}",
        style="bold",
        soft_wrap=True,
        highlight=False,
    )
