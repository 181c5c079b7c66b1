"""The model's world: what a configuration has, and what a state of it is made of."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from tests.model.counter import Counter, Request, Snapshot, Terms
from tests.model.lease_book import FAR, Asked, Book, Event

NOW = 10
"""Every state's present. A tick moves all times instead, so that states which differ only in the date are one."""

NONE, WORKER = -1, -2
RENEWAL, TOP_UP = 0, 1

FAULTS = (
    "crash",
    "lost sync",
    "slow sync",
    "late sync",
    "lost message",
    "duplicate message",
    "worker killed",
    "lost publish",
    "flush",
    "failover",
    "set cap",
    "pause",
)
RARE = ("restore", "sent again")
"""The ledger is restored from a backup; an event is sent again by a process that found it in an outbox."""


class Config(NamedTuple):
    """How small the world is: what there is of everything, what may go wrong, and how often."""

    name: str
    leases: tuple[tuple[int, int], ...] = ((0, 0),)
    """(runner, account) of every lease, by runner; the next of the same two is for after a crash."""
    tries: tuple[int, ...] = (2,)
    """How many reserves each runner makes; the last counts for the others."""
    cap: int = 2
    estimates: tuple[int, ...] = (1,)
    spare: tuple[int, ...] = (0,)
    """How much less than held a call may cost; a negative number is an overage."""
    release: bool = False
    parts: bool = False
    """Whether a call may be settled in parts of 1, and a hold be joined to another."""
    wish: int = 0
    faults: tuple[str, ...] = ()
    most_faults: int = 1
    """How many of them, all in all, in one history."""
    caps: tuple[int, ...] = ()
    """What `set cap` sets."""
    days: tuple[int, ...] = (0,)
    """The day of each account: 0 until `midnight`, then 1. An account is one agent's day."""
    midnight: int = FAR
    row: bool = True
    """Whether the ledger has a row of each day at the start."""
    open: bool = True
    """Whether the counter is open at the start."""
    workers: int = 1
    publishes: int = 1
    """How many publishes may be under way at once: with two they may overtake each other."""
    overlap: bool = False
    """Whether a top-up and a renewal of one lease may be under way at once."""
    top_ups: int = 1
    """How many top-ups of one lease may be under way at once: one in each event loop of a runner."""
    first: int = 1
    """For how many ticks a first publish may open without a fence; no longer than a fence stands."""
    most_granted: int = 4
    """A lease that was granted so much, and gave back, asks for no more: only where an old sync stays on its way."""
    farewells: bool = False
    """Whether runners say farewell to leases, and the worker folds them."""
    ticks: bool = True
    reduced: bool = True
    """Whether steps that commute come in one order only."""
    memory: int = 1
    """Times that lie further back than so many ticks are alike."""
    terms: Terms = Terms()

    @property
    def runners(self) -> int:
        return 1 + max(runner for runner, _ in self.leases)


Settled = tuple[tuple[int, int, int, int], ...]
"""(lease, event, drawn, charged) of every settlement."""


class Ledger(NamedTuple):
    """One account in the ledger; `made` says whether the day has its row."""

    made: int
    cap: int
    status: int
    seq: int
    spent: int
    settled: Settled = ()
    changed: tuple[int, ...] = ()
    """The seq of each lease's last change."""
    folded: tuple[int, ...] = ()
    """Of each lease whether it is folded."""


class Exchange(NamedTuple):
    """A sync under way: `reply` is () until the counter has served it, then (unjust, *Reply)."""

    lease: int
    kind: int
    sent_at: int
    asked: Asked
    estimate: int
    reply: tuple[Any, ...] = ()
    day_left: int = 0
    slow: int = 0
    moved: int = 0
    """Whether a retired lease of the same runner handed money back meanwhile, or had some when it was sent."""


class Message(NamedTuple):
    """One event in the queue."""

    lease: int
    event: Event
    sent_at: int


class Publish(NamedTuple):
    """A snapshot on its way to the counter, and the settlements that it knows of."""

    account: int
    snapshot: Snapshot
    settled: Settled


class Ghost(NamedTuple):
    """What no part of daycap knows: the excess over holds, what is gone of given-up money, the highest cap."""

    excess: int
    gone: int
    top: int


class State(NamedTuple):
    run: int
    midnight: int
    faults: int
    todo: tuple[int, ...]
    counters: tuple[Counter | None, ...]
    copies: tuple[Counter | None, ...]
    books: tuple[Book, ...]
    exchanges: tuple[Exchange, ...]
    strays: tuple[Request, ...]
    queue: tuple[Message, ...]
    ledgers: tuple[Ledger, ...]
    settling: tuple[tuple[int, Message, Ledger], ...]
    publishes: tuple[Publish, ...]
    torn: tuple[tuple[int, Ledger], ...]
    ghosts: tuple[Ghost, ...]
    backups: tuple[Ledger, ...] = ()
    restored: int = 0
    """Whether the ledger was restored from a backup."""
    waiting: tuple[int, ...] = ()
    """The leases whose event was sent again by a process that adopted it: it waits to hear that it is settled."""
    focus: int = NONE
    """Whose sync (a lease) or whose publish (`WORKER`) goes on next, so that steps which commute come in one order."""


def tick(s: State, config: Config) -> State:
    """Time passes by one: every time in the state moves back, down to where all times are alike."""
    oldest = NOW - config.memory - config.terms.grace
    exchange_oldest = NOW - config.terms.guard - 1

    def back(at: int, to: int = oldest) -> int:
        return max(at - 1, to) if at else 0

    def counter_back(counter: Counter | None) -> Counter | None:
        return counter and counter._replace(
            recall_until=back(counter.recall_until),
            fence_until=back(counter.fence_until),
            leases=tuple([each._replace(deadline=back(each.deadline)) for each in counter.leases]),
        )

    def publish_back(publish: Publish) -> Publish:
        said = publish.snapshot
        said = said._replace(expire_before=back(said.expire_before), first_until=back(said.first_until))
        return publish._replace(snapshot=said)

    return s._replace(
        midnight=s.midnight if s.midnight in (NOW, FAR) else s.midnight - 1,
        counters=tuple(map(counter_back, s.counters)),
        copies=tuple(map(counter_back, s.copies)),
        books=tuple([book._replace(deadline=back(book.deadline)) if book.deadline else book for book in s.books]),
        exchanges=tuple([e._replace(sent_at=back(e.sent_at, exchange_oldest)) for e in s.exchanges]),
        queue=tuple([message._replace(sent_at=back(message.sent_at)) for message in s.queue]),
        settling=tuple([(worker, m._replace(sent_at=back(m.sent_at)), seen) for worker, m, seen in s.settling]),
        publishes=tuple(map(publish_back, s.publishes)),
    )


@lru_cache(maxsize=100_000)
def totals(settled: Settled, leases: int) -> tuple[tuple[int, int, int], ...]:
    """(drawn, events, last_event) of every lease."""
    found = [(0, 0, 0)] * leases
    for lease, event, drawn, _ in settled:
        old = found[lease]
        found[lease] = (old[0] + drawn, old[1] + 1, max(old[2], event))
    return tuple(found)


def at(parts: tuple[Any, ...], place: int, part: object) -> tuple[Any, ...]:
    """`parts` with another one in that place."""
    return (*parts[:place], part, *parts[place + 1 :])


def plus(parts: tuple[Any, ...], *more: object) -> tuple[Any, ...]:
    """A bag with more in it."""
    return tuple(sorted((*parts, *more)))


def less(parts: tuple[Any, ...], part: object) -> tuple[Any, ...]:
    """A bag with one less in it."""
    place = parts.index(part)
    return (*parts[:place], *parts[place + 1 :])
