"""The promises that hold in every state of the model, and which states are the same for them."""

from __future__ import annotations

from tests.model import counter as counters
from tests.model.counter import Counter, Snapshot
from tests.model.lease_book import DEAD, Book
from tests.model.protocol import NOW, Message, Protocol, State, _totals

_FAR = 1000
_TOO_OLD = (0, "OK", 0, 0, 0, 0, 0, 0, 0, 0)


def broken(protocol: Protocol, s: State) -> str:
    """Which promise `s` breaks, in words; "" if none."""
    for account in protocol.accounts:
        ledger, counter, ghost = s.ledgers[account], s.counters[account], s.ghosts[account]
        mine = [s.books[lease] for lease in protocol.leases_of[account]]
        spending = ghost.excess + sum(book.drawn + sum(book.holds) for book in mine)
        if spending > ghost.top + ghost.gone + ghost.excess:
            return "P4: true spending is above the highest cap, what is gone of given-up money, and the excess"
        if len({row[:2] for row in ledger.settled}) < len(ledger.settled):
            return "P2: an event is settled twice"
        if ledger.spent != sum(row[3] for row in ledger.settled):
            return "P3: spent is not the sum of what was charged"
        known = (ledger.seq, ledger.cap, ledger.status, ledger.spent)
        told = counter and (counter.seq, counter.cap, counter.status, counter.spent)
        if counter is not None and counter.seq == ledger.seq and told != known:
            return "P3: the counter's snapshot differs from the ledger's of the same seq"
    return _lost_event(protocol, s) or (_at_rest(protocol, s) if _quiet(s) else "")


def _lost_event(protocol: Protocol, s: State) -> str:
    for lease, book in enumerate(s.books):
        if book.state != DEAD and book.events > len(book.unsettled):
            kept = {event.number for event in book.unsettled}
            settled = {row[1] for row in s.ledgers[protocol.config.leases[lease][1]].settled if row[0] == lease}
            if any(number not in kept and number not in settled for number in range(1, book.events + 1)):
                return "P7: a runner dropped an event that the ledger does not have"
    return ""


def _quiet(s: State) -> bool:
    """Nothing is under way, and no living runner holds, has free or waits for anything."""
    if s.exchanges or s.strays or s.queue or s.publishes or s.settling or s.torn:
        return False
    return all(book.state == DEAD or not book.in_use for book in s.books)


def _at_rest(protocol: Protocol, s: State) -> str:
    """After a last expire, long after, nothing is leased and the counter equals the ledger."""
    for account in protocol.accounts:
        ledger, counter = s.ledgers[account], s.counters[account]
        if counter is None or counter.run != s.run:
            continue
        totals = _totals(ledger.settled, len(protocol.leases), None)
        last = Snapshot(
            s.run, ledger.seq, ledger.status, ledger.cap, ledger.spent, totals, _FAR, chosen=(*protocol.leases,)
        )
        after, done = counters.publish(counter, protocol.terms, _FAR, last)
        if done.leased or done.fenced:
            return "P5: all has ended and something is still leased"
        told = tuple((lease.drawn, lease.events, lease.last_event) for lease in after.leases)
        if (after.seq, after.cap, after.spent, told) != (ledger.seq, ledger.cap, ledger.spent, totals):
            return "P3: at rest the counter differs from the ledger"
    return ""


# --- states that are the same ---------------------------------------------------------------------------------


def tidy(protocol: Protocol, s: State) -> State:
    """Forget what nothing can ask for any more, and name runners that are alike in one order."""
    keep = protocol.without == "put back accepted"
    books = tuple([_tidy_book(book) for book in s.books])
    all_counters = tuple([_tidy_counter(counter, keep) for counter in s.counters])
    copies = s.copies if protocol.failover_left(s) else ()
    exchanges = s.exchanges
    if protocol.without != "a late reply thrown away":
        oldest = NOW - protocol.terms.guard
        exchanges = tuple([e._replace(reply=_TOO_OLD) if e.reply and e.sent_at < oldest else e for e in exchanges])
    s = s._replace(books=books, counters=all_counters, copies=copies, exchanges=exchanges)
    return _in_order(protocol, s)


def _tidy_book(book: Book) -> Book:
    if book.counted > book.away:
        book = book._replace(counted=book.away)
    return book._replace(deadline=0) if 0 < book.deadline <= NOW else book


def _tidy_counter(counter: Counter | None, keep: bool) -> Counter | None:
    """A lease that has nothing out gets a new deadline before it has; given up is counted by no one here."""
    if counter is None:
        return None
    leases = tuple(
        [
            lease._replace(deadline=0) if lease.granted <= lease.returned + lease.drawn and not keep else lease
            for lease in counter.leases
        ]
    )
    recall = counter.recall_until if counter.recall_until > NOW else 0
    return counter._replace(leases=leases, given_up=0, recall_until=recall)


def _in_order(protocol: Protocol, s: State) -> State:
    """Of two runners with the same kinds of leases, the one with the smaller books comes first."""
    order = protocol.swap
    if order is None:
        return s
    half = len(order) // 2
    mine, others = (s.todo[0], s.books[:half]), (s.todo[1], s.books[half:])
    return s if mine <= others else swapped(s, order)


def swapped(s: State, order: tuple[int, ...]) -> State:
    """`s` with its two runners' names exchanged: lease n becomes lease order[n]."""

    def counter_of(counter: Counter | None) -> Counter | None:
        return counter and counter._replace(leases=tuple([counter.leases[n] for n in order]))

    def settled_of(settled: tuple[tuple[int, int, int, int], ...]) -> tuple[tuple[int, int, int, int], ...]:
        return tuple(sorted([(order[row[0]], *row[1:]) for row in settled]))

    def message_of(message: Message) -> Message:
        return message._replace(lease=order[message.lease])

    return s._replace(
        todo=s.todo[::-1],
        counters=tuple(map(counter_of, s.counters)),
        copies=tuple(map(counter_of, s.copies)),
        books=tuple([s.books[n] for n in order]),
        exchanges=tuple(sorted([e._replace(lease=order[e.lease]) for e in s.exchanges])),
        strays=tuple(sorted([r._replace(lease=order[r.lease]) for r in s.strays])),
        focus=order[s.focus] if s.focus >= 0 else s.focus,
        queue=tuple(sorted(map(message_of, s.queue))),
        ledgers=tuple([row._replace(settled=settled_of(row.settled)) for row in s.ledgers]),
        settling=tuple(
            sorted(
                (worker, message_of(m), seen._replace(settled=settled_of(seen.settled)))
                for worker, m, seen in s.settling
            )
        ),
        publishes=tuple(
            sorted(
                p._replace(
                    settled=settled_of(p.settled),
                    snapshot=p.snapshot._replace(
                        totals=tuple([p.snapshot.totals[n] for n in order]),
                        chosen=tuple(sorted([order[n] for n in p.snapshot.chosen])),
                    ),
                )
                for p in s.publishes
            )
        ),
    )
