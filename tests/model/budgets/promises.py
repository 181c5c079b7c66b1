"""The promises that hold in every state of several budgets, and which states count as the same."""

from __future__ import annotations

from typing import Any

from tests.model import counter as counters
from tests.model.budgets.protocol import Protocol
from tests.model.budgets.state import Event, Question, State
from tests.model.counter import Counter
from tests.model.lease_book import DEAD, Book
from tests.model.state import NOW, at

_LONG_AFTER = 1000


def broken(protocol: Protocol, s: State) -> str:
    """Which promise `s` breaks, in words; "" if none."""
    for budget in protocol.budgets:
        ledger, counter, ghost = s.ledgers[budget], s.counters[budget], s.ghosts[budget]
        if protocol.truly_spent(s, budget) > protocol.config.caps[budget] + ghost.gone + ghost.excess:
            return f"P4: true spending of budget {budget} is above its cap and what is gone of given-up money"
        if len({row[:2] for row in ledger.settled}) < len(ledger.settled):
            return "P2: an event is settled twice"
        if ledger.spent != sum([row.charged for row in ledger.settled]):
            return "P3: spent is not the sum of what was charged"
        if counter and counter.seq == ledger.seq and counter.spent != ledger.spent:
            return "P3: the counter's snapshot differs from the ledger's of the same seq"
    for event in s.events:
        if why := _counted_elsewhere(protocol, s, event):
            return why
    return _at_rest(protocol, s) if quiet(s) else ""


def _counted_elsewhere(protocol: Protocol, s: State, event: Event) -> str:
    """An event counts in all of its budgets or in none, and in no other one."""
    where = [b for b in protocol.budgets if any(row[:2] == (event.own, event.number) for row in s.ledgers[b].settled)]
    if where and where != sorted(protocol.leases[n][1] for n in event.leases):
        return "P12: an event counts in other budgets than those of its hold"
    book = s.books[event.own]
    waits = any(event.number == other.number for other in book.unsettled)
    if not where and book.state != DEAD and not waits:
        return "P7: a runner dropped an event that the ledger does not have"
    return ""


def quiet(s: State) -> bool:
    """Nothing is under way, and no living runner holds, has free or waits for anything."""
    if s.questions or s.renewals or s.strays or s.queue:
        return False
    return all(book.state == DEAD or not book.in_use for book in s.books)


def _at_rest(protocol: Protocol, s: State) -> str:
    """After a last expire, long after, nothing is leased and the counter equals the ledger."""
    for budget in protocol.budgets:
        said = protocol.snapshot(s, budget, _LONG_AFTER)
        counter, done = counters.publish(s.counters[budget], protocol.terms, _LONG_AFTER, said)
        assert counter is not None
        if s.counters[budget] is not None and (done.leased or done.fenced):
            return "P5: all has ended and something is still leased"
        all_known = [(lease.drawn, lease.events, lease.last_event) for lease in counter.leases]
        known = tuple([each if any(each) else () for each in all_known])
        if (counter.seq, counter.spent, known) != (said.seq, said.spent, said.totals):
            return "P3: at rest the counter differs from the ledger"
    return ""


# --- states that are the same -------------------------------------------------------------------------------------


class Tidy:
    """Forgets what nothing can ask for any more."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def __call__(self, s: State) -> State:
        s = s._replace(
            books=tuple(map(_tidy_book, s.books)),
            counters=tuple([counter and _tidy_counter(counter) for counter in s.counters]),
        )
        for lease, book in enumerate(s.books):
            if book.state != DEAD and book.returned:
                s = _less_granted(self._protocol, s, lease)
        return s

    def alike(self, s: State) -> list[State]:
        """`s`, tidied."""
        return [self(s)]


def _tidy_book(book: Book) -> Book:
    return book._replace(deadline=0) if 0 < book.deadline <= NOW else book


def _tidy_counter(counter: Counter) -> Counter:
    """A lease that has nothing out gets a new deadline before it has; given up is counted by no one here."""
    leases = tuple(
        [each._replace(deadline=0) if each.granted <= each.returned + each.drawn else each for each in counter.leases]
    )
    recall = counter.recall_until if counter.recall_until > NOW else 0
    return counter._replace(leases=leases, given_up=0, recall_until=recall)


def _less_granted(protocol: Protocol, s: State, lease: int) -> State:
    """A lease that was granted and gave back the same once more is as it was: only differences of totals matter."""
    budget, book = protocol.leases[lease][1], s.books[lease]
    counter = s.counters[budget]
    known = counter.leases[lease] if counter is not None else counters.NEW
    said: list[Any] = [known] if known.granted or known.returned else []
    said += [p.asked for q in s.questions for p in q.parts if p.lease == lease and p.ask]
    said += [r.asked for r in s.renewals if r.lease == lease] + [r for r in s.strays if r.lease == lease]
    more = min([book.returned, *[each.returned for each in said]])
    if not more:
        return s

    def fewer(part: Any) -> Any:
        return part._replace(granted=part.granted - more, returned=part.returned - more) if part.granted else part

    def reply_of(reply: tuple[Any, ...]) -> tuple[Any, ...]:
        return (reply[0], reply[1] - more, *reply[2:]) if len(reply) > 1 and reply[1] else reply

    def question_of(q: Question) -> Question:
        parts = [p._replace(asked=fewer(p.asked), reply=reply_of(p.reply)) if p.lease == lease else p for p in q.parts]
        return q._replace(parts=tuple(parts))

    if counter is not None:
        counter = counter._replace(leases=at(counter.leases, lease, fewer(known)))
    renewals = [
        r._replace(asked=fewer(r.asked), reply=reply_of(r.reply)) if r.lease == lease else r for r in s.renewals
    ]
    return s._replace(
        counters=at(s.counters, budget, counter),
        books=at(s.books, lease, fewer(book)),
        questions=tuple(sorted(map(question_of, s.questions))),
        renewals=tuple(sorted(renewals)),
        strays=tuple(sorted([fewer(r) if r.lease == lease else r for r in s.strays])),
    )
