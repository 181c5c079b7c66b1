"""The model's lease book: one lease in a runner's memory, as pure functions like daycap/lease_book.py's methods.

The functions take the book as it is, the terms and the runner's clock, and return the book as it is afterwards.
A hold is the amount that it holds; which of two equal holds ends makes no difference.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.model.counter import Reply, Terms

DEAD, LIVE, RETIRED = 0, 1, 2


class Event(NamedTuple):
    """A finalized hold; `lost` is 1 where the broker lost its message."""

    number: int
    held: int
    actual: int
    lost: int = 0

    @property
    def drawn(self) -> int:
        return min(self.actual, self.held)


class Book(NamedTuple):
    """One lease: its running totals, what is free of it, its holds and what is not known to be settled."""

    state: int = LIVE
    granted: int = 0
    returned: int = 0
    free: int = 0
    holds: tuple[int, ...] = ()
    deadline: int = 0
    drawn: int = 0
    events: int = 0
    unsettled: tuple[Event, ...] = ()
    recalled: int = 0
    counted: int = 0
    """No part of daycap: how much of what is away was counted when it was given up before."""

    @property
    def away(self) -> int:
        """What may be spent and not settled."""
        return sum(self.holds) + sum(event.drawn for event in self.unsettled)

    @property
    def in_use(self) -> bool:
        return self.free > 0 or bool(self.holds) or bool(self.unsettled)


class TopUp(NamedTuple):
    """What a top-up asks for, and the free money that it keeps for its own reservation meanwhile."""

    granted: int
    returned: int
    need: int
    want: int
    earmarked: int


def reserve(book: Book, terms: Terms, now: int, estimate: int) -> Book | None:
    """A hold out of the lease's free money, or None if the counter has to be asked."""
    alive = now < book.deadline or terms.without == "local deadline"
    if book.free < estimate or not alive:
        return None
    return book._replace(free=book.free - estimate, holds=_and(book.holds, estimate))


def finalize(book: Book, terms: Terms, now: int, held: int, actual: int) -> Book:
    """End a hold with what the call cost: its event is handed to the broker at once."""
    holds, free = _less(book.holds, held), book.free
    if actual > held and now < book.deadline:
        raised = min(actual - held, free)
        free, held = free - raised, held + raised
    drawn = min(actual, held)
    free += held if terms.without == "finalize frees only held - drawn" else held - drawn
    event = Event(book.events + 1, held, actual)
    return book._replace(
        free=free,
        holds=holds,
        drawn=book.drawn + drawn,
        events=event.number,
        unsettled=(*book.unsettled, event),
    )


def release(book: Book, held: int) -> Book:
    """End a hold without a cost."""
    return book._replace(free=book.free + held, holds=_less(book.holds, held))


def begin_top_up(book: Book, terms: Terms, now: int, estimate: int, wish: int = 0) -> tuple[Book, TopUp]:
    """Ask for what `estimate` needs beyond the lease's own free money, and would like `wish` more."""
    book = _hand_back_if_dead(book, terms, now)
    earmarked = 0 if terms.without == "need counts the runner's own free money" else book.free
    need = max(0, estimate - earmarked)
    return book._replace(free=book.free - earmarked), TopUp(book.granted, book.returned, need, need + wish, earmarked)


def finish_top_up(
    book: Book, terms: Terms, now: int, asked: TopUp, sent_at: int, reply: Reply, estimate: int, day_left: int = 99
) -> tuple[Book, str]:
    """Apply the reply and reserve: HELD, or why not: ASK_ANEW, or the answer that means no."""
    book = apply(book, terms, now, sent_at, reply, day_left)
    free_before, book = book.free, book._replace(free=book.free + asked.earmarked)
    if reply.answer in ("PAUSED", "UNKNOWN_AGENT"):
        return book, reply.answer
    if reply.answer not in _TAKEN:
        return book, "ASK_ANEW"
    held = reserve(book, terms, now, estimate)
    if held is not None:
        return held, "HELD"
    other_totals = now - sent_at > terms.guard or free_before > 0 or book.returned != asked.returned
    if other_totals and terms.without != "a refusal to other totals is asked anew":
        return book, "ASK_ANEW"
    return book, reply.answer if reply.answer in ("FENCED", "REFUSED") else "ASK_ANEW"


def abandon(book: Book, earmarked: int) -> Book:
    """The sync got no answer: put the earmarked money back."""
    return book._replace(free=book.free + earmarked)


def begin_renewal(book: Book, terms: Terms, now: int, *, hand_back: bool = False) -> Book:
    """Hand back everything if the lease is dead or recalled, or if all of it lies idle (`hand_back`)."""
    book = _hand_back_if_dead(book, terms, now)
    recalled = book.recalled and terms.without != "recalled money is handed back"
    return _hand_back(book, terms) if hand_back or recalled else book


def apply(book: Book, terms: Terms, now: int, sent_at: int, reply: Reply, day_left: int = 99) -> Book:
    """Take over what the counter said; `day_left` was the time to the day's end when it said so."""
    if now - sent_at > terms.guard and terms.without != "a late reply thrown away":
        return book
    if reply.answer not in _TAKEN:
        return book
    if terms.without != "what came free of a dead lease is handed back":
        book = _hand_back_if_dead(book, terms, now)
    more = max(0, reply.granted - book.granted)
    counted_from = now + terms.guard if terms.without == "local <= server's deadline" else sent_at
    left = terms.ttl if terms.without == "local deadline ends with the day" else min(terms.ttl, day_left)
    deadline = max(book.deadline, counted_from + left - terms.guard)
    if reply.answer == "PAUSED":
        deadline = 0
    free = book.free + more
    return book._replace(
        granted=book.granted + more,
        free=free,
        deadline=deadline,
        unsettled=_not_settled(book.unsettled, reply, terms),
    )


_TAKEN = ("OK", "REFUSED", "FENCED", "PAUSED")


def _not_settled(unsettled: tuple[Event, ...], reply: Reply, terms: Terms) -> tuple[Event, ...]:
    complete = reply.events == reply.last_event or terms.without == "settled up to the first gap"
    up_to = reply.last_event if complete else 0
    return tuple(event for event in unsettled if event.number > up_to)


def _hand_back_if_dead(book: Book, terms: Terms, now: int) -> Book:
    dead = now >= book.deadline and terms.without != "local deadline"
    return _hand_back(book, terms) if dead else book


def _hand_back(book: Book, terms: Terms) -> Book:
    left = book.free if terms.without == "free money deducted before it is sent" else 0
    return book._replace(free=left, returned=book.returned + book.free, recalled=0)


def _and(holds: tuple[int, ...], held: int) -> tuple[int, ...]:
    return tuple(sorted((*holds, held)))


def _less(holds: tuple[int, ...], held: int) -> tuple[int, ...]:
    where = holds.index(held)
    return holds[:where] + holds[where + 1 :]
