"""The world of several budgets: what a configuration has, and what a state of it is made of.

A budget stands for one period of one budget, so the next period is another budget. It has a counter and a ledger row;
a runner has one lease of each. Times are as in tests.model.state: the present is always `NOW`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.model.counter import Counter, Request, Terms
from tests.model.lease_book import FAR, Asked, Book
from tests.model.state import NOW

FAULTS = ("crash", "lost sync", "slow sync", "late sync", "lost message", "duplicate message", "worker killed", "flush")


class Agent(NamedTuple):
    """Whose process it lives in, and the budgets of its plan: first those of its own days."""

    runner: int
    budgets: tuple[int, ...]


class Config(NamedTuple):
    name: str
    caps: tuple[int, ...] = (1, 1)
    """The cap of each budget."""
    agents: tuple[Agent, ...] = (Agent(0, (0, 1)),)
    tries: tuple[int, ...] = (2,)
    """How many reserves each agent makes; the last counts for the others."""
    periods: tuple[tuple[int, int], ...] = ()
    """From which tick on, and until which, each budget's period goes; those left out are always there."""
    moves: tuple[int, ...] = ()
    """The plan that agent 0 gets with a change of membership."""
    estimates: tuple[int, ...] = (1,)
    spare: tuple[int, ...] = (0,)
    """How much less than held a call may cost; a negative number is an overage."""
    release: bool = False
    faults: tuple[str, ...] = ()
    most_faults: int = 1
    apart: bool = False
    """Whether a renewal's reply may arrive later than at once."""
    idle: bool = False
    """Whether a runner may hand back free money that nobody asked for."""
    most_granted: int = 4
    """A lease that was granted so much, and gave back, asks for no more: only where an old sync stays on its way."""
    skew: tuple[int, ...] = (0,)
    """How far a runner's idea of the time may be off, in ticks."""
    ticks: bool = True
    memory: int = 1
    terms: Terms = Terms()


class Row(NamedTuple):
    """A settlement of an event in one budget: the event, the lease that it draws on there, drawn, charged."""

    own: int
    number: int
    lease: int
    drawn: int
    charged: int


class Ledger(NamedTuple):
    """One budget in the ledger."""

    seq: int
    spent: int
    settled: tuple[Row, ...] = ()


class Event(NamedTuple):
    """A finalized hold. `held`: what it held of each lease; the first is the lease of the agent's own day."""

    number: int
    agent: int
    leases: tuple[int, ...]
    actual: int
    held: tuple[int, ...]
    lost: int = 0
    """Whether the broker lost its message."""

    @property
    def own(self) -> int:
        """The lease on which it is counted."""
        return self.leases[0]

    @property
    def drawn(self) -> int:
        """What it draws of that lease."""
        return min(self.actual, self.held[0])


class Hold(NamedTuple):
    agent: int
    leases: tuple[int, ...]
    amount: int


class Part(NamedTuple):
    """One lease of a question: what is kept of it, and, where its counter is asked, what it is asked."""

    lease: int
    asked: Asked
    ask: int
    reply: tuple[Any, ...] = ()
    """() until the counter has served it; `LOST` if no answer comes."""
    left: int = 0


LOST = ("LOST",)


class Question(NamedTuple):
    """A top-up under way. `fits`: whether the estimate has fitted all its budgets ever since it was asked."""

    agent: int
    estimate: int
    sent_at: int
    parts: tuple[Part, ...]
    fits: int = 1
    slow: int = 0


class Renewal(NamedTuple):
    """A renewal that the counter has served, and whose reply is on its way."""

    lease: int
    asked: Asked
    sent_at: int
    reply: tuple[Any, ...]
    left: int
    slow: int = 0


class Message(NamedTuple):
    event: Event
    sent_at: int


class Ghost(NamedTuple):
    """What no part of daycap knows: overages that no free money covered, and what is gone of given-up money."""

    excess: int = 0
    gone: int = 0


class State(NamedTuple):
    clock: int
    faults: int
    moved: int
    todo: tuple[int, ...]
    counters: tuple[Counter | None, ...]
    books: tuple[Book, ...]
    holds: tuple[Hold, ...]
    events: tuple[Event, ...]
    """All that there ever were."""
    questions: tuple[Question, ...]
    renewals: tuple[Renewal, ...]
    strays: tuple[Request, ...]
    queue: tuple[Message, ...]
    ledgers: tuple[Ledger, ...]
    ghosts: tuple[Ghost, ...]


def tick(s: State, config: Config) -> State:
    """Time passes by one: every time moves back, down to where all times are alike."""
    oldest, sent_oldest = NOW - config.memory - config.terms.grace, NOW - config.terms.guard - 1
    last = max([0, *[end for begin_end in config.periods for end in begin_end if end < FAR]])

    def back(at: int, to: int = oldest) -> int:
        return max(at - 1, to) if at else 0

    def counter_back(counter: Counter | None) -> Counter | None:
        return counter and counter._replace(
            recall_until=back(counter.recall_until),
            fence_until=back(counter.fence_until),
            leases=tuple([each._replace(deadline=back(each.deadline)) for each in counter.leases]),
        )

    return s._replace(
        clock=min(last, s.clock + 1),
        counters=tuple(map(counter_back, s.counters)),
        books=tuple([book._replace(deadline=back(book.deadline)) for book in s.books]),
        questions=tuple(sorted([q._replace(sent_at=back(q.sent_at, sent_oldest)) for q in s.questions])),
        renewals=tuple(sorted([r._replace(sent_at=back(r.sent_at, sent_oldest)) for r in s.renewals])),
        queue=tuple(sorted([m._replace(sent_at=back(m.sent_at)) for m in s.queue])),
    )
