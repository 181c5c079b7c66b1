"""The lease book: what a runner process has been granted and what it holds. Pure memory, no I/O.

`reserve` and `finalize` are the hot path: one lock, a few integers. Everything that needs the counter is split
in two, building a request and applying its reply, so that a thread or an event loop can do the waiting.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from daycap.clock import DAY_MS, boot_ns, day_of, day_start_ms, wall_ms
from daycap.counter import KEPT_DAYS, Answer, SyncReply, SyncRequest, settled_up_to
from daycap.errors import AgentPaused, BudgetUnavailable, CapExceeded, HoldEnded, UnknownAgent
from daycap.lease import BaseHold, Hold, Lease
from daycap.money import MAX_MICROS
from daycap.wire import FinalizeEvent, new_lease_id

logger = logging.getLogger("daycap")

_MS = 1_000_000
_RESENDS_BEFORE_SUCCESSOR = 2
_MOST_DOUBLINGS = 8

_new_event = tuple.__new__
"""What a NamedTuple's own constructor comes to, after a call in Python: this is the hot path."""

_SHORTEST_WINDOW_NS = 100 * _MS
"""A rate of use measured over less says more about chance than about need."""


class Pending(NamedTuple):
    """A sync that is under way: when it was built, and what it took out of the book for one reservation."""

    lease: Lease
    request: SyncRequest
    sent_ns: int
    earmarked: int = 0
    handed_back: int | None = None
    """What the agent's retired leases of the day had handed back by then; None where they may have more."""


H = TypeVar("H", bound=BaseHold)


class LeaseBook(Generic[H]):
    """All leases of one runner process. Threads may share it; a forked child starts with an empty one.

    `emit` is told of each event that a finalize makes, `settled` of each that the ledger has. `new_hold` makes the
    holds; `reserve_more` is their wallet's reserve, for `extend`. `guard_ms` is how long before the counter's deadline
    this process stops to trust a lease, and how old an answer may be; `slice_seconds` is how many seconds of an
    agent's use are asked for at once, 0 for none.
    """

    def __init__(
        self,
        emit: Callable[[FinalizeEvent], None],
        settled: Callable[[FinalizeEvent], None] = lambda _: None,
        *,
        new_hold: type[H] = Hold,  # type: ignore[assignment]
        reserve_more: Callable[[str, int], Any] | None = None,
        guard_ms: int,
        slice_seconds: float,
        now_ns: Callable[[], int] = boot_ns,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._emit = emit
        self._settled = settled
        self._new_hold = new_hold
        self.reserve_more: Any = reserve_more
        self._guard_ns = guard_ms * _MS
        self._slice_seconds = slice_seconds
        self._now_ns = now_ns
        self._random = random
        self._clear()

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._current: dict[str, Lease] = {}
        self._retired: dict[Lease, None] = {}
        self._replaced: dict[str, list[Lease]] = {}
        """Those of them whose day is not over: what they have free counts against the agent."""
        self._clock_offset_ms: int | None = None
        self._closed = self._asks_always = False
        self._deadline_ns = 0
        self.ttl_ms = 0
        """The shortest ttl of a lease in use, as far as the counter has told; 0 for none."""

    # --- the hot path -----------------------------------------------------------------------------------

    def reserve(self, agent: str, estimate: int) -> H | None:
        """A hold out of the lease's free money, or None if the counter has to be asked. No I/O."""
        lease = self._current.get(agent)
        if lease is None:
            return None
        with self._lock:
            if lease.free < estimate:
                return None
            lease.free -= estimate
            lease.used += estimate
            lease.last_hold = number = lease.last_hold + 1
        # The clock is read after the money was taken: a pause in between cannot make a late hold.
        if self._now_ns() >= lease.deadline_ns:
            with self._lock:
                lease.free += estimate
                lease.used -= estimate
                lease.released += 1
            return None
        return self._new_hold(self, lease, number, estimate)

    def finalize(self, hold: BaseHold, actual: int) -> None:
        """See `Hold.finalize`; `actual` is an amount."""
        lease = hold._lease
        at_ms = time.time_ns() // _MS
        with self._lock:
            if hold._ended or lease.foreign:
                raise _ended(hold)
            held = before = hold.held_micros
            if actual > held and self._now_ns() < lease.deadline_ns:
                # An overage is first covered by the lease's own free money, so that it is not lent twice.
                held += min(actual - held, lease.free)
            number = lease.events + 1
            event = _new_event(
                FinalizeEvent,
                (lease.id, hold._number, number, lease.agent, lease.day, held, actual, at_ms),
            )
            # In this order: wherever an exception from outside (a signal's handler) cuts it off, the event is kept.
            if lease.unsettled:
                lease.unsettled.append(event)
            else:
                lease.progress_ns = self._now_ns()
                lease.unsettled = [event]
            lease.events = number
            hold._ended = True
            hold.held_micros = held
            lease.free += before - (actual if actual < held else held)
            # Emitted under the lock, so that events travel in the order of their numbers.
            self._emit(event)

    def settle_part(self, hold: BaseHold, actual: int) -> None:
        """See `Hold.settle_part`; `actual` is an amount. A part is a hold of its own, split off and finalized."""
        with self._lock:
            if hold._ended or hold._lease.foreign:
                raise _ended(hold)
            lease, held = hold._lease, min(actual, hold.held_micros)
            lease.last_hold += 1
            part = self._new_hold(self, lease, lease.last_hold, held)
            hold.held_micros -= held
        try:
            self.finalize(part, actual)
        except BaseException:  # A signal's handler.
            if not part._ended:
                self.join(hold, part)
            raise

    def join(self, hold: BaseHold, more: BaseHold) -> None:
        """Let `hold` have what `more` holds. Raises `BudgetUnavailable` or `HoldEnded`, and `more` is released."""
        with self._lock:
            lease = hold._lease
            together = not hold._ended and lease is more._lease
            if together:
                hold.held_micros += more.held_micros
                more._ended = True
                lease.released += 1
        if together:
            return
        more.release()
        if hold._ended or lease.foreign:
            raise _ended(hold)
        raise BudgetUnavailable(f"hold {hold.id} cannot be extended any more; settle its part and reserve anew")

    def release(self, hold: BaseHold) -> None:
        """See `Hold.release`."""
        with self._lock:
            if hold._ended or hold._lease.foreign:
                raise _ended(hold)
            hold._ended = True
            hold._lease.free += hold.held_micros
            hold._lease.released += 1

    # --- topping up: one reservation that memory cannot serve ---------------------------------------------

    def begin_hand_back(self, agent: str) -> list[Pending]:
        """Build a sync for each retired lease that has money of the agent's day: else that money is missing for it."""
        if agent not in self._replaced:
            return []
        now_ns = self._now_ns()
        with self._lock:
            today = self._today(now_ns)
            leases = [lease for lease in self._replaced.get(agent, ()) if lease.day == today]
            return [_report(lease, lease.free, now_ns) for lease in leases if lease.unsure or lease.free]

    def begin_top_up(self, agent: str, estimate: int) -> Pending:
        """Build the sync that asks for what `estimate` needs beyond the lease's own free money.

        Best one at a time for each agent: the free money is earmarked for this reservation, and no other's, until
        `finish_top_up` or `abandon` puts it back. Of two that are asked at once, one may have to ask anew.
        """
        now_ns = self._now_ns()
        with self._lock:
            lease = self._lease_for(agent, estimate, now_ns)
            if now_ns >= lease.deadline_ns:
                _hand_back(lease, lease.free, now_ns)
            lease.owed_ns, lease.unsure = now_ns, True
            earmarked, lease.free = lease.free, 0
            lease.earmarked += earmarked
            need = max(0, estimate - earmarked)
            elapsed_ns = max(now_ns - lease.window_ns, _SHORTEST_WINDOW_NS)
            rate = max(lease.rate, lease.used * 1e9 / elapsed_ns)
            want = min(need + int(rate * self._slice_seconds), MAX_MICROS)
            request = SyncRequest(agent, lease.day, lease.id, lease.granted, lease.returned, need, want)
            handed_back = self._handed_back(lease)
        return Pending(lease, request, now_ns, earmarked, handed_back)

    def finish_top_up(self, pending: Pending, reply: SyncReply, estimate: int) -> H | None:
        """Apply the reply and reserve. None if it must be asked anew; raises what the counter's no means.

        Raises `CapExceeded`, `AgentPaused`, `UnknownAgent` or, for a fence, `BudgetUnavailable`.
        """
        lease = pending.lease
        with self._lock:
            free_before = lease.free
            _put_back(pending)
        self.apply(pending, reply)
        late = self._now_ns() - pending.sent_ns > self._guard_ns
        with self._lock:
            if reply.answer is Answer.PAUSED:
                raise AgentPaused(lease.agent)
            if reply.answer is Answer.UNKNOWN_AGENT:
                raise UnknownAgent(lease.agent)
            if not reply.answer.taken:
                return None
            if lease.free >= estimate:
                lease.free -= estimate
                # As in `reserve`: the clock is read after the money was taken.
                if self._now_ns() < lease.deadline_ns:
                    lease.used += estimate
                    lease.last_hold += 1
                    return self._new_hold(self, lease, lease.last_hold, estimate)
                lease.free += estimate
            if late or free_before > 0 or lease.earmarked or lease.returned != pending.request.returned_micros:
                return None  # The answer was to other totals than those of now, or another question may give back.
            if self._current.get(lease.agent) is not lease or pending.handed_back is None:
                return None  # So may another lease of this agent.
            if self._handed_back(lease) != pending.handed_back:
                return None
            if reply.answer is Answer.FENCED:
                raise BudgetUnavailable(
                    f"agent {lease.agent}: the counter lost its data and lends nothing new until every runner had "
                    "the time to put its leases back; try again in a minute"
                )
            if reply.answer is Answer.REFUSED:
                raise self._refusal(lease, reply, estimate)
        return None

    def close(self) -> None:
        """No new hold from now on; what is live can still be ended."""
        with self._lock:
            self._closed = True
            for lease in self._all():
                lease.deadline_ns = 0

    def ask_always(self, always: bool) -> None:
        """Make no hold from memory as long as `always`: no event could be sent, and who asks is told why."""
        with self._lock:
            self._asks_always = always
            for lease in self._all() if always else ():
                lease.deadline_ns = 0

    def forget(self) -> None:
        """In a forked child: the leases and the holds are the parent's."""
        for lease in self._all():
            lease.foreign = True
        self._clear()

    def abandon(self, pending: Pending) -> None:
        """The sync got no answer: put the earmarked money back. What was granted unseen counts next time."""
        with self._lock:
            _put_back(pending)
            pending.lease.owed_ns, pending.lease.unsure = self._now_ns(), True

    # --- renewing: every lease that is in use, some at a time ----------------------------------------------

    def leases(self) -> Sequence[Lease]:
        """All of them, to be renewed; `ttl_ms` is that of those in use."""
        with self._lock:
            leases, ttl_ms = self._all(), self.ttl_ms
        shortest_ms = min((lease.ttl_ms for lease in leases if lease.ttl_ms and lease.in_use), default=0)
        with self._lock:
            if self.ttl_ms == ttl_ms:  # Else the counter has told of another one meanwhile.
                self.ttl_ms = shortest_ms
        return leases

    def begin_renewal(self, leases: Sequence[Lease], *, hand_back: bool) -> list[Pending]:
        """Build a sync without need for each lease that is in use, handing back what lies idle, or all of it.

        Of a few hundred leases at most: whoever reserves or finalizes meanwhile waits for it. Lets go of leases
        that nobody needs any more.
        """
        now_ns = self._now_ns()
        today = self._today(now_ns)
        with self._lock:
            pending = []
            for lease in leases:
                self._tidy(lease, today)
                if not lease.in_use or _expired(lease.day, today):
                    continue
                dead = now_ns >= lease.deadline_ns
                back = lease.free if hand_back or lease.recalled or dead else self._idle(lease, now_ns)
                pending.append(_report(lease, back, now_ns))
            return pending

    def apply(self, pending: Pending, reply: SyncReply) -> bool:
        """Take over what the counter said. True if it calls back money that this lease has free."""
        now_ns = self._now_ns()
        if now_ns - pending.sent_ns > self._guard_ns:
            return False  # Too old: what it grants may be someone else's by now. The next sync says it again.
        lease = pending.lease
        with self._lock:
            self._clock_offset_ms = reply.now_ms - now_ns // _MS
            if not reply.answer.taken:
                if lease.granted == 0:
                    lease.owed_ns = 0
                return False
            lease.ttl_ms = reply.ttl_ms
            self.ttl_ms = min(self.ttl_ms or reply.ttl_ms, reply.ttl_ms)
            if now_ns >= lease.deadline_ns:
                # Of a dead lease what is free may be given up by now, and lent to others: no answer revives it.
                _hand_back(lease, lease.free, now_ns)
            lease.cap, lease.spent, lease.leased = reply.cap_micros, reply.spent_micros, reply.leased_micros
            if reply.granted_micros > lease.granted:
                lease.free += reply.granted_micros - lease.granted
                lease.granted = reply.granted_micros
            # Before its day begins a lease is as dead as after it has ended.
            day_ms = reply.now_ms - day_start_ms(lease.day)
            day_left_ms = DAY_MS - day_ms if 0 <= day_ms < DAY_MS else 0
            # The guard is for what the counter does at its deadline. At the day's end it does nothing: a hold that
            # was made just before it may be sent just after.
            deadline_ns = pending.sent_ns + min(reply.ttl_ms * _MS - self._guard_ns, day_left_ms * _MS)
            if deadline_ns != self._deadline_ns:
                self._deadline_ns = deadline_ns
            deadline_ns = self._deadline_ns  # One object for all that are renewed together: it stays in the cache.
            # Where the agent is paused, or more is out than its cap, memory alone makes no new hold: not even from
            # money that a finalize frees later.
            paused = reply.answer is Answer.PAUSED
            retired = self._current.get(lease.agent) is not lease
            told = paused or retired or self._closed or self._asks_always
            ask = told or reply.spent_micros + reply.leased_micros > reply.cap_micros
            lease.deadline_ns = 0 if ask else max(lease.deadline_ns, deadline_ns)
            lease.recalled = reply.recall
            lease.drawn = max(lease.drawn, reply.drawn_micros)
            self._drop_settled(lease, reply, now_ns)
            outstanding = reply.granted_micros - pending.request.returned_micros - reply.drawn_micros
            if pending.sent_ns >= lease.owed_ns:
                lease.unsure = lease.returned != pending.request.returned_micros
                if outstanding <= 0:
                    lease.owed_ns = 0
            return (reply.recall or paused) and lease.free > 0

    # --- looking ------------------------------------------------------------------------------------------

    def free_micros(self, agent: str) -> int:
        """What this process could still reserve for the agent without asking."""
        lease = self._current.get(agent)
        return lease.free if lease is not None and self._now_ns() < lease.deadline_ns else 0

    def last_known(self, agent: str) -> Lease | None:
        """The agent's lease of today, if the counter has ever answered for it."""
        lease = self._current.get(agent)
        return lease if lease is not None and lease.granted > 0 else None

    def unsettled_leases(self) -> list[Lease]:
        """Those that have events which the ledger is not known to have."""
        with self._lock:
            return [lease for lease in self._all() if lease.unsettled]

    def unsettled(self) -> list[FinalizeEvent]:
        """Every event that the ledger is not known to have, oldest first within its lease."""
        with self._lock:
            return [event for lease in self._all() for event in lease.unsettled]

    def stalled(self, resend_ns: int) -> list[FinalizeEvent]:
        """The events of leases whose settling made no progress for so long, and longer each time in a row.

        A lease that stalls again and again gets a successor, so that one event which never settles (it became
        a dead letter) does not keep those that come after it.
        """
        now_ns = self._now_ns()
        with self._lock:
            events: list[FinalizeEvent] = []
            for lease in self._all():
                if lease.unsettled and now_ns - lease.progress_ns >= resend_wait_ns(resend_ns, lease.resends):
                    lease.progress_ns = now_ns
                    lease.resends += 1
                    events += lease.unsettled
                    if lease.resends > _RESENDS_BEFORE_SUCCESSOR and self._current.get(lease.agent) is lease:
                        self._replace(lease)
            return events

    def drop_expired(self) -> list[FinalizeEvent]:
        """Drop, and return, events of days so long over that the counter cannot tell any more what is settled.

        Only those that were sent again meanwhile; call it when the broker has taken all that was sent.
        """
        today = self.today()
        with self._lock:
            dropped: list[FinalizeEvent] = []
            for lease in self._all():
                if lease.resends and _expired(lease.day, today):
                    dropped += lease.unsettled
                    lease.unsettled = ()
            for event in dropped:
                self._settled(event)
            return dropped

    def expired(self, day: str) -> bool:
        """Whether the counter has forgotten `day`, so that nothing can be learnt of it."""
        return _expired(day, self.today())

    def live_holds(self) -> int:
        """How many holds of this process have not ended."""
        with self._lock:
            return sum(lease.live_holds for lease in self._all())

    def hear(self, counter_ms: int) -> None:
        """Take over the counter's clock from an answer that came just now."""
        self._clock_offset_ms = counter_ms - self._now_ns() // _MS

    def today(self) -> str:
        """The UTC day by the counter's clock, as far as it is known, else by this host's."""
        return self._today(self._now_ns())

    def counter_ms(self) -> int | None:
        """The counter's clock now, as far as it is known."""
        offset_ms = self._clock_offset_ms
        return None if offset_ms is None else self._now_ns() // _MS + offset_ms

    # --- inside; the lock is held ---------------------------------------------------------------------------

    def _all(self) -> tuple[Lease, ...]:
        return (*self._current.values(), *self._retired)

    def _today(self, now_ns: int) -> str:
        offset_ms = self._clock_offset_ms
        return day_of(wall_ms() if offset_ms is None else now_ns // _MS + offset_ms)

    def _lease_for(self, agent: str, estimate: int, now_ns: int) -> Lease:
        today = self._today(now_ns)
        lease = self._current.get(agent)
        if lease is not None and lease.day != today:
            self._retire(lease)
            lease = None
        elif lease is not None and lease.granted + estimate > MAX_MICROS and estimate <= lease.cap - lease.spent:
            # Its running totals would pass what every tier counts exactly. (What the counter will refuse anyway is
            # asked of the lease that there is. Where it does not, because the cap was raised, it grants what it can.)
            self._replace(lease)
            lease = None
        if lease is None:
            lease = self._current[agent] = Lease(agent, today, new_lease_id(agent, today, self._random(16)), now_ns)
        return lease

    def _tidy(self, lease: Lease, today: str) -> None:
        """Retire the lease if its day is over; let go of it if nobody needs it any more."""
        if self._current.get(lease.agent) is lease:
            if lease.day < today:
                self._retire(lease)
            elif lease.granted == 0 and not lease.in_use:
                del self._current[lease.agent]  # Made for a question; the answer was no.
        if lease not in self._retired:
            return
        expired = _expired(lease.day, today)
        if expired and lease.live_holds and not lease.unsettled:
            logger.error(
                "letting go of %d holds of agent %s on %s: never ended", lease.live_holds, lease.agent, lease.day
            )
        if not lease.in_use or (expired and not lease.unsettled):
            del self._retired[lease]
            if lease in (replaced := self._replaced.get(lease.agent, [])):
                replaced.remove(lease)
                if not replaced:
                    del self._replaced[lease.agent]

    def _handed_back(self, lease: Lease) -> int | None:
        """What those that it replaced have handed back; None where the counter may have set aside more than they need.

        One that is let go of has handed back all, so that the sum is another one without it.
        """
        total = 0
        for other in self._replaced.get(lease.agent, ()):
            if other.day == lease.day:
                if other.owes:
                    return None
                total += other.returned
        return total

    def _refusal(self, lease: Lease, reply: SyncReply, estimate: int) -> CapExceeded:
        """Why the counter refused; its amounts add up to the cap."""
        own = [lease, *(other for other in self._replaced.get(lease.agent, ()) if other.day == lease.day)]
        aside = min(reply.leased_micros, sum(each.aside for each in own))
        free = min(aside, lease.free)
        held = min(aside - free, sum(each.held for each in own))
        return CapExceeded(
            lease.agent,
            estimate_micros=estimate,
            cap_micros=reply.cap_micros,
            spent_micros=reply.spent_micros,
            held_micros=held,
            waiting_micros=aside - free - held,
            leased_micros=reply.leased_micros - aside,
            remaining_micros=reply.cap_micros - reply.spent_micros - reply.leased_micros + free,
            day=lease.day,
            day_ends_in_s=(day_start_ms(lease.day) + DAY_MS - reply.now_ms) / 1000,
        )

    def _replace(self, lease: Lease) -> None:
        """Retire the lease in the middle of its day: the next question takes another one."""
        self._retire(lease)
        self._replaced.setdefault(lease.agent, []).append(lease)

    def _retire(self, lease: Lease) -> None:
        """No new hold from it; it is renewed while it is in use."""
        lease.deadline_ns = 0
        del self._current[lease.agent]
        self._retired[lease] = None

    def _idle(self, lease: Lease, now_ns: int) -> int:
        """What the last two windows' use does not need for a slice."""
        elapsed_ns = now_ns - lease.window_ns
        if elapsed_ns < _SHORTEST_WINDOW_NS:
            return 0
        rate = lease.used * 1e9 / elapsed_ns
        idle = max(0, lease.free - int(max(rate, lease.rate) * self._slice_seconds))
        lease.rate, lease.used, lease.window_ns = rate, 0, now_ns
        return idle

    def _drop_settled(self, lease: Lease, reply: SyncReply, now_ns: int) -> None:
        up_to = settled_up_to(reply.events, reply.last_event)
        if not lease.unsettled or lease.unsettled[0].event > up_to:
            return
        many = up_to + 1 - lease.unsettled[0].event  # Their numbers have no gap.
        settled, lease.unsettled = lease.unsettled[:many], lease.unsettled[many:] or ()
        lease.progress_ns = now_ns if lease.unsettled else 0
        lease.resends = 0
        lease.ended += sum(event.drawn_micros for event in settled)
        for event in settled:
            self._settled(event)


def resend_wait_ns(resend_ns: int, resends: int) -> int:
    """How long to wait before the next resend, after so many that brought nothing."""
    return resend_ns << min(resends, _MOST_DOUBLINGS)


def _put_back(pending: Pending) -> None:
    pending.lease.free += pending.earmarked
    pending.lease.earmarked -= pending.earmarked


def _hand_back(lease: Lease, amount: int, now_ns: int) -> None:
    """Out of the book first: what is reported as returned must not be held again."""
    if amount:
        lease.free -= amount
        lease.returned += amount
        lease.owed_ns, lease.unsure = now_ns, True


def _report(lease: Lease, back: int, now_ns: int) -> Pending:
    """The sync that tells the lease's totals, with so much handed back."""
    _hand_back(lease, back, now_ns)
    return Pending(lease, SyncRequest(lease.agent, lease.day, lease.id, lease.granted, lease.returned), now_ns)


def _expired(day: str, today: str) -> bool:
    return day_start_ms(today) > day_start_ms(day) + KEPT_DAYS * DAY_MS


def _ended(hold: BaseHold) -> HoldEnded:
    if hold._lease.foreign:
        return HoldEnded(f"hold {hold.id} belongs to the process that this one was forked from")
    return HoldEnded(f"hold {hold.id} was finalized or released before")
