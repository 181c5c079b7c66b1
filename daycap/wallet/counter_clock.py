"""The counter's clock as this process knows it: it decides what day it is."""

from __future__ import annotations

from collections.abc import Callable

from daycap.clock import day_of, wall_ms

_MS = 1_000_000


class CounterClock:
    """The counter's time by its last answer, carried on by a clock of this host that nobody sets (`now_ns`)."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self.clear()

    def clear(self) -> None:
        """Forget what was heard. Called in a forked child."""
        self._offset_ms: int | None = None

    def hear(self, counter_ms: int) -> None:
        """Set the offset from an answer that the counter gave just now."""
        self._offset_ms = counter_ms - self._now_ns() // _MS

    def ms(self) -> int | None:
        """Return the counter's time now; None if it is not known yet."""
        offset_ms = self._offset_ms
        return None if offset_ms is None else self._now_ns() // _MS + offset_ms

    def now_ms(self) -> int:
        """Return the counter's time if it is known, else this host's."""
        counter_ms = self.ms()
        return wall_ms() if counter_ms is None else counter_ms

    def today(self) -> str:
        """Return the UTC day of `now_ms`."""
        return day_of(self.now_ms())
