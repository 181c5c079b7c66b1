"""Long work in slices: a worker does one thing at a time, and settling must not wait until all agents are through."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

Place = list[Any]
"""Where a step stopped, as JSON; empty at the beginning."""

SLICE_S = 0.25
"""How long a slice may take, and one more step."""


class Slice(NamedTuple):
    """What was done, by name, and where to go on; None if all is done."""

    counts: dict[str, int]
    place: Place | None


def slice_of(step: Callable[[Place], Slice], place: Place, seconds: float = SLICE_S) -> Slice:
    """Take steps from `place` until all is done or `seconds` are over; counts are summed over them."""
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
