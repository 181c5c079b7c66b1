"""The real lease book against the model's: the same random steps and answers leave both in the same state."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import pytest

from daycap import AgentPaused, BudgetUnavailable, CapExceeded
from daycap.clock import day_start_ms
from daycap.protocol.counter import Answer, SyncReply
from daycap.wallet.hold import Hold, Pending
from daycap.wallet.lease_book import LeaseBook
from tests.model import lease_book as model
from tests.model.counter import Reply, Terms

TERMS = Terms(ttl=30, guard=5)
NOON_MS = day_start_ms("2026-11-24") + 43_200_000
TAKEN = ("OK", "REFUSED", "FENCED", "PAUSED")

NAMES = (
    "reserve",
    "finalize",
    "finalize",
    "release",
    "settle_part",
    "join",
    "ask",
    "ask",
    "answer",
    "answer",
    "abandon",
    "renew",
    "renewed",
    "pass",
)


class Step(NamedTuple):
    """`which` says what happens; the numbers mean what that step needs."""

    which: str
    one: int
    other: int
    reply: Reply


def random_step(random: Random, granted: int) -> Step:
    """An answer mostly grants a little more than `granted`."""
    reply = Reply(
        random.choice((*TAKEN, "OK", "OK", "OK", "NOT_OPEN")),
        granted=max(0, granted + random.choice((0, 0, random.randint(1, 20), -3))),
        drawn=random.randint(0, 20),
        events=random.randint(0, 4),
        last_event=random.randint(0, 4),
        cap=60,
        spent=random.randint(0, 35),
        leased=random.randint(0, 35),
        recall=random.randint(0, 1),
    )
    return Step(random.choice(NAMES), random.randint(1, 20), random.randint(0, 20), reply)


class Both:
    """The model's book and the real one."""

    def __init__(self) -> None:
        self.ms = NOON_MS
        self.real: LeaseBook[Any] = LeaseBook(
            lambda _: None, guard_ms=TERMS.guard, slice_seconds=0, now_ns=lambda: self.ms * 1_000_000
        )
        self.real.clock.hear(self.ms)
        self.book = model.Book()
        self.holds: list[Hold] = []
        self.questions: list[tuple[Pending, model.Asked, int]] = []
        """Two at most, as of a runner in two event loops."""
        self.renewal: tuple[Pending, model.Asked] | None = None

    def reserve(self, step: Step) -> None:
        hold = self.real.reserve("agent", step.one)
        held = model.reserve(self.book, TERMS, self.ms, step.one)
        lease = self.real._current.get("agent")
        if lease is None:
            held = None
        assert (hold is None) == (held is None)
        if hold is not None and held is not None:
            self.holds.append(hold)
            self.book = held

    def finalize(self, step: Step) -> None:
        if self.holds:
            hold = self.holds.pop(step.other % len(self.holds))
            self.book = model.finalize(self.book, TERMS, self.ms, hold.held_micros, step.one)
            hold.finalize(step.one)

    def release(self, step: Step) -> None:
        if self.holds:
            hold = self.holds.pop(step.other % len(self.holds))
            self.book = model.release(self.book, hold.held_micros)
            hold.release()

    def settle_part(self, step: Step) -> None:
        if self.holds:
            hold = self.holds[step.other % len(self.holds)]
            self.book = model.settle_part(self.book, TERMS, self.ms, hold.held_micros, step.one)
            hold.settle_part(step.one)

    def join(self, step: Step) -> None:
        if len(self.holds) > 1:
            more = self.holds.pop(step.other % len(self.holds))
            hold = self.holds[step.one % len(self.holds)]
            self.book = model.join(self.book, hold.held_micros, more.held_micros)
            self.real.join(hold, more)

    def ask(self, step: Step) -> None:
        if len(self.questions) < 2:
            pending = self.real.exchanges.begin_top_up("agent", step.one)
            self.book, asked = model.begin_top_up(self.book, TERMS, self.ms, step.one)
            assert (*pending.request[3:6], pending.earmarked) == (*asked[:3], asked.earmarked)
            self.questions.append((pending, asked, step.one))

    def answer(self, step: Step) -> None:
        if not self.questions:
            return
        pending, asked, estimate = self.questions.pop(step.other % len(self.questions))
        sent_at = pending.sent_ns // 1_000_000
        self.book, expected = model.finish_top_up(self.book, TERMS, self.ms, asked, sent_at, step.reply, estimate)
        try:
            hold = self.real.exchanges.finish_top_up(pending, self._real(step.reply), estimate)
        except CapExceeded:
            end = "REFUSED"
        except AgentPaused:
            end = "PAUSED"
        except BudgetUnavailable:
            end = "FENCED"
        else:
            end = "ASK_ANEW" if hold is None else "HELD"
            self.holds += [hold] if hold is not None else []
        assert end == expected

    def abandon(self, step: Step) -> None:
        if self.questions:
            pending, asked, _ = self.questions.pop(step.other % len(self.questions))
            self.real.exchanges.abandon(pending)
            self.book = model.abandon(self.book, asked)

    def renew(self, step: Step) -> None:
        if self.renewal is None and not self.questions:
            idle = step.one > 15
            pending = self.real.exchanges.begin_renewal(self.real.exchanges.leases(), hand_back=idle)
            if pending:
                self.book, asked = model.begin_renewal(self.book, TERMS, self.ms, idle=idle)
                assert pending[0].request[3:6] == asked[:3]
                self.renewal = pending[0], asked
            elif "agent" not in self.real._current:
                self.book = model.Book()  # It was let go of: the next question makes a new one.

    def renewed(self, step: Step) -> None:
        if self.renewal is not None:
            (pending, asked), self.renewal = self.renewal, None
            self.real.exchanges.apply(pending, self._real(step.reply))
            sent_at = pending.sent_ns // 1_000_000
            self.book = model.apply(self.book, TERMS, self.ms, asked, sent_at, step.reply)

    def _real(self, reply: Reply) -> SyncReply:
        return SyncReply(Answer(reply.answer), self.ms, *reply[1:5], TERMS.ttl, *reply[5:8], recall=bool(reply.recall))

    def compare(self) -> None:
        lease = self.real._current.get("agent")
        if lease is None:
            return
        real = (lease.granted, lease.returned, lease.free, lease.earmarked, lease.finalized)
        book = self.book
        assert real == (book.granted, book.returned, book.free, book.earmarked, book.events)
        assert (self.ms * 1_000_000 < lease.deadline_ns) == (self.ms < book.deadline)
        assert sorted(hold.held_micros for hold in self.holds) == sorted(book.holds)
        assert [event.number for event in lease.unsettled] == [event.number for event in book.unsettled]
        assert sum(event.drawn_micros for event in lease.unsettled) + sum(book.holds) == book.away
        assert lease.recalled == bool(book.recalled)


@pytest.mark.parametrize("hundreds", range(10))
def test_the_lease_book_is_the_models(hundreds: int) -> None:
    for seed in range(100 * hundreds, 100 * hundreds + 100):
        random, both, passed = Random(seed), Both(), 0
        for _ in range(60):
            step = random_step(random, both.book.granted)
            if step.which != "pass":
                getattr(both, step.which)(step)
            elif passed + step.one < 100:  # What lies idle is measured over a tenth of a second at least.
                passed += step.one
                both.ms += step.one
            both.compare()
