"""Time slices for long work: a worker does one thing at a time, and settling must not wait until it is done."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

Place = list[Any]
"""Where a step stopped, as JSON. Empty at the beginning."""

SLICE_S = 0.25
"""A slice starts no step after this long."""


class Slice(NamedTuple):
    """Counts of what was done, and the place to continue from; None if all is done."""

    counts: dict[str, int]
    place: Place | None


def slice_of(step: Callable[[Place], Slice], place: Place, seconds: float = SLICE_S) -> Slice:
    """Take steps from `place` until all is done or `seconds` have passed. Sums up their counts."""
    end = time.monotonic() + seconds
    total: Counter[str] = Counter()
    at: Place | None = place
    while at is not None:
        counts, at = step(at)
        total.update(counts)
        if time.monotonic() >= end:
            break
    return Slice(dict(total), at)


def all_of(step: Callable[[Place], Slice]) -> dict[str, int]:
    """Take every step, without a pause."""
    return slice_of(step, [], float("inf")).counts
