"""Settle in memory: for a process without a broker, or without a way to learn what was settled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from daycap.clock import DAY_MS, day_start_ms
from daycap.delivery.transport import Transport
from daycap.money import MAX_MICROS
from daycap.protocol.counter import ACTIVE, KEPT_DAYS, Counter, DaySnapshot, LeaseTerms, LeaseTotals
from daycap.protocol.wire import FinalizeEvent

logger = logging.getLogger("daycap")

DaySource = Callable[[str, str], DaySnapshot | None]
"""Loads a day that is not open yet: (agent, day) to its snapshot, None for an unknown agent."""


@dataclass(slots=True)
class _Day:
    seq: int
    status: str
    cap: int
    spent: int
    drawn: int
    leases: dict[str, LeaseTotals] = field(default_factory=dict)


class MemoryLedger(Transport):
    """Charges events as the worker does and publishes them to `counter`. Nothing outlives the process.

    With `onward`, events are also sent there, and are settled here only once it has accepted them.
    """

    def __init__(self, counter: Counter, terms: LeaseTerms, source: DaySource, onward: Transport | None = None) -> None:
        self._counter = counter
        self._terms = terms
        self._source = source
        self._onward = onward
        self._lock = threading.RLock()
        self._days: dict[tuple[str, str], _Day] = {}

    def send(self, events: Sequence[FinalizeEvent]) -> None:
        if self._onward is not None:
            self._onward.send(events)
        with self._lock:
            touched = {(event.agent, event.day): None for event in events}
            for event in events:
                self._settle(event)
            snapshots = [self._snapshot(*where)._replace(repairs=True) for where in touched]
            self._counter.publish(snapshots, self._terms)

    def open_day(self, agent: str, day: str) -> None:
        with self._lock:
            self._open(agent, day)
            # No fence is needed: this process made every lease.
            self._counter.publish(
                [self._snapshot(agent, day)], self._terms, first_until_ms=self._counter.now_ms() + 1000
            )

    def connect(self) -> None:
        if self._onward is not None:
            self._onward.connect()

    def refusal(self, error: Exception) -> str | None:
        return self._onward.refusal(error) if self._onward is not None else None

    def backlog(self) -> int:
        return 0

    def use_clock(self, counter_ms: Callable[[], int | None]) -> None:
        if self._onward is not None:
            self._onward.use_clock(counter_ms)

    def forget(self) -> None:
        self._lock = threading.RLock()
        if self._onward is not None:
            self._onward.forget()

    def close(self) -> None:
        if self._onward is not None:
            self._onward.close()

    def snapshot(self, agent: str, day: str) -> DaySnapshot:
        """Return the day as settled here; status `unknown` if there is no such agent."""
        with self._lock:
            self._open(agent, day)
            return self._snapshot(agent, day)

    def _open(self, agent: str, day: str) -> _Day | None:
        found = self._days.get((agent, day))
        if found is None and (start := self._source(agent, day)) is not None:
            oldest_ms = day_start_ms(day) - (KEPT_DAYS + 1) * DAY_MS
            for old in [where for where in self._days if day_start_ms(where[1]) < oldest_ms]:
                del self._days[old]
            found = self._days[agent, day] = _Day(
                start.seq,
                start.status,
                start.cap_micros,
                start.spent_micros,
                start.drawn_micros,
                {t.lease: t for t in start.leases},
            )
        return found

    def _settle(self, event: FinalizeEvent) -> None:
        day = self._open(event.agent, event.day)
        if day is None:
            logger.error("event %s is for an unknown agent", event.reservation)
            return
        totals = day.leases.get(event.lease, LeaseTotals(event.lease, 0, 0, 0))
        if event.number <= totals.last_event:
            return  # Already settled: one process sends in order.
        day.spent += min(event.actual_micros, max(0, day.cap - day.spent))
        day.drawn = min(MAX_MICROS, day.drawn + event.drawn_micros)
        day.seq += 1
        day.leases[event.lease] = LeaseTotals(
            event.lease, totals.drawn_micros + event.drawn_micros, totals.events + 1, event.number
        )

    def _snapshot(self, agent: str, day: str) -> DaySnapshot:
        found = self._days.get((agent, day))
        if found is None:
            return DaySnapshot(agent, day, 0, "unknown", 0, 0)
        return DaySnapshot(
            agent, day, found.seq, found.status, found.cap, found.spent, found.drawn, tuple(found.leases.values())
        )


def caps_in_code(caps: dict[str, int]) -> DaySource:
    """Return a source of days that start with nothing spent, under `caps` (agent to micros)."""

    def source(agent: str, day: str) -> DaySnapshot | None:
        return DaySnapshot(agent, day, 1, ACTIVE, caps[agent], 0) if agent in caps else None

    return source
