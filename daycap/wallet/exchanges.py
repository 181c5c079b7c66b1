"""What book and counter say to each other: each sync is built, and its reply applied, without I/O in between.

The free money of a lease is earmarked for the question that it is part of.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Generic

from daycap.clock import day_of
from daycap.errors import (
    AgentPaused,
    BudgetUnavailable,
    CapExceeded,
    FullBudget,
    InvalidInput,
    UnknownAgent,
)
from daycap.money import MAX_MICROS
from daycap.protocol.counter import Answer, SyncReply, SyncRequest
from daycap.protocol.labels import Labels
from daycap.protocol.plan import ENFORCE, MOST_BUDGETS, NO_PLAN, Plan
from daycap.protocol.runs import ONCE, Run
from daycap.protocol.wire import Share
from daycap.wallet.hold import H, Pending
from daycap.wallet.holds import Holds
from daycap.wallet.joined import JoinedRuns
from daycap.wallet.lease import Lease, Route
from daycap.wallet.unsettled import Unsettled

logger = logging.getLogger("daycap")

_MS = 1_000_000

_SHORTEST_WINDOW_NS = 100 * _MS
"""A rate measured over a shorter window is mostly noise."""


class Exchanges(Generic[H]):
    """The syncs of `book`.

    `guard_ms` is how long before the counter's deadline this process stops using a lease, and how old an answer may be.
    `slice_seconds` is how many seconds of an agent's use to lease ahead, 0 for none.
    """

    def __init__(self, book: Holds[H], unsettled: Unsettled, guard_ms: int, slice_seconds: float) -> None:
        self._book, self._unsettled = book, unsettled
        self._guard_ns = guard_ms * _MS
        self.slice_seconds = slice_seconds
        self.clear()

    def clear(self) -> None:
        """Start with no question. Called in a forked child."""
        self._questions = count(1)
        self._plans = {NO_PLAN.id: NO_PLAN}
        """Every plan that was read. A plan never changes."""
        self.runs = JoinedRuns()
        self._deadline_ns = 0
        self.ttl_ms = 0
        """The shortest known ttl of a lease in use; 0 if there is none."""

    # --- topping up: one reservation that memory cannot serve ---------------------------------------------

    def begin_hand_back(self, agent: str, labels: Labels = ()) -> list[Pending]:
        """Build a sync for each retired lease that still has money of the call's budgets, to hand that money back."""
        book = self._book
        if not book.leases.replaced:
            return []
        now_ns, now_ms = book.now_ns(), book.clock.now_ms()
        with book.lock:
            book.catch_up_locked()
            lease = book.leases.current.get(agent)
            route = lease.routes.get(labels) if lease is not None else None
            owners = [agent, *(other.agent for other in (route.others if route else ()))]
            leases = [each for owner in owners for each in book.leases.replaced.get(owner, ())]
            return [
                self._report(each, each.free, now_ns)
                for each in leases
                if not each.over(now_ms) and (each.unsure or each.free)
            ]

    def begin_top_up(self, agent: str, estimate: int, labels: Labels = ()) -> Pending:
        """Build the sync that asks for what `estimate` needs beyond the leases' own free money.

        What is free of each lease, up to the estimate, is earmarked for this reservation alone until `finish_top_up`
        or `abandon` puts it back. The agent's own day is always asked: its reply tells the plan in force. Other budgets
        are asked (`Pending.others`) if their leases lack money. Preferably one at a time per agent: of two concurrent
        ones, one may have to ask again.
        """
        book = self._book
        now_ns, now_ms = book.now_ns(), book.clock.now_ms()
        with book.lock:
            book.catch_up_locked()
            lease = book.leases.find(agent, day_of(now_ms), estimate, now_ns)
            route = self._find_route(lease, labels, estimate, now_ns, now_ms)
            pending = self._ask(lease, estimate, now_ns)
            pending.labels = labels
            for other in route.others if route is not None else ():
                if other.local:
                    pending.kept = (*pending.kept, self._keep_local(other, estimate, now_ns, now_ms))
                    continue
                lacks = other.free < estimate or now_ns >= other.deadline_ns
                also = self._ask(other, estimate, now_ns)
                if lacks:
                    pending.others = (*pending.others, also)
                else:
                    pending.kept = (*pending.kept, also)
        return pending

    def finish_top_up(
        self, pending: Pending, reply: SyncReply, estimate: int, others: Sequence[SyncReply] = ()
    ) -> H | None:
        """Apply the replies and reserve. Returns None to ask again; raises the error that matches the refusal.

        `others` are the replies to `Pending.others`. Raises `CapExceeded`, `AgentPaused`, `UnknownAgent` or, for a
        fence, `BudgetUnavailable`.
        """
        book = self._book
        lease = pending.lease
        replies = list(zip(pending.all, (reply, *others), strict=True))
        with book.lock:
            book.catch_up_locked()
            for each in (*pending.all, *pending.kept):
                book.put_back(each)
        for each, its in replies:
            self.apply(each, its)
        late = book.now_ns() - pending.sent_ns > self._guard_ns
        if reply.answer is Answer.PAUSED:
            raise AgentPaused(lease.agent)
        if reply.answer is Answer.UNKNOWN_AGENT:
            raise UnknownAgent(lease.agent)
        if not all(its.answer.taken for _, its in replies):
            return None
        if (hold := book.reserve(lease.agent, estimate, pending.labels)) is not None:
            return hold
        if late or self.lacks_plan(lease.agent):
            return None  # A refusal names every budget that is full.
        with book.lock:
            book.catch_up_locked()
            now_ms = book.clock.now_ms()
            replies += [(each, _local_reply(each.lease, now_ms)) for each in pending.kept if each.lease.local]
            final = [(each, its) for each, its in replies if self._is_final(each, its, estimate)]
            if any(its.answer is Answer.FENCED for _, its in final):
                raise BudgetUnavailable(
                    f"agent {lease.agent}: the counter lost its data and lends nothing until live runners had time to "
                    "restore their leases; try again in a minute"
                )
            if final:
                raise self._refusal(lease, final, estimate)
        return None

    def _is_final(self, pending: Pending, reply: SyncReply, estimate: int) -> bool:
        """Return whether the reply refuses, and nothing since may have made it wrong. The lock is held."""
        book, lease = self._book, pending.lease
        if reply.answer not in (Answer.FENCED, Answer.REFUSED) or lease.returned != pending.request.returned_micros:
            return False
        if book.leases.current.get(lease.agent) is not lease or pending.handed_back is None:
            return False  # Another lease of this owner may still hand money back.
        if book.leases.handed_back(lease) != pending.handed_back:
            return False
        remaining = 0
        if reply.answer is Answer.REFUSED:
            remaining = max(0, reply.cap_micros - reply.spent_micros - reply.leased_micros)
        # Other questions may put back what they earmark.
        return estimate > lease.free + lease.earmarked + remaining

    def begin_return(self, before: Mapping[Lease, int]) -> Pending | None:
        """Build the syncs, in one exchange, that hand back what a question was granted that ends without a hold.

        `before` is what each lease had been granted when it was first asked for more. None if there is nothing to hand
        back, or if one lease alone was asked: what it was granted is the agent's own.
        """
        book = self._book
        now_ns = book.now_ns()
        if len(before) < 2:
            return None
        with book.lock:
            book.catch_up_locked()
            back = [(lease, min(lease.free, lease.granted - granted)) for lease, granted in before.items()]
            reports = [self._report(lease, amount, now_ns) for lease, amount in back if amount > 0]
        if not reports:
            return None
        first, *others = reports
        first.others = tuple(others)
        return first

    def abandon(self, pending: Pending) -> None:
        """Put earmarked money back after a sync without an answer. The next sync reports what was granted unseen."""
        book = self._book
        with book.lock:
            book.catch_up_locked()
            for each in (*pending.all, *pending.kept):
                book.put_back(each)
            for each in pending.all:
                each.lease.owed_ns, each.lease.unsure = book.now_ns(), True

    def learn_plan(self, agent: str, plan: Plan) -> None:
        """Note the plan that the counter has for the agent now."""
        self._plans[plan.id] = plan
        with self._book.lock:
            lease = self._book.leases.current.get(agent)
            if lease is not None and lease.plan != plan.id:
                lease.plan, lease.routes = plan.id, {}

    def lacks_plan(self, agent: str) -> bool:
        """Return whether the agent's plan in force must be read first."""
        lease = self._book.leases.current.get(agent)
        return lease is not None and lease.plan not in self._plans

    def _find_route(self, lease: Lease, labels: Labels, estimate: int, now_ns: int, now_ms: int) -> Route | None:
        """Return the leases of the call's other budgets in their current periods; None if the plan is not known."""
        plan = self._plans.get(lease.plan)
        if plan is None:
            return None
        if not plan.budgets and not labels:
            lease.routes.pop(labels, None)
            return None
        others, watched = [], []
        for run in self.runs.of(labels, now_ms):
            others.append(self._book.leases.find(run.id, ONCE, estimate, now_ns, (0, run.end_ms)))
        for each in plan.of_call(labels):
            period = each.rule.at(now_ms)
            if not each.rule.contains(now_ms):
                continue  # It has ended.
            if each.mode == ENFORCE:
                span = (period.start_ms, period.end_ms)
                others.append(self._book.leases.find(each.budget, period.id, estimate, now_ns, span))
            else:
                watched.append(Share(each.budget, period.id))
        if len(others) + len(watched) >= MOST_BUDGETS:
            raise InvalidInput(f"agent {lease.agent}: a call counts in at most {MOST_BUDGETS} budgets")
        return self._book.add_route(lease, Route(plan.id, labels, tuple(others), tuple(watched)))

    def begin_run(self, run: Run, outer: tuple[Run, ...], member: object, *, local: bool) -> None:
        """Let calls have the run's label. A `local` run is known to this process alone, which has all of its cap."""
        book = self._book
        now_ns, now_ms = book.now_ns(), book.clock.now_ms()
        with book.lock:
            book.catch_up_locked()
            if local:
                lease = book.leases.find(run.id, ONCE, 0, now_ns, (0, run.end_ms))
                lease.local, lease.granted = True, run.cap_micros
                lease.deadline_ns = now_ns + (run.end_ms - now_ms) * _MS
            self.runs.begin(run, outer, member)

    def end_run(self, run: Run, member: object) -> None:
        """End the run for this member. After the last one, make no more holds with its label, and keep no lease."""
        book = self._book
        with book.lock:
            book.catch_up_locked()
            for over in self.runs.end(run, member):
                lease = book.leases.current.get(over.id)
                if lease is None:
                    continue
                if lease.local:
                    lease.deadline_ns = 0
                    del book.leases.current[over.id]
                else:
                    book.leases.replace(lease)  # Renewed until nothing of it is out.

    def _keep_local(self, lease: Lease, estimate: int, now_ns: int, now_ms: int) -> Pending:
        """Earmark what the lease of a local run has free, up to the estimate."""
        if not (self._book.closed or self._book.asks_always):
            lease.deadline_ns = now_ns + (lease.bounds[1] - now_ms) * _MS
        return self._ask(lease, estimate, now_ns)

    def _ask(self, lease: Lease, estimate: int, now_ns: int) -> Pending:
        """Earmark what the lease has free, up to the estimate, and build the sync that asks for the rest."""
        book = self._book
        if now_ns >= lease.deadline_ns and not lease.local:
            _hand_back(lease, lease.free, now_ns)
        lease.owed_ns, lease.unsure = now_ns, True
        earmarked = min(lease.free, estimate)
        need = estimate - earmarked
        elapsed_ns = max(now_ns - lease.window_ns, _SHORTEST_WINDOW_NS)
        rate = max(lease.rate, lease.used * 1e9 / elapsed_ns)
        want = min(need + int(rate * self.slice_seconds), MAX_MICROS)
        request = SyncRequest(
            lease.agent, lease.day, lease.id, lease.granted, lease.returned, need, want, span=lease.span
        )
        pending = Pending(book, lease, request, now_ns, earmarked)
        pending.handed_back = book.leases.handed_back(lease)
        number = pending._number = next(self._questions)
        out = lease.out
        try:
            lease.questions[number] = earmarked
            lease.out = out + earmarked
            pending._ended = False
        except BaseException:  # From a signal handler.
            if pending.ended:
                lease.out = out
                lease.questions.pop(number, None)
            raise
        return pending

    # --- renewing: every lease in use, in batches ----------------------------------------------------------

    def leases(self) -> Sequence[Lease]:
        """Return all leases, to be renewed, and refresh `ttl_ms`."""
        book = self._book
        book.catch_up()
        with book.lock:
            leases, ttl_ms = book.leases.all(), self.ttl_ms
        shortest_ms = min((lease.ttl_ms for lease in leases if lease.ttl_ms and lease.in_use), default=0)
        with book.lock:
            if self.ttl_ms == ttl_ms:  # Otherwise a reply has changed it meanwhile.
                self.ttl_ms = shortest_ms
        return leases

    def begin_renewal(self, leases: Sequence[Lease], *, hand_back: bool) -> list[Pending]:
        """Build a sync for each lease in use, handing back its idle money, or with `hand_back` all free money.

        Pass a few hundred leases at most: calls that reserve or finalize wait meanwhile. Removes leases that are no
        longer needed.
        """
        book = self._book
        now_ns, now_ms = book.now_ns(), book.clock.now_ms()
        pending: list[Pending] = []
        forgotten: list[Lease] = []
        with book.lock:
            book.catch_up_locked()
            for lease in leases:
                if book.leases.tidy(lease, now_ms) and lease.live_holds:
                    forgotten.append(lease)
                if not lease.in_use or lease.expired(now_ms):
                    continue
                dead = now_ns >= lease.deadline_ns
                back = lease.free if hand_back or lease.recalled or dead else self._idle(lease, now_ns)
                pending.append(self._report(lease, back, now_ns))
        for lease in forgotten:
            logger.error(
                "dropping %d holds of agent %s on %s that were never ended", lease.live_holds, lease.agent, lease.day
            )
        return pending

    def begin_farewell(self, *, handed_over: bool) -> list[Pending]:
        """Build the last sync of each lease of which nothing is left, so that the counter can forget it.

        `handed_over`: events that are not known to be settled do not count, because nobody will send them again. Call
        it after `close`.
        """
        book = self._book
        now_ns = book.now_ns()
        with book.lock:
            book.catch_up_locked()
            return [
                self._report(lease, lease.free, now_ns, farewell=lease.finalized if lease.span is None else lease.drawn)
                for lease in book.leases.all()
                if lease.granted
                and not lease.local
                and not lease.questions
                and (lease.held == 0 if lease.span else not lease.live_holds and (handed_over or not lease.unsettled))
            ]

    def apply(self, pending: Pending, reply: SyncReply) -> bool:
        """Apply the counter's reply. Returns True if money that this lease has free is to be handed back at once."""
        book = self._book
        now_ns = book.now_ns()
        if now_ns - pending.sent_ns > self._guard_ns:
            return False  # Too old: what it grants may be lent to others by now. The next sync repeats it.
        lease = pending.lease
        with book.lock:
            book.catch_up_locked()
            book.clock.hear(reply.now_ms)
            if not reply.answer.taken:
                if lease.granted == 0:
                    lease.owed_ns = 0
                return False
            lease.ttl_ms = reply.ttl_ms
            self.ttl_ms = min(self.ttl_ms or reply.ttl_ms, reply.ttl_ms)
            if now_ns >= lease.deadline_ns:
                # The free money of a dead lease may be given up and lent to others by now: no answer revives it.
                _hand_back(lease, lease.free, now_ns)
            lease.cap, lease.spent, lease.leased = reply.cap_micros, reply.spent_micros, reply.leased_micros
            # Granted to a question whose answer was lost or too late: nobody needs it any more.
            unasked = not lease.questions and reply.granted_micros > lease.granted and not pending.request.need_micros
            lease.granted = max(lease.granted, reply.granted_micros)
            # A lease is as dead before its day begins as after it ends.
            start_ms, end_ms = lease.bounds
            day_left_ms = end_ms - reply.now_ms if start_ms <= reply.now_ms < end_ms else 0
            # The guard protects against what the counter does at its deadline. At the end of the day the counter does
            # nothing: a hold made just before may be sent just after.
            deadline_ns = pending.sent_ns + min(reply.ttl_ms * _MS - self._guard_ns, day_left_ms * _MS)
            if deadline_ns != self._deadline_ns:
                self._deadline_ns = deadline_ns
            deadline_ns = self._deadline_ns  # Leases renewed together share one int object, which stays in the cache.
            # If the agent is paused or over its cap, make no new hold from memory, not even from money that a finalize
            # frees later.
            paused = reply.answer is Answer.PAUSED
            retired = book.leases.current.get(lease.agent) is not lease
            over_cap = reply.spent_micros + reply.leased_micros > reply.cap_micros
            must_ask = paused or retired or over_cap or book.closed or book.asks_always
            lease.deadline_ns = 0 if must_ask else max(lease.deadline_ns, deadline_ns)
            if reply.plan != lease.plan:
                lease.plan, lease.routes = reply.plan, {}  # In force for new holds from now on.
            lease.recalled = reply.recall
            lease.drawn = max(lease.drawn, reply.drawn_micros)
            self._unsettled.hear(lease, reply, now_ns)
            # A reply to a sync from before a grant does not say what is out.
            outstanding = lease.granted - pending.request.returned_micros - reply.drawn_micros
            if pending.sent_ns >= lease.owed_ns:
                lease.unsure = lease.returned != pending.request.returned_micros
                if outstanding <= 0:
                    lease.owed_ns = 0
            return (reply.recall or paused or unasked) and lease.free > 0

    # --- private; the lock is held --------------------------------------------------------------------------

    def _report(self, lease: Lease, back: int, now_ns: int, farewell: int | None = None) -> Pending:
        """Hand back `back` and build the sync that reports the lease's totals."""
        _hand_back(lease, back, now_ns)
        totals = (lease.granted, lease.returned)
        request = SyncRequest(lease.agent, lease.day, lease.id, *totals, farewell=farewell, span=lease.span)
        return Pending(self._book, lease, request, now_ns)

    def _refusal(self, lease: Lease, final: list[tuple[Pending, SyncReply]], estimate: int) -> CapExceeded:
        """Build the error that names every budget that was full; the amounts of each add up to its cap."""
        return CapExceeded(lease.agent, estimate, [self._full(each.lease, reply) for each, reply in final])

    def _full(self, lease: Lease, reply: SyncReply) -> FullBudget:
        own = [lease, *(other for other in self._book.leases.replaced.get(lease.agent, ()) if other.day == lease.day)]
        aside = min(reply.leased_micros, sum(each.aside for each in own))
        free = min(aside, lease.free)
        held = min(aside - free, max(0, sum(each.held for each in own) - self._unsettled_of(own)))
        return FullBudget(
            budget=None if lease.span is None else lease.agent,
            period=lease.day,
            cap_micros=reply.cap_micros,
            spent_micros=reply.spent_micros,
            held_micros=held,
            waiting_micros=aside - free - held,
            leased_micros=reply.leased_micros - aside,
            remaining_micros=reply.cap_micros - reply.spent_micros - reply.leased_micros + free,
            ends_in_s=(lease.bounds[1] - reply.now_ms) / 1000,
        )

    def _unsettled_of(self, leases: list[Lease]) -> int:
        """Return what events of this process draw on these leases of another budget and are not known to be settled."""
        ids = {lease.id for lease in leases if lease.span is not None}
        return sum(
            min(event.actual_micros, event.held_micros if share.held_micros is None else share.held_micros)
            for each in (self._book.leases.all() if ids else ())
            for event in each.unsettled
            for share in event.also
            if share.lease in ids
        )

    def _idle(self, lease: Lease, now_ns: int) -> int:
        """Return the free money beyond a slice at the higher rate of the last two windows, and start a new window."""
        elapsed_ns = now_ns - lease.window_ns
        if elapsed_ns < _SHORTEST_WINDOW_NS:
            return 0
        rate = lease.used * 1e9 / elapsed_ns
        idle = max(0, lease.free - int(max(rate, lease.rate) * self.slice_seconds))
        lease.rate, lease.used, lease.window_ns = rate, 0, now_ns
        return idle


def _local_reply(lease: Lease, now_ms: int) -> SyncReply:
    """Return what a counter would say of a run that has only this lease."""
    leased = lease.granted - lease.returned - lease.drawn
    numbers = (lease.granted, lease.drawn, 0, 0, 0, lease.granted, lease.drawn, leased)
    return SyncReply(Answer.REFUSED, now_ms, *numbers)


def _hand_back(lease: Lease, amount: int, now_ns: int) -> None:
    """Move free money to `returned`: from now on it cannot be held."""
    if amount:
        lease.owed_ns, lease.unsure = now_ns, True
        lease.returned += amount
