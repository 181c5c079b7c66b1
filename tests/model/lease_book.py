"""The model's lease book: one lease in a runner's memory, as pure functions like daycap/wallet/lease_book.py's methods.

They take the book, the terms and the runner's clock, and return the book as it is afterwards. A hold is the amount
that it holds: which of two equal holds ends makes no difference.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.model.counter import Reply, Terms

DEAD, LIVE, RETIRED, PARTED = 0, 1, 2, 3
"""`PARTED` says farewell, as often as it likes, and nothing else any more."""
GONE = (DEAD, PARTED)
FAR = 99


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
    earmarked: int = 0
    """What was free and is kept for the top-ups that are under way."""
    recalled: int = 0
    owed: int = 0
    """Whether the counter may have set aside what is not needed here: until it says that nothing is out."""
    unsure: int = 0
    """Whether the counter may have other totals: until it has answered to these."""
    counted: int = 0
    """No part of daycap: how much of what is away was counted when it was given up before."""

    @property
    def away(self) -> int:
        """What may be spent and is not known to be settled."""
        return sum(self.holds) + sum([event.drawn for event in self.unsettled])

    @property
    def in_use(self) -> bool:
        return bool(self.owed or self.free or self.holds or self.unsettled)

    @property
    def owes(self) -> bool:
        """Whether the counter may have set aside more than holds and events of this lease need."""
        return bool(self.free or self.earmarked or self.unsure)


class Asked(NamedTuple):
    """What a sync says and asks for, and the free money that it keeps for its own reservation meanwhile."""

    granted: int
    returned: int
    need: int = 0
    want: int = 0
    earmarked: int = 0


def reserve(book: Book, terms: Terms, now: int, estimate: int) -> Book | None:
    """A hold out of the lease's free money, or None if the counter has to be asked."""
    if book.free < estimate or not _alive(book, terms, now):
        return None
    return book._replace(free=book.free - estimate, holds=tuple(sorted((*book.holds, estimate))))


def finalize(book: Book, terms: Terms, now: int, held: int, actual: int) -> Book:
    """End a hold with what the call cost; the event is the last of `unsettled`."""
    before = held
    if actual > held and now < book.deadline:
        held += min(actual - held, book.free)
    event = Event(book.events + 1, held, actual)
    freed = before if "finalize frees only held - drawn" in terms.without else before - event.drawn
    return book._replace(
        free=book.free + freed,
        holds=_less(book.holds, before),
        drawn=book.drawn + event.drawn,
        events=event.number,
        unsettled=(*book.unsettled, event),
    )


def settle_part(book: Book, terms: Terms, now: int, held: int, actual: int) -> Book:
    """Charge a part of a call that goes on: a hold of its own, split off and finalized."""
    part = min(actual, held)
    return finalize(book._replace(holds=_split(book.holds, held, part)), terms, now, part, actual)


def join(book: Book, held: int, more: int) -> Book:
    """Let a hold of `held` have what another one holds."""
    return book._replace(holds=tuple(sorted((*_less(_less(book.holds, held), more), held + more))))


def release(book: Book, held: int) -> Book:
    """End a hold without a cost."""
    return book._replace(free=book.free + held, holds=_less(book.holds, held))


def begin_top_up(book: Book, terms: Terms, now: int, estimate: int, wish: int = 0) -> tuple[Book, Asked]:
    """Ask for what `estimate` needs beyond the lease's own free money, and would like `wish` more."""
    if not _alive(book, terms, now):
        book = hand_back(book, terms)
    kept = min(book.free, estimate)
    need = estimate - kept
    asked = Asked(book.granted, book.returned, need, need + wish, earmarked=kept)
    return book._replace(free=book.free - kept, earmarked=book.earmarked + kept, owed=1, unsure=1), asked


def finish_top_up(
    book: Book, terms: Terms, now: int, asked: Asked, sent_at: int, reply: Reply, estimate: int, day_left: int = FAR
) -> tuple[Book, str]:
    """Apply the reply and reserve: HELD, or why not: ASK_ANEW, or the answer that means no."""
    book = apply(_put_back(book, asked), terms, now, asked, sent_at, reply, day_left)
    if reply.answer == "PAUSED":
        return book, "PAUSED"
    if reply.answer not in _TAKEN:
        return book, "ASK_ANEW"
    if (held := reserve(book, terms, now, estimate)) is not None:
        return held, "HELD"
    if now - sent_at > terms.guard or book.returned != asked.returned or reply.answer not in ("FENCED", "REFUSED"):
        return book, "ASK_ANEW"
    others = 0 if "no refusal while another question keeps free money" in terms.without else book.earmarked
    remaining = max(0, reply.cap - reply.spent - reply.leased) if reply.answer == "REFUSED" else 0
    return book, reply.answer if estimate > book.free + others + remaining else "ASK_ANEW"


def abandon(book: Book, asked: Asked) -> Book:
    """The sync got no answer: put the earmarked money back."""
    return _put_back(book, asked)._replace(owed=1, unsure=1)


def begin_renewal(book: Book, terms: Terms, now: int, *, idle: bool = False) -> tuple[Book, Asked]:
    """Hand back everything if the lease is dead or recalled, or if all of it lies `idle`."""
    recalled = book.recalled and "recalled money is handed back" not in terms.without
    if idle or recalled or not _alive(book, terms, now):
        book = hand_back(book, terms)
    return book, Asked(book.granted, book.returned)


def part(book: Book) -> Book:
    """The lease's runner has no more use for it: only what its events drew is not handed back."""
    kept = Book(PARTED, book.granted, book.granted - book.drawn, holds=book.holds, drawn=book.drawn, events=book.events)
    return kept._replace(unsettled=book.unsettled, counted=book.counted)


def apply(book: Book, terms: Terms, now: int, asked: Asked, sent_at: int, reply: Reply, day_left: int = FAR) -> Book:
    """Take over what the counter said; `day_left` was the time to the day's end when it said so."""
    without = terms.without
    if now - sent_at > terms.guard and "a late reply thrown away" not in without:
        return book
    if reply.answer not in _TAKEN:
        return book
    if not _alive(book, terms, now) and "what came free of a dead lease is handed back" not in without:
        book = hand_back(book, terms)
    more = max(0, reply.granted - book.granted)
    left = FAR if "local deadline ends with the day" in without else day_left
    deadline = sent_at + min(terms.ttl - terms.guard, left)
    if "local <= server's deadline" in without:
        deadline = now + terms.ttl
    over = reply.spent + reply.leased > reply.cap and "no hold from memory past the cap" not in without
    ask = reply.answer == "PAUSED" or over or book.state == RETIRED
    late = "a reply from before a grant does not say what is out" in without
    granted = reply.granted if late else book.granted + more
    out = granted - asked.returned - reply.drawn > 0 or book.returned != asked.returned
    return book._replace(
        granted=book.granted + more,
        free=book.free + more,
        deadline=0 if ask else max(book.deadline, deadline),
        unsettled=_not_settled(book.unsettled, reply, terms),
        recalled=reply.recall,
        owed=int(book.owed and out),
        unsure=int(book.unsure and book.returned != asked.returned),
    )


_TAKEN = ("OK", "REFUSED", "FENCED", "PAUSED")


def _alive(book: Book, terms: Terms, now: int) -> bool:
    return now < book.deadline or "local deadline" in terms.without


def _not_settled(unsettled: tuple[Event, ...], reply: Reply, terms: Terms) -> tuple[Event, ...]:
    complete = reply.events == reply.last_event or "settled up to the first gap" in terms.without
    up_to = reply.last_event if complete else 0
    return tuple([event for event in unsettled if event.number > up_to])


def _put_back(book: Book, asked: Asked) -> Book:
    return book._replace(free=book.free + asked.earmarked, earmarked=book.earmarked - asked.earmarked)


def hand_back(book: Book, terms: Terms) -> Book:
    """Let all free money go; the next sync says so."""
    if not book.free:
        return book
    left = book.free if "free money deducted before it is sent" in terms.without else 0
    return book._replace(free=left, returned=book.returned + book.free, owed=1, unsure=1)


def _split(holds: tuple[int, ...], held: int, part: int) -> tuple[int, ...]:
    return tuple(sorted((*_less(holds, held), held - part, part)))


def _less(holds: tuple[int, ...], held: int) -> tuple[int, ...]:
    where = holds.index(held)
    return holds[:where] + holds[where + 1 :]
