"""What a benchmark found: one figure, what it is held against, and what it should reach."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """`value` in `unit`; `floor`, in the same unit and run, is what it is held against.

    `at_most` or `at_least` is the goal: of the ratio where there is a floor, else of the value.
    """

    what: str
    value: float
    unit: str
    against: str = ""
    floor: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def ratio(self) -> float | None:
        """How `value` compares with the floor."""
        return None if self.floor is None else self.value / self.floor

    @property
    def compared(self) -> float:
        """What the goal is of."""
        return self.value if self.ratio is None else self.ratio

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where nothing was promised."""
        if self.at_most is None and self.at_least is None:
            return None
        return (self.at_least or 0) <= self.compared <= (self.at_most if self.at_most is not None else float("inf"))

    @property
    def goal(self) -> str:
        """The goal in words."""
        unit = self.unit if self.floor is None else "x"
        if self.at_most is not None:
            return f"<= {number(self.at_most)} {unit}"
        return "" if self.at_least is None else f">= {number(self.at_least)} {unit}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "goal": self.goal, "met": self.met}


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


def plot(figures: Sequence[Figure], path: Path) -> None:
    """How far each figure is on the good side of its goal, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [(each, _better(each)) for each in figures if each.met is not None]
    height = 0.34 * len(shown) + 1.2
    drawing, axes = plt.subplots(figsize=(9, height), layout="constrained")
    for place, (figure, better) in enumerate(reversed(shown)):
        axes.barh(place, better - 1, left=1, color="#2a7f62" if figure.met else "#b3352b")
        said = f" {number(figure.compared)}{'x' if figure.floor is not None else ' ' + figure.unit}, goal {figure.goal}"
        axes.text(max(better, 1), place, said, va="center", fontsize=7)
    axes.set_yticks(range(len(shown)), [figure.what for figure, _ in reversed(shown)], fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlim(right=max(better for _, better in shown) * 8)
    axes.set_xlabel("times better than the goal")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawing.savefig(path, dpi=130)
    plt.close(drawing)


def _better(figure: Figure) -> float:
    """1 at the goal, more on its good side."""
    if figure.at_most == 0:
        return 1.0 if figure.met else 0.5
    if figure.at_most is not None:
        return figure.at_most / max(figure.compared, 1e-9)
    return figure.compared / (figure.at_least or 1)


def interleaved(rounds: int, *measures: Callable[[], float]) -> list[float]:
    """The median of each measure, taken in turns, so that what else the machine does falls on all of them."""
    taken: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for values, measure in zip(taken, measures, strict=True):
            values.append(measure())
    return [statistics.median(values) for values in taken]


def micros_a_call(calls: int, call: Callable[[], object]) -> float:
    """Microseconds that `call` takes, over so many."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6


def micros_of_each(calls: int, call: Callable[[], object], pause_s: float = 0) -> list[float]:
    """Microseconds of each call, with a pause after it, as calls come."""
    took = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        call()
        took.append((time.perf_counter_ns() - began) / 1000)
        if pause_s:
            time.sleep(pause_s)
    return took
