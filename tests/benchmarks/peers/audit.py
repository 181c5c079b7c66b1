"""What a round's journal says: whether money was overspent, and which refusals were false.

A refusal is *false* when there was room for it at every moment from its beginning to its end, with each other call
counted for as much as it can have held: its estimate from when its reserve began until its settling had ended, and
its actual cost from then on. So no order of events in which the refusal would have been right fits the journal.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tests.benchmarks.peers.callers import REFUSED, SETTLED, UNAVAILABLE, Row
from tests.percentile import percentile


@dataclass(frozen=True)
class Outcome:
    """One round, or several. `over_micros` was spent past the cap; `used` is the share of the cap that was spent;
    `for_good` is how many callers gave up on a false refusal; `cycles_per_s` leaves out the last tenth, in which
    callers wait between refusals; `p50_us` and `p99_us` are what reserve and settle took together."""

    over_micros: int
    used: float
    refusals: int
    false_refusals: int
    for_good: int
    unavailable: int
    cycles_per_s: float
    p50_us: float
    p99_us: float

    @classmethod
    def of_rounds(cls, rounds: Sequence[Outcome]) -> Outcome:
        """The worst of `over_micros`; counts of all rounds; medians of the rest."""

        def middle(name: str) -> float:
            return float(statistics.median(getattr(each, name) for each in rounds))

        return cls(
            over_micros=max(each.over_micros for each in rounds),
            used=middle("used"),
            refusals=sum(each.refusals for each in rounds),
            false_refusals=sum(each.false_refusals for each in rounds),
            for_good=sum(each.for_good for each in rounds),
            unavailable=sum(each.unavailable for each in rounds),
            cycles_per_s=middle("cycles_per_s"),
            p50_us=middle("p50_us"),
            p99_us=middle("p99_us"),
        )


def outcome(rows: Sequence[Row], cap: int) -> Outcome:
    """Of all callers' calls under one cap, each caller's in order."""
    settled = [row for row in rows if row[0] == SETTLED]
    spent = sum(actual for _, _, _, actual, *_ in settled)
    took_us = [(held - begun + ended - settling) / 1000 for *_, begun, held, settling, ended in settled]
    false = false_refusals(rows, cap)
    last = {row[1]: nth for nth, row in enumerate(rows)}
    return Outcome(
        over_micros=max(0, spent - cap),
        used=spent / cap,
        refusals=sum(row[0] == REFUSED for row in rows),
        false_refusals=len(false),
        for_good=len(false & set(last.values())),
        unavailable=sum(row[0] == UNAVAILABLE for row in rows),
        cycles_per_s=_rate(settled),
        p50_us=percentile(took_us, 0.5),
        p99_us=percentile(took_us, 0.99),
    )


def _rate(settled: Sequence[Row]) -> float:
    """Of the first nine tenths."""
    ends = sorted(ended for *_, ended in settled)[: math.ceil(len(settled) * 0.9)]
    return len(ends) / (ends[-1] - min(begun for *_, begun, _, _, _ in settled)) * 1e9 if ends else 0.0


def false_refusals(rows: Sequence[Row], cap: int) -> set[int]:
    """Which rows are refusals that nothing in the journal can explain."""
    changes = []
    for end, _, estimate, actual, begun, _, _, ended in rows:
        if end == SETTLED:
            changes += [(begun, estimate), (ended, actual - estimate)]
    changes.sort(key=lambda change: (change[0], -change[1]))
    moments = [moment for moment, _ in changes]
    held = [0, *accumulate(amount for _, amount in changes)]  # held[n]: after the first n changes
    false = set()
    for nth, (end, _, estimate, _, begun, ended, _, _) in enumerate(rows):
        if end == REFUSED:
            first, last = bisect_right(moments, begun - 1), bisect_right(moments, ended)
            if max(held[first : last + 1]) + estimate <= cap:
                false.add(nth)
    return false
