"""Clocks and days: a local clock that never jumps, and UTC days computed from milliseconds."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime

from daycap.errors import InvalidInput
from daycap.formats import shown

DAY_MS = 86_400_000

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)

boot_ns: Callable[[], int] = (
    time.monotonic_ns if _BOOT_CLOCK is None else functools.partial(time.clock_gettime_ns, _BOOT_CLOCK)
)
"""Read a clock that is never set, in nanoseconds. It includes time in suspend where the platform supports that."""


def wall_ms() -> int:
    """Return this host's UTC time in milliseconds: good for a first guess and for logs, never for a decision."""
    return time.time_ns() // 1_000_000


def day_of(now_ms: int) -> str:
    """Return the UTC day, `YYYY-MM-DD`, of `now_ms` (milliseconds since the epoch), as an interned string."""
    return sys.intern(datetime.fromtimestamp(now_ms // 1000, UTC).date().isoformat())


def day_start_ms(day: str) -> int:
    """Return the first millisecond of `day`. Raises `InvalidInput` unless it is a real date, `YYYY-MM-DD`."""
    try:
        parsed = date.fromisoformat(day)
    except (TypeError, ValueError):
        parsed = None
    if parsed is None or parsed.isoformat() != day:
        raise InvalidInput(f"not a day of the form YYYY-MM-DD: {shown(day, 40)}")
    return (parsed.toordinal() - date(1970, 1, 1).toordinal()) * DAY_MS
