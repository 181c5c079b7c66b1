"""The steps of several budgets: one hold draws on a lease of each.

What one budget does alone is in tests.model.protocol. Here settling publishes at once, and a renewal is served when it
is sent: what overtakes what within one budget is explored there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.model import counter as counters
from tests.model import lease_book as books
from tests.model.budgets.state import (
    LOST,
    Config,
    Event,
    Ghost,
    Hold,
    Ledger,
    Message,
    Part,
    Question,
    Renewal,
    Row,
    State,
    tick,
)
from tests.model.counter import ACTIVE, REPAIR, WHOLE, Counter, Reply, Request, Snapshot
from tests.model.lease_book import DEAD, FAR, Asked, Book
from tests.model.state import NOW, at, less, plus

Step = tuple[str, State, str]


class Protocol:
    """The steps of one configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.terms, self.without = config.terms, config.terms.without
        self.budgets = range(len(config.caps))
        plans = [(agent.runner, agent.budgets) for agent in config.agents]
        plans += [(config.agents[0].runner, config.moves)] if config.moves else []
        self.leases = sorted({(runner, budget) for runner, budgets in plans for budget in budgets})
        """(runner, budget) of every lease."""
        self.leases_of = [[n for n, (_, of) in enumerate(self.leases) if of == budget] for budget in self.budgets]
        self.periods = (*config.periods, *[(0, FAR)] * (len(config.caps) - len(config.periods)))
        self.alone = len({agent.runner for agent in config.agents}) == 1
        self.tries = tuple(config.tries[min(a, len(config.tries) - 1)] for a in range(len(config.agents)))

    def initial(self) -> State:
        """The state in which nothing has happened."""
        new = (counters.NEW,) * len(self.leases)
        return State(
            clock=0,
            faults=self.config.most_faults,
            moved=0,
            todo=self.tries,
            counters=tuple([Counter(0, 1, ACTIVE, cap, 0, 0, 0, 0, new) for cap in self.config.caps]),
            books=(Book(),) * len(self.leases),
            holds=(),
            events=(),
            questions=(),
            renewals=(),
            strays=(),
            queue=(),
            ledgers=(Ledger(1, 0),) * len(self.config.caps),
            ghosts=(Ghost(),) * len(self.config.caps),
        )

    def steps(self, s: State) -> Iterator[Step]:
        """Every step that is possible from `s`."""
        for what, after, why in self._steps(s):
            yield what, self._noted(after) if after.questions else after, why

    def _steps(self, s: State) -> Iterator[Step]:
        for agent in range(len(self.config.agents)):
            yield from self._reserve(s, agent)
        for lease, book in enumerate(s.books):
            if book.state != DEAD and self.renews(book) and not any(r.lease == lease for r in s.renewals):
                yield from self._renew(s, lease)
        for hold in sorted(set(s.holds)):
            yield from self._end(s, hold)
        for question in s.questions:
            yield from self._question(s, question)
        for renewal in s.renewals:
            yield from self._renewal(s, renewal)
        for stray in s.strays:
            yield (
                f"sync of {self.name(stray.lease)}, late",
                self._sync(s._replace(strays=less(s.strays, stray)), stray)[0],
                "",
            )
        for message in s.queue:
            yield from self._settle(s, message)
        for budget in self.budgets:
            yield from self._look_after(s, budget)
        yield from self._tick(s)
        yield from self._losses(s)
        if self.config.moves and not s.moved:
            yield "agent 0 is moved to another group", s._replace(moved=1), ""

    def _noted(self, s: State) -> State:
        return s._replace(questions=tuple(sorted([q._replace(fits=int(self._fits(s, q))) for q in s.questions])))

    def _fits(self, s: State, question: Question) -> bool:
        """P6: whether this estimate has fitted all its budgets so far: only where one runner has them to itself."""
        if not question.fits or not self.alone:
            return False
        for part in question.parts:
            budget = self.leases[part.lease][1]
            counter = s.counters[budget]
            if counter is None or counter.fence_until:
                return False
            if self.truly_spent(s, budget) + question.estimate > self.config.caps[budget]:
                return False
        return True

    def truly_spent(self, s: State, budget: int) -> int:
        """What calls cost that draw on the budget, and what is held of it."""
        mine = self.leases_of[budget]
        held = sum([hold.amount for hold in s.holds for n in hold.leases if n in mine])
        return held + sum([event.actual for event in s.events for n in event.leases if n in mine])

    def name(self, lease: int) -> str:
        """The runner and the budget."""
        runner, budget = self.leases[lease]
        return f"{'AB'[runner]}/{budget}"

    def fault(self, s: State, kind: str) -> State | None:
        """The state with a fault of this kind on its account; None if there may be no more."""
        return s._replace(faults=s.faults - 1) if s.faults and kind in self.config.faults else None

    def left(self, s: State, budget: int, skew: int = 0) -> int:
        """How long the budget's period goes on; 0 before it begins, as after its end."""
        begin, end = self.periods[budget]
        clock = s.clock + skew
        return (FAR if end == FAR else end - clock) if begin <= clock < end else 0

    def drawn_on(self, s: State, agent: int, skew: int = 0) -> tuple[int, ...]:
        """The leases that a call of this agent draws on: the first is that of its own day."""
        runner, plan = self.config.agents[agent]
        plan = self.config.moves if s.moved and agent == 0 else plan
        return tuple([self.leases.index((runner, budget)) for budget in plan if self.left(s, budget, skew)])

    def renews(self, book: Book) -> bool:
        """Whether the lease is renewed: as long as its counter may have something set aside for it."""
        if "a lease is renewed until its own counter has nothing out" in self.without:
            return bool(book.free or book.holds or book.unsettled)
        return book.in_use

    # --- reserve ------------------------------------------------------------------------------------------------

    def _reserve(self, s: State, agent: int) -> Iterator[Step]:
        if not s.todo[agent] or any(q.agent == agent for q in s.questions):
            return
        for leases in sorted({self.drawn_on(s, agent, skew) for skew in self.config.skew}):
            if leases and all(
                s.books[n].state != DEAD and s.books[n].granted < self.config.most_granted for n in leases
            ):
                yield from self._reserve_of(s, agent, leases)

    def _reserve_of(self, s: State, agent: int, leases: tuple[int, ...]) -> Iterator[Step]:
        for estimate in self.config.estimates:
            tried = s._replace(todo=at(s.todo, agent, s.todo[agent] - 1))
            held = self._hold(tried, agent, leases, estimate)
            if held is not None:
                yield f"reserve {estimate} of agent {agent} from memory", held, self._in_time(s, leases)
            else:
                yield self._ask(tried, agent, leases, estimate)

    def _hold(self, s: State, agent: int, leases: tuple[int, ...], estimate: int) -> State | None:
        """Take the estimate from every lease, then look at every deadline; None if one lacks it or is dead."""
        looked_at = leases[:1] if "the deadline of every lease is looked at" in self.without else leases
        if any(s.books[n].free < estimate for n in leases) or any(s.books[n].deadline <= NOW for n in looked_at):
            return None
        for n in leases:
            book = s.books[n]
            s = self._with(s, n, book._replace(free=book.free - estimate, holds=plus(book.holds, estimate)))
        return s._replace(holds=plus(s.holds, Hold(agent, leases, estimate)))

    def _in_time(self, s: State, leases: tuple[int, ...]) -> str:
        ended = any(not self.left(s, self.leases[n][1]) for n in leases)
        return "P9: a hold was made in a period that it is not" if ended else ""

    def _ask(self, s: State, agent: int, leases: tuple[int, ...], estimate: int) -> Step:
        """Ask the counters of the leases that lack free money, and keep what the others have."""
        parts = []
        for n in leases:
            book = s.books[n]
            if book.deadline <= NOW:
                book = books.hand_back(book, self.terms)
            kept = min(book.free, estimate)
            ask = kept < estimate or book.deadline <= NOW
            more = sum([p.asked.need for q in s.questions for p in q.parts if p.lease == n and not p.reply])
            need = estimate - kept + more if ask else 0
            parts.append(Part(n, Asked(book.granted, book.returned, need, need, earmarked=kept), int(ask)))
            book = book._replace(free=book.free - kept, earmarked=book.earmarked + kept)
            s = self._with(s, n, book._replace(owed=1, unsure=1) if ask else book)
        asked = ", ".join(f"{p.asked.need} of {self.name(p.lease)}" for p in parts if p.ask)
        question = Question(agent, estimate, NOW, tuple(parts))
        return f"agent {agent} asks for {asked}", s._replace(questions=plus(s.questions, question)), ""

    def _question(self, s: State, question: Question) -> Iterator[Step]:
        rest, waits = s._replace(questions=less(s.questions, question)), False
        for place, part in enumerate(question.parts):
            if not part.ask or part.reply:
                continue
            waits, asked, name = True, part.asked, self.name(part.lease)
            request = Request(part.lease, 0, asked.granted, asked.returned, asked.need, asked.want)
            served, reply, left = self._sync(rest, request)
            done = question._replace(parts=at(question.parts, place, part._replace(reply=tuple(reply), left=left)))
            served = served._replace(questions=plus(served.questions, done))
            yield f"sync of {name}: {reply.answer}, granted {reply.granted}", served, ""
            lost = question._replace(parts=at(question.parts, place, part._replace(reply=LOST)))
            for kind, state, how in (
                ("lost sync", rest, "is lost"),
                ("lost sync", served._replace(questions=rest.questions), "is served, its reply lost"),
                ("late sync", rest._replace(strays=plus(rest.strays, request)), "is on its way; nobody waits for it"),
            ):
                if (after := self.fault(state, kind)) is not None:
                    yield f"sync of {name} {how}", after._replace(questions=plus(after.questions, lost)), ""
        if not waits:
            yield self._finish(rest, question)

    def _finish(self, s: State, question: Question) -> Step:
        """Apply the replies and reserve, or say no, or ask anew."""
        leases, granted, final = tuple([part.lease for part in question.parts]), [], False
        for part in question.parts:
            book = s.books[part.lease]
            before = book.granted
            book = book._replace(free=book.free + part.asked.earmarked, earmarked=book.earmarked - part.asked.earmarked)
            if part.ask and part.reply != LOST:
                book = self._apply(book, part.asked, question.sent_at, part.reply, part.left)
            granted.append(book.granted - before)
            s = self._with(s, part.lease, book)
        held = self._hold(s, question.agent, leases, question.estimate)
        if held is not None:
            return f"agent {question.agent} holds {question.estimate}", held, self._in_time(s, leases)
        lost = any(part.reply == LOST for part in question.parts)
        final = any(self._is_final(s.books[part.lease], part, question) for part in question.parts)
        broken = "P6: refused though it would not pass any cap" if final and not lost and question.fits else ""
        if not final and not lost:
            s = s._replace(todo=at(s.todo, question.agent, s.todo[question.agent] + 1))
            return f"agent {question.agent} asks anew", s, ""
        for part, more in zip(question.parts, granted, strict=True):
            book = s.books[part.lease]
            back = min(book.free, more) if "what was granted is handed back when refused" not in self.without else 0
            if min(book.free, more) > back:
                broken = broken or "P11: a refused reserve leaves money set aside"
            if back:
                book = book._replace(free=book.free - back, returned=book.returned + back, owed=1, unsure=1)
                s = self._with(s, part.lease, book)
        return f"agent {question.agent} is {'refused' if final else 'told that it is unavailable'}", s, broken

    def _is_final(self, book: Book, part: Part, question: Question) -> bool:
        """Whether this lease's refusal is the answer: not if what others keep of it would have been enough."""
        if not part.reply or part.reply[0] != "REFUSED" or NOW - question.sent_at > self.terms.guard:
            return False
        if (
            book.returned != part.asked.returned
            and "a refusal stands only for the totals that it was asked with" not in self.without
        ):
            return False
        if "a refusal waits for what others keep" in self.without:
            return True
        if not book.earmarked and "what came free or was needed by others counts, too" in self.without:
            return True
        reply = Reply(*part.reply)
        remaining = max(0, reply.cap - reply.spent - reply.leased)
        return question.estimate > book.free + book.earmarked + remaining

    # --- renewals -----------------------------------------------------------------------------------------------

    def _renew(self, s: State, lease: int) -> Iterator[Step]:
        old, done = s.books[lease], None
        for idle in (False, True) if self.config.idle else (False,):
            book, asked = books.begin_renewal(old, self.terms, NOW, idle=idle)
            tells = book != old or old.unsettled or old.owed or old.deadline < NOW + self.terms.ttl - self.terms.guard
            if not tells or book == done:
                continue
            done = book
            request = Request(lease, 0, asked.granted, asked.returned)
            sent = self._with(s, lease, book)
            served, reply, left = self._sync(sent, request)
            renewal = Renewal(lease, asked, NOW, tuple(reply), left)
            what = f"renew {self.name(lease)}: granted {asked.granted} returned {asked.returned}"
            waits = served._replace(renewals=plus(s.renewals, renewal))
            if self.config.apart:
                yield what, waits, ""
            else:
                applied = self._apply(book, asked, NOW, renewal.reply, left)
                yield what, self._with(served, lease, applied), ""
                if (slow := self.fault(waits, "slow sync")) is not None:
                    yield f"{what}; its reply is slow", self._slow(slow), ""
            unsure = self._with(sent, lease, book._replace(owed=1, unsure=1))
            if (lost := self.fault(unsure, "lost sync")) is not None:
                yield f"{what}, which is lost", lost, ""
            if (late := self.fault(unsure, "late sync")) is not None:
                yield f"{what}, which is late", late._replace(strays=plus(s.strays, request)), ""

    def _renewal(self, s: State, renewal: Renewal) -> Iterator[Step]:
        rest = s._replace(renewals=less(s.renewals, renewal))
        lease = renewal.lease
        book = self._apply(s.books[lease], renewal.asked, renewal.sent_at, renewal.reply, renewal.left)
        yield f"apply the reply to {self.name(lease)}", self._with(rest, lease, book), ""
        if (lost := self.fault(rest, "lost sync")) is not None:
            unsure = s.books[lease]._replace(owed=1, unsure=1)
            yield f"the reply to {self.name(lease)} is lost", self._with(lost, lease, unsure), ""

    def _apply(self, book: Book, asked: Asked, sent_at: int, said: tuple[Any, ...], left: int) -> Book:
        """The reply of one counter."""
        return books.apply(book, self.terms, NOW, asked, sent_at, Reply(*said), left)

    def _sync(self, s: State, request: Request) -> tuple[State, Reply, int]:
        budget = self.leases[request.lease][1]
        left = self.left(s, budget)
        counter, reply = counters.sync(s.counters[budget], self.terms, NOW, request, today=left > 0)
        return s._replace(counters=at(s.counters, budget, counter)), reply, left

    # --- finalize and release -----------------------------------------------------------------------------------

    def _end(self, s: State, hold: Hold) -> Iterator[Step]:
        if any(s.books[n].state == DEAD for n in hold.leases):
            return
        for spare in self.config.spare:
            yield self._finalize(s, hold, max(0, hold.amount - spare))
        if self.config.release:
            after = self._ended(s, hold, freed=(hold.amount,) * len(hold.leases))
            yield f"release {hold.amount} of agent {hold.agent}", after, ""

    def _finalize(self, s: State, hold: Hold, actual: int) -> Step:
        """An overage takes from each lease what that one has free; each gets back what is left of its hold."""
        over = max(0, actual - hold.amount)
        free = [s.books[n].free if s.books[n].deadline > NOW else 0 for n in hold.leases]
        taken = [min(free)] * len(free) if "an overage takes what each lease has free" in self.without else free
        all_held = [hold.amount + min(over, have) for have in taken]
        number = 1 + s.books[hold.leases[0]].events
        event = Event(number, hold.agent, hold.leases, actual, tuple(all_held))
        freed = [hold.amount - min(actual, held) for held in all_held]
        s = self._ended(s, hold, tuple(freed))
        for n, have in zip(hold.leases, free, strict=True):
            book, budget = s.books[n], self.leases[n][1]
            book = book._replace(owed=1) if "what an event draws is out" not in self.without else book
            if n == event.own:
                book = book._replace(events=number, unsettled=(*book.unsettled, event))  # type: ignore[arg-type]
            s = self._with(s, n, book)
            ghost = s.ghosts[budget]
            excess = ghost.excess + max(0, over - have)
            s = s._replace(ghosts=at(s.ghosts, budget, ghost._replace(excess=excess)))
        s = s._replace(events=plus(s.events, event), queue=plus(s.queue, Message(event, NOW)))
        return f"finalize {hold.amount} of agent {hold.agent} with {actual}", s, ""

    def _ended(self, s: State, hold: Hold, freed: tuple[int, ...]) -> State:
        """The hold is over; its leases get back this much, less than nothing where an overage took more."""
        for n, back in zip(hold.leases, freed, strict=True):
            book = s.books[n]
            s = self._with(s, n, book._replace(free=book.free + back, holds=less(book.holds, hold.amount)))
        return s._replace(holds=less(s.holds, hold))

    # --- the worker ---------------------------------------------------------------------------------------------

    def _settle(self, s: State, message: Message) -> Iterator[Step]:
        """One transaction over all rows of the event, then a publish of each budget, of which any may get lost."""
        event = message.event
        done = s._replace(queue=less(s.queue, message))
        known = any(row[:2] == (event.own, event.number) for row in s.ledgers[self.leases[event.own][1]].settled)
        leases = event.leases
        if "settle charges the budgets that the event names" in self.without:
            leases = self.drawn_on(s, event.agent)
        broken, budgets = "", [self.leases[n][1] for n in leases]
        for n, held, budget in zip(leases, event.held, budgets, strict=False):
            ledger = done.ledgers[budget]
            if known and "settled-already check" not in self.without:
                continue
            left = max(0, self.config.caps[budget] - ledger.spent)
            charged = event.actual if "charge clamped" in self.without else min(event.actual, left)
            row = Row(event.own, event.number, n, min(event.actual, held), charged)
            ledger = Ledger(ledger.seq + 1, ledger.spent + charged, plus(ledger.settled, row))
            if ledger.spent > self.config.caps[budget] and charged:
                broken = "P1: a settlement took spent above the cap"
            done = done._replace(ledgers=at(done.ledgers, budget, ledger))
            apart = "an event's rows are written in one transaction" in self.without
            if apart and (killed := self.fault(done, "worker killed")) is not None:
                again = killed._replace(queue=plus(killed.queue, message))
                yield f"settle event {event.number} of {self.name(event.own)} in part; killed", again, ""
        what = f"settle event {event.number} of {self.name(event.own)}{', known' if known else ''}"
        published = done
        for budget in budgets:
            published = self.published(published, budget)
        yield what, published, broken
        if (twice := self.fault(published, "duplicate message")) is not None:
            yield f"{what}; it will come again", twice._replace(queue=plus(twice.queue, message)), broken
        if (killed := self.fault(done, "worker killed")) is not None:
            for some in range(1 << len(budgets)):
                after = killed
                told = [budget for place, budget in enumerate(budgets) if some >> place & 1]
                for budget in told:
                    after = self.published(after, budget)
                if len(told) < len(budgets):
                    yield f"{what}; the worker is killed when it has published {told}", after, broken

    def snapshot(self, s: State, budget: int, expire_before: int = 0) -> Snapshot:
        """What a publish of the budget says: an event is counted on the lease of the agent's own day alone."""
        ledger, found = s.ledgers[budget], [(0, 0, 0)] * len(self.leases)
        for own, number, lease, drawn, _ in ledger.settled:
            old = found[lease]
            counted = (old[1] + 1, max(old[2], number)) if own == lease else old[1:]
            found[lease] = (old[0] + drawn, *counted)
        said = Snapshot(0, ledger.seq, ACTIVE, self.config.caps[budget], ledger.spent, (), expire_before)
        return said._replace(
            totals=tuple([each if any(each) else () for each in found]),
            chosen=tuple(range(len(found))),
            base=WHOLE if s.counters[budget] is None else REPAIR,
            drawn=sum([each[0] for each in found]),
        )

    def published(self, s: State, budget: int) -> State:
        """The budget's snapshot has reached its counter."""
        counter, _ = counters.publish(s.counters[budget], self.terms, NOW, self.snapshot(s, budget))
        return s._replace(counters=at(s.counters, budget, counter))

    def _look_after(self, s: State, budget: int) -> Iterator[Step]:
        """Reconcile, or expire what was not renewed in time."""
        counter, ledger = s.counters[budget], s.ledgers[budget]
        if counter is None or (counter.seq, counter.spent) != (ledger.seq, ledger.spent):
            yield f"reconcile budget {budget}", self.published(s, budget), ""
        if counter is None:
            return
        before = min([NOW, *[message.sent_at for message in s.queue]])
        grace = self.terms.grace
        past = [
            n
            for n, lease in enumerate(counter.leases)
            if lease.deadline + grace < before and counters.outstanding(lease, self.terms)
        ]
        if not past and not 0 < counter.fence_until < before - grace:
            return
        said = self.snapshot(s, budget, before)
        over = s.clock >= self.periods[budget][1]
        told, done = counters.publish(counter, self.terms, NOW, said, over=over)
        assert told is not None
        after = s._replace(counters=at(s.counters, budget, told))
        after, broken = self._count_gone(after, budget, counter, before, done)
        yield f"expire budget {budget}: {done.given_up} given up", after, broken

    def _count_gone(
        self, s: State, budget: int, counter: Counter, before: int, done: counters.Published
    ) -> tuple[State, str]:
        """Count what is truly at risk of the money given up: holds, and events that the queue did not have in time."""
        gone, broken, all_books = 0, "", list(s.books)
        settled = {row[:2] for row in s.ledgers[budget].settled}
        waiting = {(m.event.own, m.event.number) for m in s.queue if m.sent_at < before}
        for n in self.leases_of[budget]:
            book = s.books[n]
            overdue = counter.leases[n].deadline + self.terms.grace < before
            if not overdue or not (n in done.expired or done.lifted):
                continue
            away = sum([hold.amount for hold in s.holds if n in hold.leases])
            for event in s.events:
                if n in event.leases and (event.own, event.number) not in settled | waiting:
                    away += min(event.actual, event.held[event.leases.index(n)])
            known = 0 if n in done.expired else counters.outstanding(counter.leases[n], self.terms)
            gone += max(0, away - known - book.counted)
            all_books[n] = book._replace(counted=max(book.counted, away - known))
            alive = book.state != DEAD and n in done.expired
            if alive and (book.deadline > NOW or (away and not self.renews(book))):
                broken = "P4: a lease was given up whose runner renews in time, or would not renew it"
        ghost = s.ghosts[budget]
        ghost = ghost._replace(gone=ghost.gone + min(gone, done.given_up))
        return s._replace(books=tuple(all_books), ghosts=at(s.ghosts, budget, ghost)), broken

    # --- time and losses ----------------------------------------------------------------------------------------

    def _tick(self, s: State) -> Iterator[Step]:
        if not self.config.ticks:
            return
        if all(q.slow for q in s.questions) and all(r.slow for r in s.renewals):
            yield "tick", tick(s, self.config), ""
        elif (slow := self.fault(s, "slow sync")) is not None:
            yield "tick, while a sync is under way", tick(self._slow(slow), self.config), ""

    def _slow(self, s: State) -> State:
        return s._replace(
            questions=tuple(sorted([q._replace(slow=1) for q in s.questions])),
            renewals=tuple(sorted([r._replace(slow=1) for r in s.renewals])),
        )

    def _losses(self, s: State) -> Iterator[Step]:
        if (after := self.fault(s, "lost message")) is not None:
            for message in s.queue:
                yield (
                    f"the broker loses event {message.event.number} of {self.name(message.event.own)}",
                    self._lost(after, message),
                    "",
                )
        for n, book in enumerate(s.books):
            for place, event in enumerate(book.unsettled):
                if event.lost and book.state != DEAD:
                    again = event._replace(lost=0)
                    sent = self._with(s, n, book._replace(unsettled=at(book.unsettled, place, again)))
                    sent = sent._replace(queue=plus(s.queue, Message(again, NOW)))  # type: ignore[arg-type]
                    yield f"event {event.number} of {self.name(n)} is sent again", sent, ""
        if (after := self.fault(s, "flush")) is not None:
            for budget in self.budgets:
                if s.counters[budget] is not None:
                    yield f"flush of budget {budget}", after._replace(counters=at(s.counters, budget, None)), ""
        if (after := self.fault(s, "crash")) is not None:
            for runner in {runner for runner, _ in self.leases}:
                yield f"runner {'AB'[runner]} crashes", self._crashed(after, runner), ""

    def _lost(self, s: State, message: Message) -> State:
        own = message.event.own
        unsettled: tuple[Any, ...] = s.books[own].unsettled
        kept = tuple([e._replace(lost=1) if e == message.event else e for e in unsettled])
        return self._with(s._replace(queue=less(s.queue, message)), own, s.books[own]._replace(unsettled=kept))

    def _crashed(self, s: State, runner: int) -> State:
        for n, (of, _) in enumerate(self.leases):
            if of == runner:
                s = self._with(s, n, Book(DEAD, counted=s.books[n].counted))
        mine = [q for q in s.questions if self.config.agents[q.agent].runner == runner]
        on_their_way = [
            Request(p.lease, 0, p.asked.granted, p.asked.returned, p.asked.need, p.asked.want)
            for q in mine
            for p in q.parts
            if p.ask and not p.reply
        ]
        todo = [0 if agent.runner == runner else left for agent, left in zip(self.config.agents, s.todo, strict=True)]
        return s._replace(
            todo=tuple(todo),
            questions=tuple([q for q in s.questions if q not in mine]),
            renewals=tuple([r for r in s.renewals if self.leases[r.lease][0] != runner]),
            strays=plus(s.strays, *on_their_way),
        )

    def _with(self, s: State, lease: int, book: Book) -> State:
        return s._replace(books=at(s.books, lease, book))
