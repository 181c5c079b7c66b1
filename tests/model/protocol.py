"""The model: every step that runners, counter, worker, queue and faults can take from a state.

The steps carry the names of the code: reserve, finalize, release, sync, settle, publish, open, expire, reconcile.
A step is (what happened, the state afterwards, the promise that it broke or ""). See docs/model.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from tests.model import counter as counters
from tests.model import lease_book as books
from tests.model.counter import ACTIVE, Counter, Request, Snapshot, Terms
from tests.model.lease_book import DEAD, LIVE, RETIRED, Book, Event, TopUp

NOW = 10
"""Every state's present: a tick moves all times instead, so that states which differ only in the date are one."""

FAR = 99
RENEWAL, TOP_UP = 0, 1
NONE, WORKER = -1, -2
Step = tuple[tuple[object, ...], "State", str]


class Config(NamedTuple):
    """How small the world is: what there is of everything, what may go wrong and how often."""

    name: str
    leases: tuple[tuple[int, int], ...] = ((0, 0),)
    """(runner, account) of every lease; of several for the same two, the next is the one after a crash."""
    tries: tuple[tuple[int, int], ...] = ((2, 3),)
    """How many reserves each runner tries, and how many top-ups it begins for them; the last counts for the others."""
    estimates: tuple[int, ...] = (1,)
    spare: tuple[int, ...] = (0,)
    """How much less than held a call may cost; a negative number is an overage."""
    release: bool = False
    wish: int = 0
    cap: int = 2
    caps: tuple[int, ...] = ()
    """What the cap may be changed to."""
    days: tuple[int, ...] = (0,)
    """The day of each account: today is day 0 until `midnight`."""
    midnight: int = FAR
    ticks: bool = True
    memory: int = 1
    """Times that lie further back than so many ticks are alike."""
    terms: Terms = Terms()
    first: int = 1
    opened: tuple[int, int] = (1, 1)
    """Whether the days have a row in the ledger, and are open in the counter, at the start."""
    workers: int = 1
    publishes: int = 1
    """How many publishes may be under way at once."""
    overlap: bool = False
    """Whether a top-up and a renewal of one lease may be under way at once."""
    faults: tuple[tuple[str, int], ...] = ()
    most_faults: int = 9

    @property
    def runners(self) -> int:
        return 1 + max(runner for runner, _ in self.leases)


class Ledger(NamedTuple):
    """One agent's day in the ledger; `settled` has (lease, event, drawn, charged) of every settlement."""

    made: int
    cap: int
    status: int
    seq: int
    spent: int
    settled: tuple[tuple[int, int, int, int], ...] = ()


class Exchange(NamedTuple):
    """A sync under way: `reply` is () until the counter has served it, then (unjust, *Reply)."""

    lease: int
    kind: int
    sent_at: int
    asked: TopUp
    estimate: int
    reply: tuple[object, ...] = ()
    day_left: int = 0
    slow: int = 0


class Message(NamedTuple):
    """One event in the queue."""

    lease: int
    event: Event
    sent_at: int


class Publish(NamedTuple):
    """A snapshot on its way to the counter, and which settlements it knows of."""

    account: int
    snapshot: Snapshot
    settled: tuple[tuple[int, int, int, int], ...]


class Ghost(NamedTuple):
    """What no part of daycap knows: the excess over holds, what is gone of given-up money, the highest cap."""

    excess: int
    gone: int
    top: int


class State(NamedTuple):
    run: int
    midnight: int
    faults: tuple[int, ...]
    todo: tuple[tuple[int, int], ...]
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
    focus: int = -1
    """Whose sync (a lease) or whose publish (`WORKER`) goes on next, so that steps which commute come in one order."""


class Protocol:
    """The steps and the promises of one configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.terms = config.terms
        self.without = config.terms.without
        self.fault_names = tuple(name for name, _ in config.faults)
        self.leases = range(len(config.leases))
        self.accounts = range(len(config.days))
        self.leases_of = [[n for n in self.leases if config.leases[n][1] == account] for account in self.accounts]

        block = len(config.leases) // 2
        alike = config.runners == 2 and config.leases == (
            *((0, a) for _, a in config.leases[:block]),
            *((1, a) for _, a in config.leases[:block]),
        )
        self._first = config.first + 2 * (self.without == "first ends before a fence is lifted")
        self._tries = tuple(config.tries[min(r, len(config.tries) - 1)] for r in range(config.runners))
        alike = alike and len(set(self._tries)) == 1
        self.swap = (*range(block, 2 * block), *range(block)) if alike else None

    # --- the start ------------------------------------------------------------------------------------------

    def initial(self) -> State:
        config, many = self.config, len(self.accounts)
        made, known = config.opened
        empty = Counter(0, 1, ACTIVE, config.cap, 0, 0, 0, 0, (counters.NEW,) * len(self.leases))
        return State(
            run=0,
            midnight=NOW + config.midnight if config.midnight < FAR else FAR,
            faults=(0,) * len(config.faults),
            todo=self._tries,
            counters=(empty if known else None,) * many,
            copies=(),
            books=(Book(),) * len(self.leases),
            exchanges=(),
            strays=(),
            queue=(),
            ledgers=(Ledger(made, config.cap, ACTIVE, made, 0),) * many,
            settling=(),
            publishes=(),
            torn=(),
            ghosts=(Ghost(0, 0, config.cap),) * many,
        )

    # --- everything that can happen ---------------------------------------------------------------------------

    def steps(self, s: State) -> Iterator[Step]:
        """Every step that is possible from `s`, of those that commute only one order (see docs/model.md)."""
        focus, s = s.focus, s._replace(focus=NONE)
        for lease in self.leases:
            if focus in (NONE, lease):
                yield from self._runner(s, lease)
        for exchange in s.exchanges:
            if focus in (NONE, exchange.lease):
                yield from self._exchange(s, exchange)
        if focus >= 0:
            if (after := self._fault(s, "crash")) is not None:
                yield from self._crash(after, self.config.leases[focus][0])
        else:
            yield from self._beyond_runners(s, only_worker=focus == WORKER)
        if focus != WORKER and self.config.ticks:
            if all(e.slow for e in s.exchanges):
                yield ("tick",), self.tick(s), ""
            elif (slow := self._fault(s, "slow sync")) is not None:
                exchanges = tuple([e._replace(slow=1) for e in s.exchanges])
                yield ("tick, while a sync is under way",), self.tick(slow._replace(exchanges=exchanges)), ""

    def _beyond_runners(self, s: State, *, only_worker: bool) -> Iterator[Step]:
        yield from self._worker(s)
        for publish in s.publishes:
            yield from self._publish(s, publish)
        if only_worker:
            return
        yield from self._faults(s)
        for stray in s.strays:
            rest = s._replace(strays=_less(s.strays, stray))
            yield ("a late sync reaches the counter", *stray), self._sync(rest, stray)[0], ""

    def _fault(self, s: State, name: str) -> State | None:
        """The state with one more fault of this kind on its account, None if there may be no more."""
        if name not in self.fault_names or sum(s.faults) >= self.config.most_faults:
            return None
        kind = self.fault_names.index(name)
        if s.faults[kind] >= self.config.faults[kind][1]:
            return None
        return s._replace(faults=_at(s.faults, kind, s.faults[kind] + 1))

    def failover_left(self, s: State) -> bool:
        return self._fault(s, "failover") is not None

    def day_left(self, s: State, account: int) -> int:
        today = int(s.midnight <= NOW)
        if self.config.days[account] != today:
            return 0
        return s.midnight - NOW if today == 0 else FAR

    def tick(self, s: State) -> State:
        """Time passes by one: every time in the state moves back, down to where all times are alike."""
        oldest, reply_oldest = NOW - self.config.memory, NOW - self.terms.guard - 1

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
            books=tuple([book._replace(deadline=back(book.deadline)) for book in s.books]),
            exchanges=tuple([e._replace(sent_at=back(e.sent_at, reply_oldest)) for e in s.exchanges]),
            queue=tuple([message._replace(sent_at=back(message.sent_at)) for message in s.queue]),
            settling=tuple([(worker, m._replace(sent_at=back(m.sent_at)), seen) for worker, m, seen in s.settling]),
            publishes=tuple(map(publish_back, s.publishes)),
        )

    # --- the runner ---------------------------------------------------------------------------------------------

    def _runner(self, s: State, lease: int) -> Iterator[Step]:
        book, config = s.books[lease], self.config
        if book.state == DEAD:
            return
        runner = config.leases[lease][0]
        if s.todo[runner][0] and book.state == LIVE and self._current(s, lease):
            for estimate in config.estimates:
                yield from self._reserve(s, lease, runner, estimate)
        if book.in_use and not any(e.lease == lease and (e.kind == RENEWAL or not config.overlap) for e in s.exchanges):
            yield from self._renew(s, lease)
        for held in sorted(set(book.holds)):
            for spare in config.spare:
                yield self._finalize(s, lease, held, max(0, held - spare))
            if config.release:
                yield ("release", lease, held), _book(s, lease, books.release(book, held)), ""
        for place, event in enumerate(book.unsettled):
            if event.lost:
                again = event._replace(lost=0)
                told = _book(s, lease, book._replace(unsettled=_at(book.unsettled, place, again)))
                yield (
                    ("resend", lease, event.number),
                    told._replace(queue=_and(s.queue, Message(lease, again, NOW))),
                    "",
                )
                if book.state == LIVE and self._next(lease) is not None:
                    yield ("successor", lease), _book(s, lease, book._replace(state=RETIRED, deadline=0)), ""

    def _current(self, s: State, lease: int) -> bool:
        whose = self.config.leases[lease]
        return all(s.books[n].state != LIVE for n in range(lease) if self.config.leases[n] == whose)

    def _next(self, lease: int) -> int | None:
        return next((n for n in range(lease + 1, len(self.leases)) if self._same(n, lease)), None)

    def _same(self, one: int, other: int) -> bool:
        return self.config.leases[one] == self.config.leases[other]

    def _reserve(self, s: State, lease: int, runner: int, estimate: int) -> Iterator[Step]:
        config, book = self.config, s.books[lease]
        held = books.reserve(book, self.terms, NOW, estimate)
        if held is not None:
            after = self._excuse(self._spend_try(_book(s, lease, held), runner), lease)
            yield ("reserve", lease, estimate), after, self._in_its_day(s, lease)
        elif s.todo[runner][1] and not any(
            e.lease == lease and (e.kind == TOP_UP or not config.overlap) for e in s.exchanges
        ):
            s = s._replace(todo=_at(s.todo, runner, (s.todo[runner][0], s.todo[runner][1] - 1)))
            book, asked = books.begin_top_up(book, self.terms, NOW, estimate, config.wish)
            yield ("begin top-up", lease, estimate), self._send(s, lease, book, TOP_UP, asked, estimate), ""

    def _in_its_day(self, s: State, lease: int) -> str:
        left = self._left(s, lease)
        return "" if left > 0 else "P9: a hold was made for a day that is not now"

    def _spend_try(self, s: State, runner: int) -> State:
        return s._replace(todo=_at(s.todo, runner, (s.todo[runner][0] - 1, s.todo[runner][1])))

    def _send(self, s: State, lease: int, book: Book, kind: int, asked: TopUp, estimate: int = 0) -> State:
        exchange = Exchange(lease, kind, NOW, asked, estimate)
        return _book(s, lease, book)._replace(exchanges=_and(s.exchanges, exchange), focus=lease)

    def _renew(self, s: State, lease: int) -> Iterator[Step]:
        old = s.books[lease]
        for hand_back in (False, True) if old.free else (False,):
            book = books.begin_renewal(old, self.terms, NOW, hand_back=hand_back)
            tells = book != old or old.unsettled or old.deadline < NOW + self.terms.ttl - self.terms.guard
            if tells and not (hand_back and book == books.begin_renewal(old, self.terms, NOW)):
                asked = TopUp(book.granted, book.returned, 0, 0, 0)
                broken = "P6: recalled money was not handed back" if old.recalled and book.free else ""
                yield (
                    ("begin renewal", lease, f"returned {book.returned}"),
                    self._send(s, lease, book, RENEWAL, asked),
                    broken,
                )

    def _finalize(self, s: State, lease: int, held: int, actual: int) -> Step:
        book = books.finalize(s.books[lease], self.terms, NOW, held, actual)
        event = book.unsettled[-1]
        s = _book(s, lease, book)._replace(queue=_and(s.queue, Message(lease, event, NOW)))
        s = self._ghost(s, self.config.leases[lease][1], excess=event.actual - event.drawn)
        return ("finalize", lease, f"held {held} actual {actual}"), s, ""

    # --- a sync: sent, served by the counter, its reply taken -----------------------------------------------------

    def _exchange(self, s: State, exchange: Exchange) -> Iterator[Step]:
        rest = s._replace(exchanges=_less(s.exchanges, exchange))
        if exchange.reply:
            yield self._take_reply(rest, exchange)
        else:
            request = self._request(s, exchange)
            served, reply, unjust = self._sync(rest, request, exchange.estimate)
            kept = (reply.answer, reply.granted, 0, reply.events, reply.last_event, 0, 0, 0, reply.recall)
            answered = exchange._replace(reply=(unjust, *kept), day_left=self._left(s, exchange.lease))
            served = served._replace(exchanges=_and(served.exchanges, answered), focus=exchange.lease)
            yield ("sync", *request, reply.answer, reply.granted), served, ""
            if (late := self._fault(rest, "late sync")) is not None:
                stray = self._request(s, exchange)
                yield ("no answer, the sync comes late", exchange.lease), self._abandon(late, exchange, stray), ""
        if (lost := self._fault(rest, "lost sync")) is not None:
            what = "the reply is lost" if exchange.reply else "the sync is lost"
            yield (what, exchange.lease), self._abandon(lost, exchange), ""

    def _left(self, s: State, lease: int) -> int:
        return self.day_left(s, self.config.leases[lease][1])

    def _request(self, s: State, exchange: Exchange) -> Request:
        asked = exchange.asked
        drawn = s.books[exchange.lease].drawn if self.without == "runner never reports drawn" else 0
        return Request(exchange.lease, s.run, asked.granted, asked.returned, asked.need, asked.want, drawn)

    def _abandon(self, s: State, exchange: Exchange, *strays: Request) -> State:
        book = books.abandon(s.books[exchange.lease], exchange.asked.earmarked)
        s = _book(s, exchange.lease, book)._replace(strays=_and(s.strays, *strays))
        return self._spend_try(s, self.config.leases[exchange.lease][0]) if exchange.kind == TOP_UP else s

    def _sync(self, s: State, request: Request, estimate: int = 0) -> tuple[State, counters.Reply, int]:
        account = self.config.leases[request.lease][1]
        today = self.day_left(s, account) > 0
        before = s.counters[account]
        counter, reply = counters.sync(before, self.terms, NOW, request, today=today)
        unjust = 0
        if reply.answer == "REFUSED" and self.config.runners == 1:
            unjust = int(not self._justified(s, counter, request.lease, estimate))
        return s._replace(counters=_at(s.counters, account, counter)), reply, unjust

    def _justified(self, s: State, counter: Counter | None, lease: int, estimate: int) -> bool:
        """P6: whether this estimate would truly pass the cap, given what others have set aside."""
        if counter is None:
            return True
        account = self.config.leases[lease][1]
        used = s.ghosts[account].excess + sum(s.books[n].drawn for n in self.leases_of[account])
        for n in self.leases_of[account]:
            book, known = s.books[n], counter.leases[n]
            aside = 0 if n == lease else known.granted - known.returned - book.drawn
            used += max(aside, sum(book.holds))
        return used + estimate > counter.cap

    def _excuse(self, s: State, lease: int) -> State:
        """A refusal on its way is just if at any moment of the reserve it is true: also when another one just held."""
        exchanges = [
            e._replace(reply=(0, *e.reply[1:]))
            if e.lease == lease
            and e.reply
            and self._justified(s, s.counters[self.config.leases[lease][1]], lease, e.estimate)
            else e
            for e in s.exchanges
        ]
        return s._replace(exchanges=tuple(sorted(exchanges)))

    def _take_reply(self, s: State, exchange: Exchange) -> Step:
        lease, book, terms = exchange.lease, s.books[exchange.lease], self.terms
        unjust, reply = exchange.reply[0], counters.Reply(*exchange.reply[1:])  # type: ignore[arg-type]
        if exchange.kind == RENEWAL:
            book = books.apply(book, terms, NOW, exchange.sent_at, reply, exchange.day_left)
            book = book._replace(recalled=int(reply.recall and book.free > 0))
            return ("apply", lease, reply.answer), _book(s, lease, book), ""
        book, end = books.finish_top_up(
            book, terms, NOW, exchange.asked, exchange.sent_at, reply, exchange.estimate, exchange.day_left
        )
        s, account, broken = _book(s, lease, book), self.config.leases[lease][1], ""
        if end == "HELD":
            broken = self._in_its_day(s, lease)
        elif end == "REFUSED" and unjust and not self._justified(s, s.counters[account], lease, exchange.estimate):
            broken = "P6: refused though it would not pass the cap"
        if end != "ASK_ANEW":
            s = self._spend_try(s, self.config.leases[lease][0])
        return ("finish top-up", lease, end), s, broken

    # --- the worker -----------------------------------------------------------------------------------------------

    def _worker(self, s: State) -> Iterator[Step]:
        room = len(s.publishes) < self.config.publishes
        if self.config.workers == 1:
            for message in s.queue if room else ():
                yield from self._commit(s, message, self._view(s, message)[1])
        else:
            yield from self._two_workers(s)
        for account in self.accounts if room else ():
            yield from self._open(s, account)
            yield from self._change(s, account)
        yield from self._expire(s, room)

    def _view(self, s: State, message: Message) -> tuple[State, Ledger]:
        """The start of a settle: insert the day's row if it is missing, lock it, read it."""
        account = self.config.leases[message.lease][1]
        ledger = s.ledgers[account]
        if not ledger.made and self.without != "day row inserted before the lock":
            ledger = ledger._replace(made=1, seq=1)
            s = s._replace(ledgers=_at(s.ledgers, account, ledger))
        return s, ledger

    def _two_workers(self, s: State) -> Iterator[Step]:
        busy = {number for number, _, _ in s.settling}
        for worker in {0, 1} - busy:
            if worker == 1 and not busy:
                continue  # Which of two idle workers begins makes no difference.
            for message in s.queue:
                account = self.config.leases[message.lease][1]
                locked = any(self.config.leases[m.lease][1] == account and seen.made for _, m, seen in s.settling)
                if not locked or self.without == "SQL row lock":
                    begun, seen = self._view(s, message)
                    begun = begun._replace(settling=_and(s.settling, (worker, message, seen)))
                    yield ("settle begins", worker, message.lease, message.event.number), begun, ""
        for each in s.settling if len(s.publishes) < self.config.publishes else ():
            yield from self._commit(s._replace(settling=_less(s.settling, each)), each[1], each[2])

    def _commit(self, s: State, message: Message, seen: Ledger) -> Iterator[Step]:
        lease, event, _ = message
        account = self.config.leases[lease][1]
        ledger, broken = s.ledgers[account], ""
        if not ledger.made:
            ledger = ledger._replace(made=1, seq=1)
        known = any(row[:2] == (lease, event.number) for row in seen.settled)
        if not known or self.without == "settled-already check":
            left = max(0, seen.cap - seen.spent)
            charged = event.actual if self.without == "charge clamped" else min(event.actual, left)
            settled = _and(ledger.settled, (lease, event.number, event.drawn, charged))
            ledger = ledger._replace(spent=ledger.spent + charged, seq=ledger.seq + 1, settled=settled)
            if charged and ledger.spent > ledger.cap:
                broken = "P1: a settlement took spent above the cap"
        done = s._replace(ledgers=_at(s.ledgers, account, ledger))
        gone = _less(s.queue, message) if message in s.queue else s.queue
        published = self._enqueue(done._replace(queue=gone), account, touched=lease)
        what = (lease, event.number, "known" if known else "new")
        yield ("settle", *what), published, broken
        if (twice := self._fault(done, "duplicate message")) is not None:
            yield ("settle, delivered again", *what), self._enqueue(twice, account, touched=lease), broken
        if (killed := self._fault(done, "worker killed")) is not None:
            yield ("settle, killed before the publish", *what), killed, broken

    def _enqueue(
        self, s: State, account: int, touched: int | None = None, row: Ledger | None = None, **more: object
    ) -> State:
        """Send the account's snapshot on its way; `row` is an older reading of the day's row, if not this one."""
        ledger = s.ledgers[account]
        only = touched if self.without == "publish carries every lease of the day" else None
        totals = _totals(ledger.settled, len(self.leases), only)
        row = row or ledger
        snapshot = Snapshot(0, row.seq, row.status, row.cap, row.spent, totals, **more)  # type: ignore[arg-type]
        focus = NONE if snapshot.first_until or snapshot.chosen else WORKER
        return s._replace(publishes=_and(s.publishes, Publish(account, snapshot, ledger.settled)), focus=focus)

    def _open(self, s: State, account: int) -> Iterator[Step]:
        ledger, counter = s.ledgers[account], s.counters[account]
        if not ledger.made:
            s = s._replace(ledgers=_at(s.ledgers, account, ledger._replace(made=1, seq=1)))
            yield ("open", account), self._enqueue(s, account, first_until=NOW + self._first), ""
        elif (
            counter is None
            or counter.run != s.run
            or counter[1:5] != (ledger.seq, ledger.status, *ledger[1:2], ledger.spent)
        ):
            yield ("reconcile", account), self._enqueue(s, account), ""
        if self.without == "drawn never travels without spent of the same snapshot":
            if (account, ledger) not in s.torn:
                yield ("open reads what is spent", account), s._replace(torn=((account, ledger),)), ""
            for _, row in s.torn:
                yield ("open reads what is drawn", account), self._enqueue(s._replace(torn=()), account, row=row), ""

    def _change(self, s: State, account: int) -> Iterator[Step]:
        ledger, ghost = s.ledgers[account], s.ghosts[account]
        if not ledger.made or any(self.config.leases[m.lease][1] == account for _, m, _ in s.settling):
            return
        changes = [("set cap", ledger._replace(cap=cap)) for cap in self.config.caps if cap != ledger.cap]
        changes.append(("pause" if ledger.status == ACTIVE else "resume", ledger._replace(status=1 - ledger.status)))
        for name, changed in changes:
            if (after := self._fault(s, "set cap" if name == "set cap" else "pause")) is not None:
                seq = ledger.seq if self.without == "a cap change raises seq" else ledger.seq + 1
                ghosts = _at(s.ghosts, account, ghost._replace(top=max(ghost.top, changed.cap)))
                ledgers = _at(s.ledgers, account, changed._replace(seq=seq))
                after = after._replace(ledgers=ledgers, ghosts=ghosts)
                yield (name, account, changed.cap), self._enqueue(after, account), ""

    def _expire(self, s: State, room: bool) -> Iterator[Step]:
        """Look at the queue, then read the ledger, then publish."""
        before = NOW
        if self.without != "fence and expire wait for the queue":
            before = min((NOW, *(message.sent_at for message in s.queue)))
        for account in self.accounts:
            if room and self._may_expire(s, account, before):
                chosen = tuple(self._past(s, account, before)) if self.without.startswith("expiry decided") else ()
                sent = self._enqueue(s, account, expire_before=before, chosen=chosen)
                yield ("expire", account), sent, ""

    def _past(self, s: State, account: int, before: int) -> list[int]:
        counter, grace = s.counters[account], self.terms.grace
        if counter is None:
            return []
        return [
            n
            for n, lease in enumerate(counter.leases)
            if lease.deadline + grace < before and counters.outstanding(lease, self.terms) > 0
        ]

    def _may_expire(self, s: State, account: int, before: int) -> bool:
        counter = s.counters[account]
        if counter is None or counter.run != s.run:
            return False
        fenced = counter.fence_until > 0 and counter.fence_until + self.terms.grace < before
        return fenced or bool(self._past(s, account, before))

    # --- publishes on their way -------------------------------------------------------------------------------------

    def _publish(self, s: State, publish: Publish) -> Iterator[Step]:
        rest = s._replace(publishes=_less(s.publishes, publish))
        account = publish.account
        said = publish.snapshot._replace(run=s.run)  # Sent on a connection that knows the server of now.
        before = s.counters[account]
        counter, done = counters.publish(before, self.terms, NOW, said)
        after = rest._replace(counters=_at(s.counters, account, counter))
        if done.given_up:
            after = self._count_gone(after, publish, before or counter, done)
        early = any(s.books[n].state != DEAD and s.books[n].deadline > NOW for n in done.expired)
        broken = "P4: a lease was given up whose runner renews in time" if early else ""
        if before is not None and not done.opened and counter.seq < before.seq:
            broken = "P3: an older snapshot undid a newer one"
        what = "opened" if done.opened else ""
        fence = "fenced" if done.fenced else "fence lifted" if done.lifted else ""
        yield (
            ("publish", account, f"seq {said.seq} spent {said.spent}", what, fence, f"gave up {done.given_up}"),
            after,
            broken,
        )
        if (lost := self._fault(rest, "lost publish")) is not None:
            yield ("the publish is lost", account, f"seq {publish.snapshot.seq}"), lost, ""

    def _count_gone(self, s: State, publish: Publish, counter: Counter, done: counters.Published) -> State:
        """Count what is truly at risk of the money given up: the holds of those who did not renew in time, and their
        events, but for those that the queue had in time."""
        gone, before = 0, publish.snapshot.expire_before
        all_books, settled = list(s.books), {row[:2] for row in publish.settled}
        late = {(message.lease, message.event.number) for message in s.queue if message.sent_at < before}
        for lease in self.leases_of[publish.account]:
            overdue = counter.leases[lease].deadline + self.terms.grace < before
            if not overdue or (lease not in done.expired and not done.lifted):
                continue
            book = s.books[lease]
            events = [e for e in book.unsettled if (lease, e.number) not in settled | late]
            away = sum(book.holds) + sum(e.drawn for e in events)
            known = 0 if lease in done.expired else counters.outstanding(counter.leases[lease], self.terms)
            gone += max(0, away - known - book.counted)
            all_books[lease] = book._replace(counted=max(book.counted, away - known))
        s = s._replace(books=tuple(all_books))
        return self._ghost(s, publish.account, gone=min(gone, done.given_up))

    def _ghost(self, s: State, account: int, excess: int = 0, gone: int = 0) -> State:
        old = s.ghosts[account]
        return s._replace(ghosts=_at(s.ghosts, account, Ghost(old.excess + excess, old.gone + gone, old.top)))

    # --- faults -------------------------------------------------------------------------------------------------------

    def _faults(self, s: State) -> Iterator[Step]:
        for runner in range(self.config.runners):
            if (after := self._fault(s, "crash")) is not None:
                yield from self._crash(after, runner)
        for message in s.queue:
            if (after := self._fault(s, "lost message")) is not None:
                yield ("the broker loses", message.lease, message.event.number), self._lose(after, message), ""
        if (after := self._fault(s, "flush")) is not None:
            yield ("flush",), after._replace(counters=(None,) * len(self.accounts)), ""
        if (after := self._fault(s, "failover")) is not None:
            lost = s.copies or (None,) * len(self.accounts)
            what = "failover to the copy" if s.copies else "restart with empty data"
            yield (what,), after._replace(counters=lost, copies=(), strays=(), run=s.run + 1), ""
            if not s.copies:
                yield ("a replica takes a copy",), s._replace(copies=s.counters), ""

    def _crash(self, s: State, runner: int) -> Iterator[Step]:
        """The runner is gone with its memory; requests on their way still arrive. The next lease is its restart's."""
        mine = [n for n in self.leases if self.config.leases[n][0] == runner]
        gone = [n for n in mine if s.books[n].state == RETIRED or (s.books[n].state == LIVE and self._current(s, n))]
        used = any(s.books[n] != Book() for n in gone) or any(e.lease in gone for e in s.exchanges)
        if not used:
            return
        all_books = list(s.books)
        for n in gone:
            old = s.books[n]
            all_books[n] = Book(DEAD, holds=old.holds, drawn=old.drawn, unsettled=old.unsettled, counted=old.counted)
        theirs = [e for e in s.exchanges if e.lease in gone]
        strays = [self._request(s, e) for e in theirs if not e.reply]
        left = tuple(e for e in s.exchanges if e not in theirs)
        yield (
            ("crash", runner),
            s._replace(books=tuple(all_books), exchanges=left, strays=_and(s.strays, *strays)),
            "",
        )

    def _lose(self, s: State, message: Message) -> State:
        lease, event, _ = message
        unsettled = tuple(e._replace(lost=1) if e == event else e for e in s.books[lease].unsettled)
        s = _book(s, lease, s.books[lease]._replace(unsettled=unsettled))
        return s._replace(queue=_less(s.queue, message))


def _book(s: State, lease: int, book: Book) -> State:
    return s._replace(books=_at(s.books, lease, book))


def _at(all_: tuple, place: int, one: object) -> tuple:  # type: ignore[type-arg]
    return (*all_[:place], one, *all_[place + 1 :])


def _and(all_: tuple, *more: object) -> tuple:  # type: ignore[type-arg]
    return tuple(sorted((*all_, *more)))


def _less(all_: tuple, one: object) -> tuple:  # type: ignore[type-arg]
    place = all_.index(one)
    return (*all_[:place], *all_[place + 1 :])


@lru_cache(maxsize=100_000)
def _totals(
    settled: tuple[tuple[int, int, int, int], ...], leases: int, only: int | None
) -> tuple[tuple[int, int, int], ...]:
    totals = [(0, 0, 0)] * leases
    for lease, event, drawn, _ in settled:
        if only is None or only == lease:
            old = totals[lease]
            totals[lease] = (old[0] + drawn, old[1] + 1, max(old[2], event))
    return tuple(totals)
