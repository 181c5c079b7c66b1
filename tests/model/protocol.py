"""The model: every step that runners, counter, worker, queue and faults can take from a state.

Steps have the code's names: reserve, finalize, release, sync, settle, publish, open, expire, reconcile. A step is what
happened, the state afterwards, and the promise that it broke or "". docs/model.md says what is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model import counter as counters
from tests.model import lease_book as books
from tests.model.counter import ACTIVE, NEVER, PAUSED, REPAIR, WHOLE, Counter, Request, Snapshot
from tests.model.lease_book import DEAD, FAR, GONE, LIVE, PARTED, RETIRED, Asked, Book
from tests.model.state import (
    NONE,
    NOW,
    RENEWAL,
    TOP_UP,
    WORKER,
    Config,
    Exchange,
    Ghost,
    Ledger,
    Message,
    Publish,
    Settled,
    State,
    at,
    less,
    plus,
    tick,
    totals,
)

Step = tuple[str, State, str]


class Protocol:
    """The steps of one configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.terms = config.terms
        self.without = config.terms.without
        self.leases = range(len(config.leases))
        self.accounts = range(len(config.days))
        self.owner = [runner for runner, _ in config.leases]
        self.account = [account for _, account in config.leases]
        self.leases_of = [[n for n in self.leases if self.account[n] == account] for account in self.accounts]
        self.before = [[m for m in range(n) if config.leases[m] == config.leases[n]] for n in self.leases]
        self.names = [
            f"{'AB'[self.owner[n]]}{1 + len(self.before[n])}" + (f"/{self.account[n]}" if config.days[1:] else "")
            for n in self.leases
        ]
        self.tries = tuple(config.tries[min(r, len(config.tries) - 1)] for r in range(config.runners))
        # Wider than it may be: to see that it must not outlast a fence.
        self.first = config.first + 2 * ("first ends before a fence can" in self.without)

    def initial(self) -> State:
        """The state in which nothing has happened."""
        config, many = self.config, len(self.accounts)
        zeros = (0,) * len(self.leases)
        empty = Counter(0, 1, ACTIVE, config.cap, 0, 0, 0, 0, (counters.NEW,) * len(self.leases))
        return State(
            run=0,
            midnight=FAR if config.midnight == FAR else NOW + config.midnight,
            faults=config.most_faults,
            todo=self.tries,
            counters=(empty if config.open else None,) * many,
            copies=(),
            books=(Book(),) * len(self.leases),
            exchanges=(),
            strays=(),
            queue=(),
            ledgers=(Ledger(int(config.row), config.cap, ACTIVE, int(config.row), 0, (), zeros, zeros),) * many,
            settling=(),
            publishes=(),
            torn=(),
            ghosts=(Ghost(0, 0, config.cap),) * many,
        )

    def steps(self, s: State) -> Iterator[Step]:
        """Every step that is possible from `s`; of steps that commute only one order (see docs/model.md)."""
        focus = s.focus if self.config.reduced else NONE
        s = s._replace(focus=NONE) if focus != NONE else s
        if focus >= 0:
            for what, after, why in self._runner(s, focus):
                yield what, after._replace(focus=focus), why
            yield from self._settle_any(s, focus)
        if focus == NONE:
            for lease in self.leases:
                yield from self._runner(s, lease)
        if focus != WORKER:
            for exchange in s.exchanges:
                if focus in (NONE, exchange.lease):
                    yield from self._exchange(s, exchange)
            yield from self._crash(s, range(self.config.runners) if focus == NONE else (self.owner[focus],))
            yield from self._tick(s)
        if focus in (NONE, WORKER):
            yield from self._worker(s)
            for publish in s.publishes:
                yield from self._publish(s, publish)
        if focus == NONE:
            for stray in s.strays:
                late = self._sync(s._replace(strays=less(s.strays, stray)), stray)[0]
                yield f"sync of {self.names[stray.lease]}, late: nobody waits for the reply", late, ""
            yield from self._losses(s)

    def fault(self, s: State, kind: str) -> State | None:
        """The state with a fault of this kind on its account; None if there may be no more."""
        if s.faults == 0 or kind not in self.config.faults:
            return None
        return s._replace(faults=s.faults - 1)

    def _tick(self, s: State) -> Iterator[Step]:
        if not self.config.ticks:
            return
        if all(e.slow for e in s.exchanges):
            yield "tick", tick(s, self.config), ""
        elif (slow := self.fault(s, "slow sync")) is not None:
            slow = slow._replace(exchanges=tuple([e._replace(slow=1) for e in s.exchanges]))
            yield "tick, while a sync is under way", tick(slow, self.config), ""

    def day_left(self, s: State, lease: int) -> int:
        """How long the lease's day goes on; 0 before it begins, as after its end."""
        if self.config.days[self.account[lease]] == 0:
            return FAR if s.midnight == FAR else s.midnight - NOW
        return FAR if s.midnight == NOW else 0

    # --- the runner ---------------------------------------------------------------------------------------------

    def _runner(self, s: State, lease: int) -> Iterator[Step]:
        book, name = s.books[lease], self.names[lease]
        if book.state in GONE:
            yield from self._farewell(s, lease) if book.state == PARTED else ()
            return
        if self.config.farewells:
            yield from self._part(s, lease)
        if s.todo[self.owner[lease]] and self._current(s, lease):
            for estimate in self.config.estimates:
                yield from self._reserve(s, lease, estimate)
        if book.in_use and self._may_send(s, lease, RENEWAL):
            yield from self._renew(s, lease)
        for held in sorted(set(book.holds)):
            for spare in self.config.spare:
                yield self._finalize(s, lease, held, max(0, held - spare))
            if self.config.release:
                yield f"release {held} of {name}", with_book(s, lease, books.release(book, held)), ""
            if self.config.parts:
                yield from self._long_call(s, lease, held)
        for place, event in enumerate(book.unsettled):
            if event.lost:
                again = event._replace(lost=0)
                sent = with_book(s, lease, book._replace(unsettled=at(book.unsettled, place, again)))
                sent = sent._replace(queue=plus(s.queue, Message(lease, again, NOW)))
                yield f"event {event.number} of {name} is sent again", sent, ""
                if any(lease in self.before[n] for n in self.leases) and book.state == LIVE:
                    yield f"{name} gets a successor", with_book(s, lease, book._replace(state=RETIRED, deadline=0)), ""

    def _part(self, s: State, lease: int) -> Iterator[Step]:
        """The runner has done with a lease, whose events are settled; or its process ends, which has sent them all."""
        book, without = s.books[lease], self.without
        if book._replace(deadline=0) == Book() or (book.holds and "no farewell with a hold" not in without):
            return
        under_way = any(e.lease == lease for e in s.exchanges)
        if under_way and "no farewell while a question is under way" not in without:
            return
        parted = books.part(book)
        if not book.unsettled or "no farewell before events are settled, or the process ends" in without:
            yield f"{self.names[lease]} is done", with_book(s, lease, parted._replace(unsettled=())), ""
        elif self._current(s, lease) or book.state == RETIRED:
            yield f"the process of {self.names[lease]} ends", with_book(s, lease, parted), ""

    def _farewell(self, s: State, lease: int) -> Iterator[Step]:
        """It may be said late, twice, or again; an event of it may be sent again by who found it in an outbox."""
        book, name = s.books[lease], self.names[lease]
        said = Request(lease, s.run, book.granted, book.returned, farewell=book.events)
        after = self._sync(s, said)[0]
        if after != s:
            yield f"farewell of {name} after {book.events} events", after, ""
        if (again := self.fault(s, "sent again")) is not None:
            for _, number, drawn, _ in [row for row in s.ledgers[self.account[lease]].settled if row[0] == lease]:
                sent = again._replace(queue=plus(s.queue, Message(lease, books.Event(number, drawn, drawn), NOW)))
                sent = sent._replace(waiting=plus(s.waiting, lease))
                yield f"event {number} of {name}, found in an outbox, is sent again", sent, ""

    def _current(self, s: State, lease: int) -> bool:
        return s.books[lease].state == LIVE and all(s.books[n].state != LIVE for n in self.before[lease])

    def _may_send(self, s: State, lease: int, kind: int) -> bool:
        """One sync with need at a time in each event loop, and one renewal."""
        kinds = [e.kind for e in s.exchanges if e.lease == lease]
        alike, most = kinds.count(kind), self.config.top_ups if kind == TOP_UP else 1
        return alike < most and (self.config.overlap or alike == len(kinds))

    def _reserve(self, s: State, lease: int, estimate: int) -> Iterator[Step]:
        runner = self.owner[lease]
        held = books.reserve(s.books[lease], self.terms, NOW, estimate)
        if held is not None:
            after = self._excuse(self._tried(with_book(s, lease, held), runner, 1), lease)
            yield f"reserve {estimate} of {self.names[lease]} from memory", after, self._in_its_day(s, lease)
        elif s.books[lease].granted < self.config.most_granted and self._may_send(s, lease, TOP_UP):
            book, asked = books.begin_top_up(s.books[lease], self.terms, NOW, estimate, self.config.wish)
            what = f"begin top-up of {self.names[lease]}: need {asked.need}"
            yield (
                what,
                self._send(self._tried(s, runner, 1), lease, book, TOP_UP, asked, estimate, self._own_owes(s, lease)),
                "",
            )

    def _in_its_day(self, s: State, lease: int) -> str:
        return "" if self.day_left(s, lease) > 0 else "P9: a hold was made for a day that it is not"

    def _tried(self, s: State, runner: int, times: int) -> State:
        return s._replace(todo=at(s.todo, runner, s.todo[runner] - times))

    def _send(
        self, s: State, lease: int, book: Book, kind: int, asked: Asked, estimate: int = 0, moved: int = 0
    ) -> State:
        exchange = Exchange(lease, kind, NOW, asked, estimate, moved=moved)
        s = self._kept(s, lease, book)
        return s._replace(exchanges=plus(s.exchanges, exchange), focus=lease)

    def _kept(self, s: State, lease: int, book: Book) -> State:
        """`s` with another state of one lease's book; what it hands back other questions of its runner may lack."""
        if book.returned != s.books[lease].returned:
            exchanges = [
                e._replace(moved=1) if e.kind == TOP_UP and lease in self.before[e.lease] else e for e in s.exchanges
            ]
            s = s._replace(exchanges=tuple(sorted(exchanges)))
        return with_book(s, lease, book)

    def _renew(self, s: State, lease: int) -> Iterator[Step]:
        old, done = s.books[lease], None
        for idle in (False, True):
            book, asked = books.begin_renewal(old, self.terms, NOW, idle=idle)
            tells = book != old or old.unsettled or old.owed or old.deadline < NOW + self.terms.ttl - self.terms.guard
            if tells and book != done:
                done = book
                broken = "P6: recalled money was not handed back" if old.recalled and book.free else ""
                what = f"begin renewal of {self.names[lease]}: granted {asked.granted} returned {asked.returned}"
                yield what, self._send(s, lease, book, RENEWAL, asked), broken

    def _long_call(self, s: State, lease: int, held: int) -> Iterator[Step]:
        """A call of which a part is settled, or that is given another hold."""
        name, book = self.names[lease], s.books[lease]
        if held > 1:
            part = books.settle_part(book, self.terms, NOW, held, 1)
            yield self._finalized(s, lease, part, f"settle 1 of the {held} that {name} holds")
        rest = list(book.holds)
        rest.remove(held)
        for more in sorted(set(rest)):
            if more <= held:
                joined = with_book(s, lease, books.join(book, held, more))
                yield f"join holds of {held} and {more} of {name}", joined, ""

    def _finalize(self, s: State, lease: int, held: int, actual: int) -> Step:
        book = books.finalize(s.books[lease], self.terms, NOW, held, actual)
        return self._finalized(s, lease, book, f"finalize {held} of {self.names[lease]} with {actual}")

    def _finalized(self, s: State, lease: int, book: Book, what: str) -> Step:
        """The event that is the last of `book` goes on its way."""
        event = book.unsettled[-1]
        s = with_book(s, lease, book)._replace(queue=plus(s.queue, Message(lease, event, NOW)))
        s = self._ghost(s, self.account[lease], excess=event.actual - event.drawn)
        return what, s, ""

    # --- a sync: sent, served by the counter, its reply taken -----------------------------------------------------

    def _exchange(self, s: State, exchange: Exchange) -> Iterator[Step]:
        rest, name = s._replace(exchanges=less(s.exchanges, exchange)), self.names[exchange.lease]
        if exchange.reply:
            yield self._take_reply(rest, exchange)
        else:
            request = self._request(s, exchange)
            served, reply, unjust = self._sync(rest, request, exchange.estimate)
            # Of these the runner only asks whether too much is out, and of a refusal what remained.
            over = int(reply.spent + reply.leased > reply.cap)
            remaining = 0 if over or reply.answer != "REFUSED" else reply.cap - reply.spent - reply.leased
            kept = reply._replace(cap=remaining, spent=over, leased=0)
            answered = exchange._replace(reply=(unjust, *kept), day_left=self.day_left(s, exchange.lease))
            served = served._replace(exchanges=plus(served.exchanges, answered), focus=exchange.lease)
            yield f"sync of {name}: {reply.answer}, granted {reply.granted}", served, ""
            if (late := self.fault(rest, "late sync")) is not None:
                yield (
                    f"{name} waits no longer for its sync, which is on its way",
                    self._abandon(late, exchange, request),
                    "",
                )
        if (lost := self.fault(rest, "lost sync")) is not None:
            yield f"the {'reply' if exchange.reply else 'sync'} of {name} is lost", self._abandon(lost, exchange), ""

    def _request(self, s: State, exchange: Exchange) -> Request:
        asked = exchange.asked
        drawn = s.books[exchange.lease].drawn if "runner never reports drawn" in self.without else 0
        return Request(exchange.lease, s.run, asked.granted, asked.returned, asked.need, asked.want, drawn)

    def _abandon(self, s: State, exchange: Exchange, *strays: Request) -> State:
        book = books.abandon(s.books[exchange.lease], exchange.asked)
        return with_book(s, exchange.lease, book)._replace(strays=plus(s.strays, *strays))

    def _sync(self, s: State, request: Request, estimate: int = 0) -> tuple[State, counters.Reply, int]:
        account, today = self.account[request.lease], self.day_left(s, request.lease) > 0
        counter, reply = counters.sync(s.counters[account], self.terms, NOW, request, today=today)
        s = s._replace(counters=at(s.counters, account, counter))
        unjust = reply.answer == "REFUSED" and self.config.runners == 1 and not self._just(s, request.lease, estimate)
        return s, reply, int(unjust)

    def _just(self, s: State, lease: int, estimate: int) -> bool:
        """P6: whether this estimate would now truly pass the cap, given what is set aside for a runner of before."""
        account = self.account[lease]
        counter = s.counters[account]
        if counter is None:
            return True
        late_syncs = {"fold long after the last sync", "a farewell creates no lease"}
        used = s.ghosts[account].excess + sum([s.books[n].drawn for n in self.leases_of[account]])
        for n in self.leases_of[account]:
            known, book = counter.leases[n], s.books[n]
            # What a sync puts back that arrives after the fold is set aside until it is given up.
            late = s.ledgers[account].folded[n] and not late_syncs.intersection(self.without)
            drawn = 0 if late else book.drawn
            aside = known.granted - known.returned - drawn if book.state in GONE else 0
            used += max(aside, sum(book.holds))
        return used + estimate > counter.cap

    def _own_owes(self, s: State, lease: int) -> int:
        """Whether another lease of this runner may have money that counts against the runner itself."""
        if "no refusal for what a retired lease has free" in self.without:
            return 0
        retired = [s.books[n] for n in self.before[lease] if s.books[n].state == RETIRED]
        return int(s.books[lease].state == RETIRED or any(book.owes for book in retired))

    def _excuse(self, s: State, lease: int) -> State:
        """A refusal on its way is just if it was true at any moment: also when another thread has just held more."""
        exchanges = [
            e._replace(reply=(0, *e.reply[1:]))
            if e.lease == lease and e.reply and self._just(s, lease, e.estimate)
            else e
            for e in s.exchanges
        ]
        return s._replace(exchanges=tuple(sorted(exchanges)))

    def _take_reply(self, s: State, exchange: Exchange) -> Step:
        lease, name, asked, sent_at = exchange.lease, self.names[exchange.lease], exchange.asked, exchange.sent_at
        unjust, reply = exchange.reply[0], counters.Reply(*exchange.reply[1:])
        if exchange.kind == RENEWAL:
            book = books.apply(s.books[lease], self.terms, NOW, asked, sent_at, reply, exchange.day_left)
            return f"apply the reply to {name}", self._kept(s, lease, book), ""
        book, end = books.finish_top_up(
            s.books[lease], self.terms, NOW, asked, sent_at, reply, exchange.estimate, exchange.day_left
        )
        s, broken = self._kept(s, lease, book), ""
        if end == "REFUSED" and (exchange.moved or self._own_owes(s, lease)):
            end = "ASK_ANEW"
        if end == "HELD":
            broken = self._in_its_day(s, lease)
        elif end == "REFUSED" and unjust and not self._just(s, lease, exchange.estimate):
            broken = "P6: refused though it would not pass the cap"
        elif end == "ASK_ANEW":
            s = self._tried(s, self.owner[lease], -1)
        return f"finish top-up of {name}: {end}", s, broken

    # --- the worker -----------------------------------------------------------------------------------------------

    def _worker(self, s: State) -> Iterator[Step]:
        yield from self._settle_any(s)
        if len(s.publishes) < self.config.publishes:
            for account in self.accounts:
                yield from self._open(s, account)
                yield from self._change(s, account)
                yield from self._expire(s, account)
                yield from self._fold(s, account)

    def _settle_any(self, s: State, lease: int | None = None) -> Iterator[Step]:
        """Settle a message of the queue, perhaps only of one lease."""
        messages = [message for message in s.queue if lease in (None, message.lease)]
        if self.config.workers == 2:
            yield from self._begin_to_settle(s, messages)
        if len(s.publishes) < self.config.publishes:
            for message in messages if self.config.workers == 1 else ():
                account = self.account[message.lease]
                yield from self._settle(s, message, self._lock(s, account).ledgers[account])
            for each in s.settling:
                yield from self._settle(s._replace(settling=less(s.settling, each)), each[1], each[2])

    def _lock(self, s: State, account: int) -> State:
        """How a settle begins: the day's row is inserted if it is missing, then locked and read."""
        ledger = s.ledgers[account]
        if ledger.made or "day row inserted before the lock" in self.without:
            return s
        return s._replace(ledgers=at(s.ledgers, account, ledger._replace(made=1, seq=1)))

    def _begin_to_settle(self, s: State, messages: list[Message]) -> Iterator[Step]:
        busy = [worker for worker, _, _ in s.settling]
        worker = 0 if 0 not in busy else 1
        for message in messages if worker not in busy else ():
            account = self.account[message.lease]
            locked = any(self.account[m.lease] == account and seen.made for _, m, seen in s.settling)
            if not locked or "SQL row lock" in self.without:
                begun = self._lock(s, account)
                begun = begun._replace(settling=plus(s.settling, (worker, message, begun.ledgers[account])))
                what = f"worker {worker} begins to settle event {message.event.number} of {self.names[message.lease]}"
                yield what, begun, ""

    def _settle(self, s: State, message: Message, seen: Ledger) -> Iterator[Step]:
        """The rest of a settle: charge what is not settled yet of what was `seen` under the lock, commit, publish."""
        lease, event, _ = message
        account = self.account[lease]
        ledger, broken = s.ledgers[account], ""
        if not ledger.made:
            ledger = ledger._replace(made=1, seq=1)
        base = ledger.seq
        known = any(row[:2] == (lease, event.number) for row in seen.settled)
        if not known or "settled-already check" in self.without:
            left = max(0, seen.cap - seen.spent)
            charged = event.actual if "charge clamped" in self.without else min(event.actual, left)
            settled = plus(ledger.settled, (lease, event.number, event.drawn, charged))
            base = ledger.seq
            ledger = ledger._replace(spent=ledger.spent + charged, seq=base + 1, settled=settled)
            ledger = _changed(ledger, lease, folded=0)
            if charged and ledger.spent > ledger.cap:
                broken = "P1: a settlement took spent above the cap"
        elif ledger.folded[lease] and "a duplicate unfolds its lease" not in self.without:
            ledger = _changed(ledger._replace(seq=base + 1), lease, folded=0)
        done = s._replace(ledgers=at(s.ledgers, account, ledger))
        what = f"settle event {event.number} of {self.names[lease]}{', known' if known else ''}"
        acknowledged = done._replace(queue=less(s.queue, message) if message in s.queue else s.queue)
        yield what, self._enqueue(acknowledged, account, touched=lease, base=base), broken
        if (twice := self.fault(done, "duplicate message")) is not None:
            yield f"{what}; it will come again", self._enqueue(twice, account, touched=lease, base=base), broken
        if (killed := self.fault(done, "worker killed")) is not None:
            yield f"{what}; the worker is killed before it publishes", killed, broken

    def _enqueue(
        self,
        s: State,
        account: int,
        *,
        touched: int | None = None,
        row: Ledger | None = None,
        settled: Settled | None = None,
        expire_before: int = 0,
        first_until: int = 0,
        chosen: tuple[int, ...] = (),
        base: int = WHOLE,
    ) -> State:
        """Send the account's snapshot on its way; `row` and `settled` are parts of it that were read before.

        It carries what changed since `base`.
        """
        row = row or s.ledgers[account]
        settled = s.ledgers[account].settled if settled is None else settled
        seen = s.counters[account] if "a repair names what is folded" not in self.without else None
        snapshot = self.snapshot(row._replace(settled=settled), base, touched, seen)
        snapshot = snapshot._replace(expire_before=expire_before, first_until=first_until, chosen=chosen)
        decided = "expiry decided inside the script" in self.without
        focus = NONE if first_until or (chosen and decided) else WORKER
        return s._replace(publishes=plus(s.publishes, Publish(account, snapshot, settled)), focus=focus)

    def snapshot(
        self, row: Ledger, base: int = WHOLE, touched: int | None = None, seen: Counter | None = None
    ) -> Snapshot:
        """What a publish says of this row.

        `touched`: the lease that it names in any case; `seen`: the counter whose leases a repair looks for.
        """
        said = totals(row.settled, len(self.leases))
        snapshot = Snapshot(0, row.seq, row.status, row.cap, row.spent, said)
        touched = None if "a duplicate names its lease" in self.without else touched
        changed = [n for n in self.leases if base < 0 or row.changed[n] > base or n == touched]
        in_hash = [n for n in self.leases if seen and seen.leases[n].known] if base == REPAIR else []
        named = [n for n in changed if said[n][1] and not row.folded[n]]
        return snapshot._replace(
            base=base,
            totals=tuple([said[n] if n in named else () for n in self.leases]),
            drawn=sum([each[0] for each in said]),
            folded=tuple([n for n in changed if row.folded[n] and (base >= 0 or n in in_hash)]),
        )

    def _open(self, s: State, account: int) -> Iterator[Step]:
        ledger, counter = s.ledgers[account], s.counters[account]
        if not ledger.made:
            yield "open", self._enqueue(self._lock(s, account), account, first_until=NOW + self.first), ""
        elif counter is None or self.differs(s, account, counter):
            if counter and counter.run == s.run and counter.seq > ledger.seq:
                after = s._replace(ledgers=at(s.ledgers, account, ledger._replace(seq=counter.seq + 1)))
                yield (
                    "reconcile: the ledger was restored, and overtakes",
                    self._enqueue(after, account, base=REPAIR),
                    "",
                )
            else:
                yield "reconcile", self._enqueue(s, account, base=ledger.seq), ""
        if "drawn never travels without spent of the same snapshot" in self.without:
            if (account, ledger) not in s.torn:
                yield "open reads a part of the snapshot", s._replace(torn=((account, ledger),)), ""
            for _, seen in s.torn:
                rest = s._replace(torn=())
                yield "open reads the rest: what is drawn", self._enqueue(rest, account, row=seen), ""
                yield "open reads the rest: what is spent", self._enqueue(rest, account, settled=seen.settled), ""

    def sent_again(self, s: State, account: int) -> Ledger:
        """The account's row after all who wait to hear that an event is settled have sent it once more."""
        ledger = s.ledgers[account]
        for lease in s.waiting if "a duplicate unfolds its lease" not in self.without else ():
            if self.account[lease] == account and ledger.folded[lease]:
                ledger = _changed(ledger._replace(seq=ledger.seq + 1), lease, folded=0)
        return ledger

    def differs(self, s: State, account: int, counter: Counter) -> bool:
        """Whether the counter has not what the ledger says, as a script sees it."""
        ledger = s.ledgers[account]
        own = (counter.run, counter.seq, counter.status, counter.cap, counter.spent)
        drawn = sum([row[2] for row in ledger.settled])
        said = (s.run, ledger.seq, ledger.status, ledger.cap, ledger.spent)
        return own != said or counter.drawn != drawn

    def _change(self, s: State, account: int) -> Iterator[Step]:
        ledger, ghost = s.ledgers[account], s.ghosts[account]
        if not ledger.made or s.settling:
            return
        changes = [("set cap", ledger._replace(cap=cap)) for cap in self.config.caps if cap != ledger.cap]
        changes.append(("pause", ledger._replace(status=PAUSED if ledger.status == ACTIVE else ACTIVE)))
        for kind, changed in changes:
            if (after := self.fault(s, kind)) is not None:
                seq = ledger.seq if "a cap change raises seq" in self.without else ledger.seq + 1
                ghosts = at(s.ghosts, account, ghost._replace(top=max(ghost.top, changed.cap)))
                after = after._replace(ledgers=at(s.ledgers, account, changed._replace(seq=seq)), ghosts=ghosts)
                what = f"set cap to {changed.cap}" if kind == "set cap" else ("pause" if changed.status else "resume")
                yield what, self._enqueue(after, account, base=ledger.seq), ""

    def _expire(self, s: State, account: int) -> Iterator[Step]:
        """Look at the queue, then read the ledger, then publish."""
        counter, grace, before = s.counters[account], self.terms.grace, NOW
        if counter is None or counter.run != s.run:
            return
        if "fence and expire wait for the queue" not in self.without:
            before = min([NOW, *[message.sent_at for message in s.queue]])
        past = [
            number
            for number, lease in enumerate(counter.leases)
            if lease.deadline + grace < before and counters.outstanding(lease, self.terms) > 0
        ]
        if past or 0 < counter.fence_until < before - grace:
            base = s.ledgers[account].seq
            yield "expire", self._enqueue(s, account, expire_before=before, chosen=tuple(past), base=base), ""

    def _fold(self, s: State, account: int) -> Iterator[Step]:
        """Of leases whose runners said farewell only the sum is kept, in the counter as in the ledger."""
        counter, ledger, without = s.counters[account], s.ledgers[account], self.without
        if counter is None or counter.run != s.run or not self.config.farewells:
            return
        before = min([NOW, *[message.sent_at for message in s.queue]])
        for n in self.leases_of[account]:
            lease, (_, events, last_event) = counter.leases[n], totals(ledger.settled, len(self.leases))[n]
            if lease.farewell == NEVER or ledger.folded[n]:
                continue
            guards = {
                "fold what is settled": lease.farewell == events == last_event,
                "fold long after the last sync": lease.deadline + self.terms.grace < before,
            }
            if all(holds or guard in without for guard, holds in guards.items()):
                seq = ledger.seq if "a fold raises seq" in without else ledger.seq + 1
                folded = _changed(ledger._replace(seq=seq), n, folded=1)
                after = s._replace(ledgers=at(s.ledgers, account, folded))
                yield f"fold {self.names[n]}", self._enqueue(after, account, base=ledger.seq), ""

    # --- publishes on their way -------------------------------------------------------------------------------------

    def _publish(self, s: State, publish: Publish) -> Iterator[Step]:
        rest = s._replace(publishes=less(s.publishes, publish))
        account, said = publish.account, publish.snapshot._replace(run=s.run)  # The connection knows the server of now.
        before, tomorrow = s.counters[account], self.config.days[account] == 1
        ahead = tomorrow and s.midnight > NOW + self.terms.ttl
        over = not tomorrow and s.midnight == NOW
        counter, done = counters.publish(before, self.terms, NOW, said, ahead=ahead, over=over)
        if done.behind is not None:
            yield from self._repair(s, rest, publish, done.behind)
            return
        assert counter is not None
        after = rest._replace(counters=at(s.counters, account, counter))
        if done.given_up:
            after = self._count_gone(after, publish, before or counter, done)
        early = any(s.books[n].state not in GONE and s.books[n].deadline > NOW for n in done.expired)
        broken = "P4: a lease was given up whose runner renews in time" if early else ""
        if before is not None and before.seq == s.ledgers[account].seq > counter.seq:
            broken = "P3: a counter that equalled the ledger went back"
        notes = [f"publish seq {said.seq}: cap {said.cap} spent {said.spent}"]
        notes += ["opened"] * done.opened + ["fenced"] * done.fenced + ["the fence falls"] * done.lifted
        notes += [f"{done.given_up} given up"] * bool(done.given_up)
        yield ", ".join(notes), after, broken
        if (lost := self.fault(rest, "lost publish")) is not None:
            yield f"the publish of seq {said.seq} is lost", lost, ""

    def _repair(self, s: State, rest: State, publish: Publish, base: int) -> Iterator[Step]:
        """A delta was not taken: the worker reads what changed since the counter's seq, or all, and publishes that."""
        what = f"publish of {publish.snapshot.base}..{publish.snapshot.seq}: the counter is behind"
        yield what, self._enqueue(rest, publish.account, base=base), ""
        for kind in ("worker killed", "lost publish"):
            if (after := self.fault(rest, kind)) is not None:
                yield f"{what}; {kind}", after, ""

    def _count_gone(self, s: State, publish: Publish, counter: Counter, done: counters.Published) -> State:
        """Count what is truly at risk of the money given up: the holds of those who did not renew in time, and their
        events, but for those that the queue had in time."""
        gone, before, all_books = 0, publish.snapshot.expire_before, list(s.books)
        settled = {row[:2] for row in publish.settled}
        waiting = {(message.lease, message.event.number) for message in s.queue if message.sent_at < before}
        for lease in self.leases_of[publish.account]:
            overdue = counter.leases[lease].deadline + self.terms.grace < before
            if not overdue or not (lease in done.expired or done.lifted):
                continue
            book = s.books[lease]
            events = [e for e in book.unsettled if (lease, e.number) not in settled | waiting]
            known = 0 if lease in done.expired else counters.outstanding(counter.leases[lease], self.terms)
            away = sum(book.holds) + sum([e.drawn for e in events]) - known
            gone += max(0, away - book.counted)
            all_books[lease] = book._replace(counted=max(book.counted, away))
        s = s._replace(books=tuple(all_books))
        return self._ghost(s, publish.account, gone=min(gone, done.given_up))

    def _ghost(self, s: State, account: int, excess: int = 0, gone: int = 0) -> State:
        old = s.ghosts[account]
        return s._replace(ghosts=at(s.ghosts, account, Ghost(old.excess + excess, old.gone + gone, old.top)))

    # --- losses -------------------------------------------------------------------------------------------------------

    def _crash(self, s: State, runners: range | tuple[int, ...]) -> Iterator[Step]:
        """A runner is gone with its memory; requests on their way still arrive. Its next lease is for its restart."""
        after = self.fault(s, "crash")
        for runner in runners if after is not None else ():
            assert after is not None
            gone = [
                n
                for n in self.leases
                if self.owner[n] == runner and (s.books[n].state == RETIRED or self._current(s, n))
            ]
            theirs = [e for e in s.exchanges if e.lease in gone]
            if not theirs and all(s.books[n] == Book() for n in gone):
                continue
            all_books = list(s.books)
            for n in gone:
                old = s.books[n]
                all_books[n] = Book(
                    DEAD, holds=old.holds, drawn=old.drawn, unsettled=old.unsettled, counted=old.counted
                )
            strays = [self._request(s, e) for e in theirs if not e.reply]
            left = tuple([e for e in s.exchanges if e not in theirs])
            after = after._replace(books=tuple(all_books), exchanges=left, strays=plus(s.strays, *strays))
            yield f"runner {'AB'[runner]} crashes", after, ""

    def _losses(self, s: State) -> Iterator[Step]:
        if (after := self.fault(s, "lost message")) is not None:
            for message in s.queue:
                lease, event, _ = message
                kept = tuple([e._replace(lost=1) if e == event else e for e in s.books[lease].unsettled])
                lost = with_book(after, lease, s.books[lease]._replace(unsettled=kept))
                lost = lost._replace(queue=less(s.queue, message))
                yield f"the broker loses event {event.number} of {self.names[lease]}", lost, ""
        if (after := self.fault(s, "flush")) is not None:
            yield "flush", after._replace(counters=(None,) * len(self.accounts)), ""
        if (after := self.fault(s, "failover")) is not None:
            # Connections end with their server, and requests on their way with them.
            after = after._replace(
                counters=s.copies or (None,) * len(self.accounts), copies=(), strays=(), run=s.run + 1
            )
            yield "failover to the copy" if s.copies else "restart without data", after, ""
            if not s.copies:
                yield "a replica has a copy", s._replace(copies=s.counters), ""
        if (after := self.fault(s, "restore")) is not None:
            if s.backups:
                after = after._replace(ledgers=s.backups, backups=(), restored=1, settling=())
                yield "the ledger is restored from its backup", after, ""
            else:
                yield "a backup of the ledger is made", s._replace(backups=s.ledgers), ""


def _changed(ledger: Ledger, lease: int, *, folded: int) -> Ledger:
    """The row after a change of one of its leases, which is noted with the row's seq."""
    return ledger._replace(changed=at(ledger.changed, lease, ledger.seq), folded=at(ledger.folded, lease, folded))


def with_book(s: State, lease: int, book: Book) -> State:
    """`s` with another state of one lease's book."""
    return s._replace(books=at(s.books, lease, book))
