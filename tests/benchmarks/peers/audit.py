"""What a round's journal says: whether money was overspent, and which refusals were false.

A refusal is *false* when there was room for it at every moment from its beginning to its end, with each other call
counted for as much as it can have held: its estimate from when its reserve began until its settling had ended, and
its actual cost from then on. So no order of events in which the refusal would have been right fits the journal.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tests.benchmarks.peers.callers import REFUSED, SETTLED, UNAVAILABLE, Row
from tests.percentile import percentile


@dataclass(frozen=True)
class Outcome:
    """One round. `over_micros` was spent past the cap; `used` is the share of the cap that was spent; `for_good` is how
    many callers gave up on a false refusal; `p50_us` and `p99_us` are what reserve and settle took together."""

    over_micros: int
    used: float
    refusals: int
    false_refusals: int
    for_good: int
    unavailable: int
    cycles_per_s: float
    p50_us: float
    p99_us: float


def outcome(rows: Sequence[Row], cap: int) -> Outcome:
    """Of all callers' calls under one cap, each caller's in order."""
    settled = [row for row in rows if row[0] == SETTLED]
    spent = sum(actual for _, _, _, actual, *_ in settled)
    took_us = [(held - begun + ended - settling) / 1000 for *_, begun, held, settling, ended in settled]
    seconds = (max(row[-1] for row in settled) - min(row[4] for row in settled)) / 1e9 if settled else 0.0
    false = false_refusals(rows, cap)
    last = {row[1]: nth for nth, row in enumerate(rows)}
    return Outcome(
        over_micros=max(0, spent - cap),
        used=spent / cap,
        refusals=sum(row[0] == REFUSED for row in rows),
        false_refusals=len(false),
        for_good=len(false & set(last.values())),
        unavailable=sum(row[0] == UNAVAILABLE for row in rows),
        cycles_per_s=len(settled) / seconds if seconds else 0.0,
        p50_us=percentile(took_us, 0.5),
        p99_us=percentile(took_us, 0.99),
    )


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
