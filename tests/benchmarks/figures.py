"""What a benchmark found: one figure, what it is held against, and what it should reach."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """`value` in `unit`; `floor`, in the same unit and run, is what it is held against.

    `goal` says in words what it should reach; `met` is None where nothing was promised.
    """

    what: str
    value: float
    unit: str
    against: str = ""
    floor: float | None = None
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """How `value` compares with the floor."""
        return None if self.floor is None else self.value / self.floor

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


def table(figures: Sequence[Figure]) -> Table:
    """All figures, a line each."""
    shown = Table(box=None, pad_edge=False)
    for name in ("what", "measured", "held against", "ratio", "goal", ""):
        shown.add_column(name, justify="right" if name in ("measured", "ratio") else "left", overflow="fold")
    for figure in figures:
        against = f"{number(figure.floor)} {figure.against}" if figure.floor is not None else figure.against
        shown.add_row(
            figure.what,
            f"{number(figure.value)} {figure.unit}",
            against,
            "" if figure.ratio is None else f"{number(figure.ratio)}x",
            figure.goal,
            {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[figure.met],
        )
    return shown


def number(value: float) -> str:
    """With as many digits as mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def interleaved(rounds: int, *measures: Callable[[], float]) -> list[float]:
    """The median of each measure, taken in turns, so that what else the machine does falls on all of them."""
    taken: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for values, measure in zip(taken, measures, strict=True):
            values.append(measure())
    return [statistics.median(values) for values in taken]
