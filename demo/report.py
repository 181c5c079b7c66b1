"""The result of a replay, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from daycap.cli.output import table
from daycap.money import format_usd
from demo.chaos import Chaos
from demo.journal_audit import Check, Recorded, excess_micros
from demo.watch import Tally, Watch

_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What was replayed, what came of it and every check. Amounts are micros, times seconds."""

    source: str
    seed: int
    seconds: float
    directory: str
    agents: int
    agents_refused: int
    calls: Tally
    settled: int
    spent_micros: int
    uncovered_micros: int
    excess_micros: int
    given_up_micros: int
    kills: dict[str, int]
    checks: list[Check]

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
    ) -> ReplayResult:
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
            uncovered_micros=sum(row.uncovered_micros for row in recorded.days),
            excess_micros=excess_micros(watch.entries),
            given_up_micros=sum(reading.given_up_micros for _, _, reading in recorded.readings if reading),
            kills=dict(chaos.kills) if chaos else {},
            checks=list(checks),
        )

    @property
    def ok(self) -> bool:
        """Whether every check found what it expected."""
        return not self.differences

    @property
    def differences(self) -> int:
        """How many were found."""
        return sum(len(check.differences) for check in self.checks)

    @property
    def verdict(self) -> str:
        """One line that says it all."""
        if self.ok:
            return (
                f"verdict OK: {self.calls.calls:,} calls, {self.settled:,} settled, each once; "
                f"spent {format_usd(self.spent_micros)}, no agent past its cap"
            )
        return f"verdict DIFFERENT: {self.differences:,} differences; plans, journals and logs are in {self.directory}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [
            {**check._asdict(), "differences": [each._asdict() for each in check.differences]} for check in self.checks
        ]
        facts = {**asdict(self), "calls": asdict(self.calls), "checks": checks}
        return {"ok": self.ok, "verdict": self.verdict, **facts}


def show_result(console: Console, result: ReplayResult) -> None:
    """A short table of numbers, one of checks, each difference, and last the verdict."""
    calls = result.calls
    numbers = table("figure|", ">", "which is")
    for name, figure, meaning in (
        ("calls", f"{calls.calls:,} in {result.seconds:,.0f} s", "made by runners"),
        ("finalized", f"{calls.finalized:,}", "charged actual cost"),
        ("released", f"{calls.released:,}", "never sent, free"),
        ("refused", f"{calls.refused:,}", f"over the cap ({result.agents_refused} of {result.agents} agents)"),
        ("unavailable", f"{calls.unavailable:,}", "no answer, retried"),
        ("spent", format_usd(result.spent_micros), "booked in ledger"),
        ("uncovered", format_usd(result.uncovered_micros), "cost beyond cap"),
        ("cost above held", format_usd(result.excess_micros), "estimates too low"),
        ("given up", format_usd(result.given_up_micros), "leases written off"),
        *((f"{name} killed", f"{times}", "by the chaos") for name, times in sorted(result.kills.items())),
    ):
        numbers.add_row(name, figure, Text(meaning, style="dim"))
    console.print()
    console.print(numbers)
    console.print()
    made = table("", "checked", "compared>", "differences>")
    for check in result.checks:
        count = Text(f"{len(check.differences):,}", style="red bold" if check.differences else "green")
        made.add_row(check.promise, check.says, f"{check.compared:,}", count)
    console.print(made)
    console.print()
    for check in result.checks:
        for each in check.differences[:_MOST_SHOWN]:
            words = (each.promise, each.agent, f"{each.what}: expected {each.expected}, found {each.found}")
            console.print(" ".join(filter(None, words)), style="red", soft_wrap=True, highlight=False, markup=False)
        if len(check.differences) > _MOST_SHOWN:
            console.print(f"{check.promise} and {len(check.differences) - _MOST_SHOWN:,} more", style="red")
    console.print(
        result.verdict, style="bold green" if result.ok else "bold red", soft_wrap=True, highlight=False, markup=False
    )
