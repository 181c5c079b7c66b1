"""The real lease book with two budgets against the model's: the same random steps and answers leave both the same."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from daycap import AgentPaused, BudgetUnavailable, CapExceeded
from daycap.clock import day_start_ms
from daycap.periods import PeriodRule
from daycap.protocol.counter import Answer, SyncReply
from daycap.protocol.plan import Plan, PlannedBudget
from daycap.wallet.hold import Hold, Pending
from daycap.wallet.lease_book import LeaseBook
from tests.model import lease_book as model
from tests.model.counter import Reply, Terms

TERMS = Terms(ttl=30, guard=5)
NOON_MS = day_start_ms("2026-11-24") + 43_200_000
TAKEN = ("OK", "REFUSED", "FENCED", "PAUSED")
OWNERS = ("agent", "month/1")
PLAN = Plan(1, (PlannedBudget("month/1", PeriodRule("month")),))
STEPS = ("reserve", "finalize", "finalize", "release", "ask", "ask", "answer", "answer", "abandon", "renew", "renewed")


class Both:
    """The model's books of both leases, and the real one."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.ms = NOON_MS
        self.real: LeaseBook[Any] = LeaseBook(
            lambda _: None, guard_ms=TERMS.guard, slice_seconds=0, now_ns=lambda: self.ms * 1_000_000
        )
        self.real.clock.hear(self.ms)
        self.books = {owner: model.Book() for owner in OWNERS}
        self.holds: list[Hold] = []
        self.questions: list[tuple[Pending, dict[str, model.Asked], int]] = []
        self.renewal: list[tuple[Pending, model.Asked]] = []
        self.learn()

    def learn(self) -> None:
        """A first answer names the plan, which is then read."""
        pending = self.real.exchanges.begin_top_up("agent", 0)
        reply = SyncReply(Answer.OK, self.ms, 0, 0, 0, 0, TERMS.ttl, 60, 0, 0, plan=1)
        assert self.real.exchanges.finish_top_up(pending, reply, 0) is None
        self.real.exchanges.learn_plan("agent", PLAN)
        self.books["agent"] = self.books["agent"]._replace(deadline=self.ms + TERMS.ttl - TERMS.guard, owed=0)

    def alive(self, owner: str) -> bool:
        return self.ms < self.books[owner].deadline

    def held(self, estimate: int) -> bool:
        """The model's reserve: from both, or from none."""
        if any(self.books[owner].free < estimate or not self.alive(owner) for owner in OWNERS):
            return False
        for owner, book in self.books.items():
            self.books[owner] = book._replace(free=book.free - estimate, holds=(*book.holds, estimate))
        return True

    def reserve(self) -> None:
        estimate = self.random.randint(1, 20)
        asked_before = "month/1" in self.real.leases.current
        hold = self.real.reserve("agent", estimate)
        assert (hold is not None) == (asked_before and self.held(estimate))
        self.holds += [hold] if hold is not None else []

    def finalize(self) -> None:
        if self.holds:
            hold = self.holds.pop(self.random.randrange(len(self.holds)))
            held, actual = hold.held_micros, self.random.randint(0, 25)
            shares = []
            for owner, book in self.books.items():
                its = held + (min(max(0, actual - held), book.free) if self.alive(owner) else 0)
                shares.append(its)
                drawn, events = min(actual, its), book.events + (owner == "agent")
                holds = tuple(model._less(book.holds, held))
                self.books[owner] = book._replace(free=book.free + held - drawn, holds=holds, events=events, owed=1)
            hold.finalize(actual)
            event = self.real.unsettled.events()[-1]
            (share,) = event.also
            assert (event.held_micros, event.actual_micros) == (shares[0], actual)
            assert share.held_micros == (None if shares[1] == shares[0] else shares[1])

    def release(self) -> None:
        if self.holds:
            hold = self.holds.pop(self.random.randrange(len(self.holds)))
            for owner, book in self.books.items():
                self.books[owner] = model.release(book, hold.held_micros)
            hold.release()

    def ask(self) -> None:
        if len(self.questions) >= 2:
            return
        estimate, asked = self.random.randint(1, 20), {}
        pending = self.real.exchanges.begin_top_up("agent", estimate)
        for owner, book in self.books.items():
            if owner == "agent" or book.free < estimate or not self.alive(owner):
                self.books[owner], asked[owner] = model.begin_top_up(book, TERMS, self.ms, estimate)
            else:  # What it has free is kept; it need not be asked.
                self.books[owner] = book._replace(free=book.free - estimate, earmarked=book.earmarked + estimate)
        assert {each.request.agent: each.request[3:7] for each in pending.all} == {
            owner: its[:4] for owner, its in asked.items()
        }
        self.questions.append((pending, asked, estimate))

    def answer(self) -> None:
        if not self.questions:
            return
        pending, asked, estimate = self.questions.pop(self.random.randrange(len(self.questions)))
        replies = {owner: self.reply(self.books[owner].granted) for owner in asked}
        expected = self.finished(pending, asked, estimate, replies)
        real = [self.as_real(owner, reply) for owner, reply in replies.items()]
        try:
            hold = self.real.exchanges.finish_top_up(pending, real[0], estimate, real[1:])
        except CapExceeded as error:
            end = f"REFUSED {[full.budget or 'agent' for full in error.full]}"
        except AgentPaused:
            end = "PAUSED"
        except BudgetUnavailable:
            end = "FENCED"
        else:
            end = "ASK_ANEW" if hold is None else "HELD"
            self.holds += [hold] if hold is not None else []
        assert end == expected

    def finished(
        self, pending: Pending, asked: dict[str, model.Asked], estimate: int, replies: dict[str, Reply]
    ) -> str:
        """The model's end of a question: HELD, or why not."""
        sent_at = pending.sent_ns // 1_000_000
        for owner in OWNERS:
            kept = asked[owner].earmarked if owner in asked else estimate
            book = self.books[owner]
            self.books[owner] = book._replace(free=book.free + kept, earmarked=book.earmarked - kept)
        for owner, its in asked.items():
            self.books[owner] = model.apply(self.books[owner], TERMS, self.ms, its, sent_at, replies[owner])
        if replies["agent"].answer == "PAUSED":
            return "PAUSED"
        if any(reply.answer not in TAKEN for reply in replies.values()):
            return "ASK_ANEW"
        if self.held(estimate):
            return "HELD"
        late = self.ms - sent_at > TERMS.guard
        final = [] if late else [owner for owner in asked if self.is_final(owner, asked, estimate, replies)]
        if any(replies[owner].answer == "FENCED" for owner in final):
            return "FENCED"
        return f"REFUSED {final}" if final else "ASK_ANEW"

    def is_final(self, owner: str, asked: dict[str, model.Asked], estimate: int, replies: dict[str, Reply]) -> bool:
        book, reply = self.books[owner], replies[owner]
        if reply.answer not in ("REFUSED", "FENCED") or book.returned != asked[owner].returned:
            return False
        remaining = max(0, reply.cap - reply.spent - reply.leased) if reply.answer == "REFUSED" else 0
        return estimate > book.free + book.earmarked + remaining

    def abandon(self) -> None:
        if self.questions:
            pending, asked, estimate = self.questions.pop()
            self.real.exchanges.abandon(pending)
            for owner, book in self.books.items():
                kept = asked[owner].earmarked if owner in asked else estimate
                self.books[owner] = book._replace(free=book.free + kept, earmarked=book.earmarked - kept, owed=1)

    def renew(self) -> None:
        if self.renewal or self.questions:
            return
        idle = self.random.random() < 0.25
        for pending in self.real.exchanges.begin_renewal(self.real.exchanges.leases(), hand_back=idle):
            owner = pending.request.agent
            self.books[owner], asked = model.begin_renewal(self.books[owner], TERMS, self.ms, idle=idle)
            assert pending.request[3:6] == asked[:3]
            self.renewal.append((pending, asked))
        for owner, book in self.books.items():
            if book.holds:
                assert any(pending.request.agent == owner for pending, _ in self.renewal), "it has money out"
        for owner in OWNERS:
            if owner not in self.real.leases.current:
                self.books[owner] = model.Book()  # It was let go of: the next question makes a new one.
        if "agent" not in self.real.leases.current:
            self.learn()

    def renewed(self) -> None:
        for pending, asked in self.renewal:
            owner = pending.request.agent
            reply = self.reply(self.books[owner].granted)
            self.real.exchanges.apply(pending, self.as_real(owner, reply))
            sent_at = pending.sent_ns // 1_000_000
            self.books[owner] = model.apply(self.books[owner], TERMS, self.ms, asked, sent_at, reply)
        self.renewal = []

    def reply(self, granted: int) -> Reply:
        """An answer that mostly grants a little more than `granted`, and never says that more was drawn than was."""
        random = self.random
        return Reply(
            random.choice((*TAKEN, *["OK"] * 8, "NOT_OPEN")),
            granted=max(0, granted + random.choice((0, 10, random.randint(1, 30), 30, -3))),
            cap=60,
            spent=random.randint(0, 20),
            leased=random.randint(0, 35),
            recall=random.randint(0, 1),
        )

    def as_real(self, owner: str, reply: Reply) -> SyncReply:
        facts = (*reply[1:5], TERMS.ttl, *reply[5:8], bool(reply.recall), int(owner == "agent"))
        return SyncReply(Answer(reply.answer), self.ms, *facts)

    def compare(self) -> None:
        for owner, book in self.books.items():
            lease = self.real.leases.current.get(owner)
            if lease is None:
                continue
            real = (lease.granted, lease.returned, lease.free, lease.earmarked)
            assert real == (book.granted, book.returned, book.free, book.earmarked), owner
            assert (self.ms * 1_000_000 < lease.deadline_ns) == self.alive(owner), owner
            assert lease.recalled == bool(book.recalled), owner
        for book in self.books.values():
            assert sorted(hold.held_micros for hold in self.holds) == sorted(book.holds)


@pytest.mark.parametrize("hundreds", range(5))
def test_the_book_with_budgets_is_the_models(hundreds: int) -> None:
    ends = 0
    for seed in range(100 * hundreds, 100 * hundreds + 100):
        random, passed = Random(seed), 0
        both = Both(random)
        for _ in range(60):
            which = random.choice((*STEPS, "pass"))
            if which != "pass":
                getattr(both, which)()
            elif passed < 80:  # What lies idle is measured over a tenth of a second at least.
                more = random.randint(1, 15)
                passed, both.ms = passed + more, both.ms + more
            both.compare()
        ends += both.books["agent"].events
    assert ends > 50, "many calls ended"
