"""The picture while a campaign runs, and what stays of it: a table, JSON, a plot."""

from __future__ import annotations

from collections import Counter as Count
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from daycap.cli.output import table
from tests.chaos.campaign import Round
from tests.percentile import percentile


def by_fault(rounds: Sequence[Round]) -> dict[str, list[Round]]:
    """The rounds that had each fault, alone or with others."""
    found: dict[str, list[Round]] = defaultdict(list)
    for each in rounds:
        for fault in each.faults:
            found[fault].append(each)
    return dict(sorted(found.items()))


def summary(rounds: Sequence[Round], seed: int, seconds: float) -> dict[str, Any]:
    """Everything that the report says, to be written as JSON."""
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "rounds": len(rounds),
        "faults": sum(len(each.faults) for each in rounds),
        "calls": sum(each.calls for each in rounds),
        "finalized": sum(each.finalized for each in rounds),
        "refused": sum(each.refused for each in rounds),
        "unavailable": sum(each.unavailable for each in rounds),
        "given_up_micros": sum(each.given_up_micros for each in rounds),
        "violations": [{"round": each.number, **one._asdict()} for each in rounds for one in each.violations],
        "recovery_s": _recovery(rounds),
        "by_fault": {fault: {"rounds": len(some), **_recovery(some)} for fault, some in by_fault(rounds).items()},
    }


def _recovery(rounds: Sequence[Round]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in ("lends_again", "all_settled"):
        values = [getattr(each, f"{name}_s") for each in rounds]
        figures |= {f"{name}_p{round(share * 100)}": round(percentile(values, share), 2) for share in (0.5, 0.99)}
    return figures


def picture(rounds: Sequence[Round], of: int, seconds: float) -> RenderableType:
    """A line of sums and a row for each fault."""
    violations = sum(len(each.violations) for each in rounds)
    sums = (
        f"round {len(rounds)} of {of}, {seconds:.0f} s: {sum(each.finalized for each in rounds):,} events, "
        f"{sum(each.unavailable for each in rounds):,} unavailable, {violations} violations"
    )
    return Group(sums, "", _faults(rounds))


def _faults(rounds: Sequence[Round]) -> Table:
    made = table("fault", "rounds>", "violations>", "lends p50>", "p99>", "settled p50>", "p99>")
    rows = [*by_fault(rounds).items(), ("all", list(rounds))]
    for fault, some in rows:
        figures = _recovery(some)
        violations = sum(len(each.violations) for each in some)
        made.add_row(
            Text(fault, no_wrap=True),
            str(len(some)),
            str(violations),
            *(f"{figure:.2f} s" for figure in figures.values()),
        )
    return made


def plot(rounds: Sequence[Round], file: Path) -> None:
    """A point for each round beside each of its faults: how long until the counter lent again, and all was settled."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = by_fault(rounds)
    counts = Count({fault: len(some) for fault, some in found.items()})
    figure, axes = plt.subplots(1, 2, figsize=(12, 0.32 * len(found) + 1.8), sharey=True, layout="constrained")
    labels = [f"{fault}  ({counts[fault]})" for fault in found]
    for axis, name, title in zip(
        axes,
        ("lends_again_s", "all_settled_s"),
        ("until new money is lent", "until every event is settled"),
        strict=True,
    ):
        values = [[getattr(each, name) for each in some] for some in found.values()]
        places = range(len(values))
        axis.boxplot(
            values,
            positions=places,
            orientation="horizontal",
            showfliers=False,
            widths=0.6,
            medianprops={"color": "#c0392b"},
            boxprops={"color": "#888"},
            whiskerprops={"color": "#888"},
            capprops={"color": "#888"},
        )
        for place, some in zip(places, values, strict=True):
            spread = [place + 0.25 * ((i * 0.618) % 1 - 0.5) for i in range(len(some))]
            axis.scatter(some, spread, s=9, alpha=0.45, color="#2c6fbb", linewidths=0)
        axis.set_title(f"Seconds from healing {title}", fontsize=10)
        axis.grid(axis="x", alpha=0.25)
        axis.set_xlim(left=0)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    violations = sum(len(each.violations) for each in rounds)
    figure.suptitle(
        f"{len(rounds)} rounds, {sum(counts.values())} faults, "
        f"{sum(each.finalized for each in rounds):,} events, {violations} violations"
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)
