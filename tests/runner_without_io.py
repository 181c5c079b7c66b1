"""A runner without I/O: one lease book and a counter in memory, both on a clock that the test sets."""

from __future__ import annotations

from typing import Any

from daycap.clock import day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.errors import CapExceeded
from daycap.protocol.counter import ACTIVE, DaySnapshot, LeaseTerms, LeaseTotals
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet.hold import Hold, Pending
from daycap.wallet.lease_book import LeaseBook

DAY, NEXT = "2026-11-24", "2026-11-25"
MIDNIGHT_MS = day_start_ms(NEXT)
TERMS = LeaseTerms(ttl_ms=30_000, guard_ms=1_000, grace_ms=10_000)
CAP = 100_000


class Runner:
    """One lease book and its counter, both on a clock that the test sets; nothing takes any time."""

    def __init__(self, other: Runner | None = None) -> None:
        """With `other`: another process on the same counter."""
        self._ms = MIDNIGHT_MS - 3_600_000
        self._first = other or self
        self.counter: MemoryCounter = other.counter if other else MemoryCounter(lambda: self.ms)
        self.events: list[FinalizeEvent] = []
        self.book: LeaseBook[Any] = LeaseBook(
            self.events.append, guard_ms=TERMS.guard_ms, slice_seconds=2, now_ns=lambda: self.ms * 1_000_000
        )
        self.book.clock.hear(self.ms)  # Else it would begin with the day that it really is.
        for day in () if other else (DAY, NEXT):
            self.counter.publish([DaySnapshot("agent", day, 1, ACTIVE, CAP, 0)], TERMS, first_until_ms=self.ms + 10_000)

    @property
    def ms(self) -> int:
        """The time, the same for all runners."""
        return self._first._ms

    @ms.setter
    def ms(self, ms: int) -> None:
        self._first._ms = ms

    def ask(self, estimate: int) -> Hold | None:
        """One round of topping up."""
        pending = self.book.exchanges.begin_top_up("agent", estimate)
        (reply,) = self.counter.sync([pending.request])
        return self.book.exchanges.finish_top_up(pending, reply, estimate)

    def ask_or_refused(self, estimate: int) -> bool:
        """One round of topping up that must end by a refusal."""
        try:
            self.ask(estimate)
        except CapExceeded:
            return True
        return False

    def begin_renewal(self, *, hand_back: bool = False) -> list[Pending]:
        return self.book.exchanges.begin_renewal(self.book.exchanges.leases(), hand_back=hand_back)

    def renew(self, *, answered: bool = True) -> list[Pending]:
        pending = self.begin_renewal()
        replies = self.counter.sync([each.request for each in pending])
        if answered:
            for each, reply in zip(pending, replies, strict=True):
                self.book.exchanges.apply(each, reply)
        return pending

    def settle(self, *events: FinalizeEvent) -> None:
        """What a worker would publish once the ledger has these events of one lease, and all before them."""
        last, lease = events[-1], events[-1].lease
        drawn = sum(event.drawn_micros for event in self.events if event.lease == lease and event in events)
        totals = LeaseTotals(lease, drawn, len(events), last.number)
        spent = sum(event.actual_micros for event in events)
        self.counter.publish(
            [DaySnapshot("agent", last.day, 2 + last.number, ACTIVE, CAP, spent, drawn, (totals,), repairs=True)], TERMS
        )

    def leased(self, day: str) -> int:
        (reading,) = self.counter.read([("agent", day)])
        assert reading is not None
        return reading.leased_micros


def held(runner: Runner, estimate: int) -> Hold:
    """A hold by one round of asking."""
    hold = runner.ask(estimate)
    assert hold is not None
    return hold


def free(runner: Runner) -> int:
    """What memory could still serve."""
    return runner.book.free_micros("agent")
