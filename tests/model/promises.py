"""The promises that hold in every state of the model, and which states are the same for them."""

from __future__ import annotations

from typing import Any

from tests.model import counter as counters
from tests.model.counter import NEVER, REPAIR, Counter, Published
from tests.model.lease_book import DEAD, GONE, Book
from tests.model.protocol import Protocol
from tests.model.state import NOW, Exchange, Ledger, Message, Publish, Settled, State, at, totals

_LONG_AFTER = 1000
_TOO_OLD = (0, "OK", 0, 0, 0, 0, 0, 0, 0, 0)


def broken(protocol: Protocol, s: State) -> str:
    """Which promise `s` breaks, in words; "" if none."""
    for account in protocol.accounts:
        ledger, counter, ghost = s.ledgers[account], s.counters[account], s.ghosts[account]
        mine = [s.books[lease] for lease in protocol.leases_of[account]]
        if sum([book.drawn + sum(book.holds) for book in mine]) > ghost.top + ghost.gone:
            return "P4: true spending is above the highest cap and what is gone of given-up money"
        if len({row[:2] for row in ledger.settled}) < len(ledger.settled):
            return "P2: an event is settled twice"
        if ledger.spent != sum([row[3] for row in ledger.settled]):
            return "P3: spent is not the sum of what was charged"
        if counter and not s.restored and counter.seq == ledger.seq:
            if counter[1:5] != (ledger.seq, ledger.status, ledger.cap, ledger.spent):
                return "P3: the counter's snapshot differs from the ledger's of the same seq"
            if counter.run == s.run and (why := _differ(protocol, counter, ledger)):
                return why
        in_hash = sum([lease.drawn for lease in counter.leases]) if counter else 0
        if counter and counter.drawn != counter.folded + in_hash:
            return "P3: the counter's sums differ from its leases"
    return _lost_event(protocol, s) or (_at_rest(protocol, s) if quiet(s) else "")


def _differ(protocol: Protocol, counter: Counter, ledger: Ledger) -> str:
    """How a counter differs from a ledger that has the same seq."""
    said = totals(ledger.settled, len(protocol.leases))
    open_ = [(0, 0, 0) if folded else each for each, folded in zip(said, ledger.folded, strict=True)]
    if [(lease.drawn, lease.events, lease.last_event) for lease in counter.leases] != open_:
        return "P3: the counter's leases differ from the ledger's of the same seq"
    if counter.drawn != sum([each[0] for each in said]):
        return "P3: the counter's sum of what was drawn differs from the ledger's of the same seq"
    return ""


def _lost_event(protocol: Protocol, s: State) -> str:
    for lease, book in enumerate(s.books if not s.restored else ()):
        if book.state != DEAD and book.events > len(book.unsettled):
            settled = s.ledgers[protocol.account[lease]].settled
            there = {row[1] for row in settled if row[0] == lease} | {event.number for event in book.unsettled}
            if not there.issuperset(range(1, book.events + 1)):
                return "P7: a runner dropped an event that the ledger does not have"
    return ""


def quiet(s: State) -> bool:
    """Nothing is under way, and no living runner holds, has free or waits for anything."""
    if s.exchanges or s.strays or s.queue or s.publishes or s.settling or s.torn:
        return False
    return all(book.state in GONE or not book.in_use for book in s.books)


def _at_rest(protocol: Protocol, s: State) -> str:
    """After a last reconcile and expire, long after, nothing is leased and the counter equals the ledger."""
    for account in protocol.accounts:
        counter = s.counters[account]
        if counter is None or counter.run != s.run:
            continue
        after, done, ledger = _reconciled(protocol, s, account)
        if done.leased or done.fenced:
            return "P5: all has ended and something is still leased"
        settled = totals(ledger.settled, len(protocol.leases))
        if any(after.leases[n].events < settled[n][1] for n in s.waiting if protocol.account[n] == account):
            return "P7: who sent an event again never hears that it is settled"
        if s.restored:
            if after.drawn < sum([each[0] for each in settled]) or after.seq != ledger.seq:
                return "P3: at rest the counter has not what the ledger has"
            continue
        same = (after.seq, after.cap, after.spent) == (ledger.seq, ledger.cap, ledger.spent)
        if not same or _differ(protocol, after, ledger):
            return "P3: at rest the counter differs from the ledger"
    return ""


def _reconciled(protocol: Protocol, s: State, account: int) -> tuple[Counter, Published, Ledger]:
    """The counter after a reconcile, after every event that its sender still waits for was sent once more."""
    counter, base = s.counters[account], s.ledgers[account].seq
    assert counter is not None
    ledger = protocol.sent_again(s, account)
    if counter.seq > ledger.seq:
        base, ledger = REPAIR, ledger._replace(seq=counter.seq + 1)
    again = [n for n in s.waiting if protocol.account[n] == account]
    for touched in (None, *again):
        counter, done = _taken(protocol, counter, ledger, base, touched)
        base = ledger.seq
    return counter, done, ledger


def _taken(
    protocol: Protocol, counter: Counter, ledger: Ledger, base: int, touched: int | None
) -> tuple[Counter, Published]:
    """The counter after a publish from this base on, or what its answer asks for."""
    while True:
        said = protocol.snapshot(ledger, base, touched, counter)
        said = said._replace(run=counter.run, expire_before=_LONG_AFTER, chosen=tuple(protocol.leases))
        after, done = counters.publish(counter, protocol.terms, _LONG_AFTER, said)
        if done.behind is None:
            assert after is not None
            return after, done
        base = done.behind


# --- states that are the same -------------------------------------------------------------------------------------


class Tidy:
    """Forgets what nothing can ask for any more, and names runners that are alike in one order."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        # Without a guard, a lease that has nothing out may have something again, and is not renewed before.
        self._keep_deadlines = bool(protocol.without)
        self._keep_late = "a late reply thrown away" in protocol.without
        half, leases = len(protocol.leases) // 2, protocol.config.leases
        alike = protocol.config.runners == 2 and len(set(protocol.tries)) == 1
        alike = alike and leases[half:] == tuple((1, account) for _, account in leases[:half])
        self._order = (*range(half, 2 * half), *range(half)) if alike else None

    def __call__(self, s: State) -> State:
        changes: dict[str, Any] = {}
        books = tuple([_tidy_book(book) for book in s.books])
        if books != s.books:
            changes["books"] = books
        all_counters = tuple([self._tidy_counter(counter) for counter in s.counters])
        if all_counters != s.counters:
            changes["counters"] = all_counters
        if s.copies:
            may_fail_over = self._protocol.fault(s, "failover") is not None
            changes["copies"] = tuple([self._tidy_counter(copy) for copy in s.copies]) if may_fail_over else ()
        if s.backups and self._protocol.fault(s, "restore") is None:
            changes["backups"] = ()
        if s.exchanges and not self._keep_late:
            oldest = NOW - self._protocol.terms.guard
            changes["exchanges"] = tuple(
                [e._replace(reply=_TOO_OLD) if e.reply and e.sent_at < oldest else e for e in s.exchanges]
            )
        s = _shifted(s._replace(**changes) if changes else s)
        if self._order is not None:
            half = len(self._order) // 2
            known = [counter.leases for counter in s.counters if counter is not None]
            first = (s.todo[0], s.books[:half], [leases[:half] for leases in known])
            if first > (s.todo[1], s.books[half:], [leases[half:] for leases in known]):
                return swapped(s, self._order)
        return s

    def alike(self, s: State) -> list[State]:
        """`s` tidied, and with its runners' names exchanged where they are alike."""
        tidy = self(s)
        return [tidy] if self._order is None else [tidy, swapped(tidy, self._order)]

    def _tidy_counter(self, counter: Counter | None) -> Counter | None:
        """A lease that has nothing out gets a new deadline before it has; given up is counted by no one here."""
        if counter is None:
            return None
        leases = counter.leases
        if not self._keep_deadlines and any(
            lease.deadline and lease.granted <= lease.returned + lease.drawn for lease in leases
        ):
            leases = tuple(
                [
                    lease._replace(deadline=0)
                    if lease.granted <= lease.returned + lease.drawn and lease.farewell == NEVER
                    else lease
                    for lease in leases
                ]
            )
        recall = counter.recall_until if counter.recall_until > NOW else 0
        return counter._replace(leases=leases, given_up=0, recall_until=recall)


def _tidy_book(book: Book) -> Book:
    if book.counted and book.counted > book.away:
        book = book._replace(counted=book.away)
    return book._replace(deadline=0) if 0 < book.deadline <= NOW else book


def _shifted(s: State) -> State:
    """A lease that was granted and gave back the same once more is as it was: only differences of totals matter.

    Whoever knows nothing of the lease, or has given it up, has zeros, and takes whatever is said.
    """
    for lease, book in enumerate(s.books):
        if book.state == DEAD or book.returned == 0:
            continue
        known = [counter.leases[lease] for counter in (*s.counters, *s.copies) if counter is not None]
        asked = [e.asked for e in s.exchanges if e.lease == lease]
        said: list[Any] = [*(each for each in known if each.granted or each.returned), *asked]
        said += [stray for stray in s.strays if stray.lease == lease]
        more = min([book.returned, *[each.returned for each in said]])
        if more:
            s = _less_granted(s, lease, more)
    return s


def _less_granted(s: State, lease: int, more: int) -> State:
    def fewer(part: Any) -> Any:
        return part._replace(granted=part.granted - more, returned=part.returned - more) if part.granted else part

    def counter_of(counter: Counter | None) -> Counter | None:
        return counter and counter._replace(leases=at(counter.leases, lease, fewer(counter.leases[lease])))

    def exchange_of(e: Exchange) -> Exchange:
        reply = (*e.reply[:2], e.reply[2] - more, *e.reply[3:]) if e.reply and e.reply[2] else e.reply
        return e._replace(asked=fewer(e.asked), reply=reply) if e.lease == lease else e

    return s._replace(
        books=at(s.books, lease, fewer(s.books[lease])),
        counters=tuple(map(counter_of, s.counters)),
        copies=tuple(map(counter_of, s.copies)),
        exchanges=tuple(sorted(map(exchange_of, s.exchanges))),
        strays=tuple(sorted([fewer(stray) if stray.lease == lease else stray for stray in s.strays])),
    )


def swapped(s: State, order: tuple[int, ...]) -> State:
    """`s` with its two runners' names exchanged: lease n becomes lease order[n]."""

    def counter_of(counter: Counter | None) -> Counter | None:
        return counter and counter._replace(leases=tuple([counter.leases[n] for n in order]))

    def settled_of(settled: Settled) -> Settled:
        return tuple(sorted([(order[row[0]], *row[1:]) for row in settled]))

    def ledger_of(row: Ledger) -> Ledger:
        changed = tuple([row.changed[n] for n in order]) if row.changed else ()
        folded = tuple([row.folded[n] for n in order]) if row.folded else ()
        return row._replace(settled=settled_of(row.settled), changed=changed, folded=folded)

    def message_of(message: Message) -> Message:
        return message._replace(lease=order[message.lease])

    def publish_of(publish: Publish) -> Publish:
        said = publish.snapshot
        chosen = tuple(sorted([order[n] for n in said.chosen]))
        folded = tuple(sorted([order[n] for n in said.folded]))
        said = said._replace(totals=tuple([said.totals[n] for n in order]), chosen=chosen, folded=folded)
        return publish._replace(settled=settled_of(publish.settled), snapshot=said)

    return s._replace(
        todo=s.todo[::-1],
        counters=tuple(map(counter_of, s.counters)),
        copies=tuple(map(counter_of, s.copies)),
        books=tuple([s.books[n] for n in order]),
        exchanges=tuple(sorted([e._replace(lease=order[e.lease]) for e in s.exchanges])),
        strays=tuple(sorted([r._replace(lease=order[r.lease]) for r in s.strays])),
        queue=tuple(sorted(map(message_of, s.queue))),
        ledgers=tuple(map(ledger_of, s.ledgers)),
        settling=tuple(sorted([(n, message_of(m), ledger_of(seen)) for n, m, seen in s.settling])),
        publishes=tuple(sorted(map(publish_of, s.publishes))),
        torn=tuple([(account, ledger_of(row)) for account, row in s.torn]),
        backups=tuple(map(ledger_of, s.backups)),
        waiting=tuple(sorted([order[n] for n in s.waiting])),
        focus=order[s.focus] if s.focus >= 0 else s.focus,
    )
