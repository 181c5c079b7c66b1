"""The lease book: what a runner process has been granted and what it holds. Pure memory, no I/O.

`reserve` and `finalize` are the hot path: one lock, a few integers. Everything that needs the counter has two steps,
building a request and applying its reply, so that a thread or an event loop can wait in between.

A signal handler, or a finalizer that the garbage collector runs, may interrupt this code anywhere, raise an
exception, and call the book again. Three rules make that harmless:

- Each move of money is one store (`Lease` derives what is free). Ending a hold takes several stores, so it is first
  recorded as a whole, and the next caller completes it if it was interrupted.
- A call that interrupted its own thread inside the book only appends to `_inbox`. The next caller processes the inbox.
- The book's lock is always the last one taken. Under it nothing is logged, and the only foreign code called is the
  code that keeps an event.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from itertools import count
from typing import Any, Generic, NamedTuple

from daycap.clock import DAY_MS, boot_ns, day_of, day_start_ms, wall_ms
from daycap.errors import AgentPaused, BudgetUnavailable, CapExceeded, HoldEnded, UnknownAgent
from daycap.money import MAX_MICROS
from daycap.protocol.counter import KEPT_DAYS, Answer, SyncReply, SyncRequest, settled_up_to
from daycap.protocol.resend import resend_wait_ns
from daycap.protocol.wire import FinalizeEvent, new_lease_id
from daycap.wallet.hold import BaseHold, H, Hold, Pending, Taken, kinds
from daycap.wallet.lease import Lease

logger = logging.getLogger("daycap")

_MS = 1_000_000
_RESENDS_BEFORE_SUCCESSOR = 2

_wall_ns = time.time_ns
_new_event: Any = tuple.__new__
"""What a NamedTuple's constructor calls in the end; calling it directly saves a Python call on the hot path."""

_SHORTEST_WINDOW_NS = 100 * _MS
"""A rate measured over a shorter window is mostly noise."""


class _How(Enum):
    """How money taken out of a lease ends."""

    CHARGED = auto()
    RELEASED = auto()
    IN_PART = auto()
    DROPPED = auto()


class _Ending(NamedTuple):
    """An end that was requested while its thread was inside the book."""

    taken: Taken
    actual: int
    at_ms: int
    how: _How


_Move = tuple[Taken | None, Lease, int, int, int, FinalizeEvent | None, BaseHold | None, int]
"""Everything that ends a `Taken`, as final values, so that applying it twice is harmless.

In order: what ends, its lease, the lease's new `out`, `last_hold` and `released`, the event; another hold, and the
amount that it holds afterwards.
"""


class Dropped(NamedTuple):
    """A hold that was dropped without being ended, and what was charged for it."""

    agent: str
    micros: int
    age_s: float
    where: str


class LeaseBook(Generic[H]):
    """All leases of one runner process. Threads may share it; a forked child starts with an empty one.

    `emit` is called with each event that a finalize creates, `settled` with each that the ledger has. Holds are of
    `hold_type`; with `trace_holds` they store the line that reserved them. `reserve_more` is the wallet's reserve, for
    `extend`. `guard_ms` is how long before the counter's deadline this process stops using a lease, and how old an
    answer may be. `slice_seconds` is how many seconds of an agent's use to lease ahead, 0 for none.
    """

    def __init__(
        self,
        emit: Callable[[FinalizeEvent], None],
        settled: Callable[[FinalizeEvent], None] = lambda _: None,
        *,
        hold_type: type[H] = Hold,  # type: ignore[assignment]
        trace_holds: bool = False,
        reserve_more: Callable[[str, int], Any] | None = None,
        guard_ms: int,
        slice_seconds: float,
        now_ns: Callable[[], int] = boot_ns,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.emit = emit
        self._settled = settled
        self._ended_type, self._make_hold = kinds(hold_type, traced=trace_holds)
        self.reserve_more: Any = reserve_more
        self._guard_ns = guard_ms * _MS
        self._slice_seconds = slice_seconds
        self._now_ns = now_ns
        self._random = random
        self._clear()

    def _clear(self) -> None:
        self._lock = threading.RLock()  # It knows its owner; it is never entered twice to change something.
        self.inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        """Whether the calling thread was interrupted inside the book."""
        self._inbox: deque[_Ending] = deque()
        self._move: _Move | None = None
        self._dropped: deque[Dropped] = deque()
        self._questions = count(1)
        self.trouble: Exception | None = None
        """The last error from `emit`; the renewer logs it and clears it."""
        self._current: dict[str, Lease] = {}
        self._retired: dict[Lease, None] = {}
        self._replaced: dict[str, list[Lease]] = {}
        """The retired leases whose day is not over: their free money counts against the agent."""
        self._clock_offset_ms: int | None = None
        self._closed = self._asks_always = False
        self._deadline_ns = 0
        self.ttl_ms = 0
        """The shortest known ttl of a lease in use; 0 if there is none."""

    # --- the hot path -----------------------------------------------------------------------------------

    def reserve(self, agent: str, estimate: int) -> H | None:
        """Reserve from the lease's free money; return None if the counter must be asked. No I/O.

        Raises `BudgetUnavailable` in a thread that was interrupted inside the book.
        """
        if self.inside():
            raise BudgetUnavailable(
                f"agent {agent}: this signal handler or finalizer interrupted daycap itself; reserve after it returns"
            )
        lease = self._current.get(agent)
        if lease is None:
            return None
        hold = self._make_hold()
        hold._book = self
        hold._lease = lease
        hold._actual = hold._pricing = None
        hold.held_micros = estimate
        try:
            with self._lock:
                out = lease.out
                if lease.granted - lease.returned - out < estimate:
                    return None
                number = lease.last_hold + 1
                try:
                    lease.last_hold = hold._number = number
                    lease.out = out + estimate
                    hold._ended = False
                except BaseException:
                    if hold.ended:
                        lease.out, lease.last_hold = out, number - 1
                    raise
                lease.used += estimate
        except BaseException:
            self._leave_lock()
            raise
        # Read the clock after taking the money: a pause in between cannot make a late hold.
        hold._since_ns = now_ns = self._now_ns()
        if now_ns >= lease.deadline_ns:
            lease.used -= estimate
            self.release(hold)
            return None
        if self._inbox:
            self.catch_up()
        return hold

    def finalize(self, hold: BaseHold, actual: int, *, again: bool = False) -> None:
        """See `Hold.finalize`; `actual` is in micros. With `again`, a hold that has already ended is no error."""
        at_ms = _wall_ns() // _MS
        if self.inside():
            self._leave(hold, actual, at_ms, _How.CHARGED)
            return
        try:
            with self._lock:
                lease = hold._lease
                if hold._ended or lease.foreign:
                    if again and hold._ended:
                        return
                    raise _ended(hold)
                held = before = hold.held_micros
                if actual > held and self._now_ns() < lease.deadline_ns:
                    # The lease's own free money covers an overage first, so that it is not lent twice.
                    held += min(actual - held, lease.free)
                number = lease.finalized + 1
                event = _new_event(
                    FinalizeEvent, (lease.id, hold._number, number, lease.agent, lease.day, held, actual, at_ms)
                )
                out = lease.out - before + (actual if actual < held else held)
                try:
                    # `_complete` inlined, for speed.
                    lease.out = out
                    if lease.unsettled:
                        lease.unsettled.append(event)
                    else:
                        lease.progress_ns = self._now_ns()
                        lease.unsettled = [event]
                    lease.finalized = number
                    hold.held_micros = held
                    hold._ended = True
                    hold.__class__ = self._ended_type
                    # Emit under the lock, so that events are sent in the order of their numbers.
                    self.emit(event)
                except BaseException as error:
                    self._move = (hold, lease, out, lease.last_hold, lease.released, event, None, 0)
                    self._complete()
                    if not isinstance(error, Exception):
                        raise
                number = 0  # In CPython 3.11 the outer handler covers the end of this `try` only if code follows.
        except BaseException:
            self._leave_lock()
            raise
        if self._inbox:
            self.catch_up()

    def settle_part(self, hold: BaseHold, actual: int) -> None:
        """See `Hold.settle_part`; `actual` is in micros. A part gets its own hold number."""
        self._end(hold, actual, _How.IN_PART)

    def join(self, hold: BaseHold, more: BaseHold) -> None:
        """Move what `more` holds into `hold`. On `BudgetUnavailable` or `HoldEnded`, `more` is released."""
        with self._lock:
            self._catch_up()
            lease = hold._lease
            together = not hold._ended and lease is more._lease
            if together:
                held = hold.held_micros + more.held_micros
                self._move = (more, lease, lease.out, lease.last_hold, lease.released + 1, None, hold, held)
                self._complete()
        if together:
            return
        more.release()
        if hold._ended or lease.foreign:
            raise _ended(hold)
        raise BudgetUnavailable(f"hold {hold.id} can no longer be extended; call settle_part and reserve again")

    def release(self, hold: BaseHold) -> None:
        """See `Hold.release`."""
        self._end(hold, 0, _How.RELEASED)

    def dropped(self, taken: Taken) -> None:
        """End what was dropped without being ended: charge a hold in full, free what a question earmarked.

        Finalizers call this in any thread at any time, so it only appends to the inbox.
        """
        self._leave(taken, 0, time.time_ns() // _MS, _How.DROPPED)

    def take_dropped(self) -> list[Dropped]:
        """Return the holds that were dropped without being ended, each of them once."""
        self.catch_up()
        return [self._dropped.popleft() for _ in range(len(self._dropped))]

    def catch_up(self) -> None:
        """Process what interrupting calls left in the inbox."""
        if not self.inside():
            with self._lock:
                self._catch_up()

    # --- topping up: one reservation that memory cannot serve ---------------------------------------------

    def begin_hand_back(self, agent: str) -> list[Pending]:
        """Build a sync for each retired lease that still has the agent's money for the day, to hand that money back."""
        if agent not in self._replaced:
            return []
        now_ns = self._now_ns()
        with self._lock:
            self._catch_up()
            today = self._today(now_ns)
            leases = [lease for lease in self._replaced.get(agent, ()) if lease.day == today]
            return [self._report(lease, lease.free, now_ns) for lease in leases if lease.unsure or lease.free]

    def begin_top_up(self, agent: str, estimate: int) -> Pending:
        """Build the sync that asks for what `estimate` needs beyond the lease's own free money.

        Preferably one at a time per agent: the free money is earmarked for this reservation alone until
        `finish_top_up` or `abandon` puts it back. Of two concurrent ones, one may have to ask again.
        """
        now_ns = self._now_ns()
        with self._lock:
            self._catch_up()
            lease = self._lease_for(agent, estimate, now_ns)
            if now_ns >= lease.deadline_ns:
                _hand_back(lease, lease.free, now_ns)
            lease.owed_ns, lease.unsure = now_ns, True
            earmarked = lease.free
            need = max(0, estimate - earmarked)
            elapsed_ns = max(now_ns - lease.window_ns, _SHORTEST_WINDOW_NS)
            rate = max(lease.rate, lease.used * 1e9 / elapsed_ns)
            want = min(need + int(rate * self._slice_seconds), MAX_MICROS)
            request = SyncRequest(agent, lease.day, lease.id, lease.granted, lease.returned, need, want)
            pending = Pending(self, lease, request, now_ns, earmarked)
            pending.handed_back = self._handed_back(lease)
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

    def finish_top_up(self, pending: Pending, reply: SyncReply, estimate: int) -> H | None:
        """Apply the reply and reserve. Returns None to ask again; raises the error that matches the refusal.

        Raises `CapExceeded`, `AgentPaused`, `UnknownAgent` or, for a fence, `BudgetUnavailable`.
        """
        lease = pending.lease
        with self._lock:
            self._catch_up()
            free_before = lease.free
            self._put_back(pending)
        self.apply(pending, reply)
        late = self._now_ns() - pending.sent_ns > self._guard_ns
        if reply.answer is Answer.PAUSED:
            raise AgentPaused(lease.agent)
        if reply.answer is Answer.UNKNOWN_AGENT:
            raise UnknownAgent(lease.agent)
        if not reply.answer.taken:
            return None
        if (hold := self.reserve(lease.agent, estimate)) is not None:
            return hold
        with self._lock:
            self._catch_up()
            if late or free_before > 0 or lease.earmarked or lease.returned != pending.request.returned_micros:
                return None  # The totals have changed since the answer, or another question may put money back.
            if self._now_ns() < lease.deadline_ns and lease.free >= estimate:
                return None  # Money was freed just now.
            if self._current.get(lease.agent) is not lease or pending.handed_back is None:
                return None  # Another lease of this agent may still hand money back.
            if self._handed_back(lease) != pending.handed_back:
                return None
            if reply.answer is Answer.FENCED:
                raise BudgetUnavailable(
                    f"agent {lease.agent}: the counter lost its data and lends nothing until live runners had time to "
                    "restore their leases; try again in a minute"
                )
            if reply.answer is Answer.REFUSED:
                raise self._refusal(lease, reply, estimate)
        return None

    def close(self) -> None:
        """Make no new holds; live ones can still be ended."""
        with self._lock:
            self._catch_up()
            self._closed = True
            for lease in self._all():
                lease.deadline_ns = 0

    def ask_always(self, always: bool) -> None:
        """Make no hold from memory while `always` is set: no event could be sent, and asking raises the reason."""
        with self._lock:
            self._catch_up()
            self._asks_always = always
            for lease in self._all() if always else ():
                lease.deadline_ns = 0

    def forget(self) -> None:
        """Mark all leases as the parent's and start empty. Called in a forked child."""
        for lease in self._all():
            lease.foreign = True
        self._clear()

    def abandon(self, pending: Pending) -> None:
        """Put earmarked money back after a sync without an answer. The next sync reports what was granted unseen."""
        lease = pending.lease
        with self._lock:
            self._catch_up()
            self._put_back(pending)
            lease.owed_ns, lease.unsure = self._now_ns(), True

    # --- renewing: every lease in use, in batches ----------------------------------------------------------

    def leases(self) -> Sequence[Lease]:
        """Return all leases, to be renewed, and refresh `ttl_ms`."""
        self.catch_up()
        with self._lock:
            leases, ttl_ms = self._all(), self.ttl_ms
        shortest_ms = min((lease.ttl_ms for lease in leases if lease.ttl_ms and lease.in_use), default=0)
        with self._lock:
            if self.ttl_ms == ttl_ms:  # Otherwise a reply has changed it meanwhile.
                self.ttl_ms = shortest_ms
        return leases

    def begin_renewal(self, leases: Sequence[Lease], *, hand_back: bool) -> list[Pending]:
        """Build a sync for each lease in use, handing back its idle money, or with `hand_back` all free money.

        Pass a few hundred leases at most: calls that reserve or finalize wait meanwhile. Removes leases that are no
        longer needed.
        """
        now_ns = self._now_ns()
        today = self._today(now_ns)
        pending: list[Pending] = []
        forgotten: list[Lease] = []
        with self._lock:
            self._catch_up()
            for lease in leases:
                if self._tidy(lease, today) and lease.live_holds:
                    forgotten.append(lease)
                if not lease.in_use or _expired(lease.day, today):
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
        now_ns = self._now_ns()
        with self._lock:
            self._catch_up()
            return [
                self._report(lease, lease.free, now_ns, farewell=lease.finalized)
                for lease in self._all()
                if lease.granted
                and not lease.live_holds
                and not lease.questions
                and (handed_over or not lease.unsettled)
            ]

    def apply(self, pending: Pending, reply: SyncReply) -> bool:
        """Apply the counter's reply. Returns True if it recalls money that this lease has free."""
        now_ns = self._now_ns()
        if now_ns - pending.sent_ns > self._guard_ns:
            return False  # Too old: what it grants may be lent to others by now. The next sync repeats it.
        lease = pending.lease
        with self._lock:
            self._catch_up()
            self._clock_offset_ms = reply.now_ms - now_ns // _MS
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
            lease.granted = max(lease.granted, reply.granted_micros)
            # A lease is as dead before its day begins as after it ends.
            day_ms = reply.now_ms - day_start_ms(lease.day)
            day_left_ms = DAY_MS - day_ms if 0 <= day_ms < DAY_MS else 0
            # The guard protects against what the counter does at its deadline. At the end of the day the counter does
            # nothing: a hold made just before may be sent just after.
            deadline_ns = pending.sent_ns + min(reply.ttl_ms * _MS - self._guard_ns, day_left_ms * _MS)
            if deadline_ns != self._deadline_ns:
                self._deadline_ns = deadline_ns
            deadline_ns = self._deadline_ns  # Leases renewed together share one int object, which stays in the cache.
            # If the agent is paused or over its cap, make no new hold from memory, not even from money that a finalize
            # frees later.
            paused = reply.answer is Answer.PAUSED
            retired = self._current.get(lease.agent) is not lease
            over_cap = reply.spent_micros + reply.leased_micros > reply.cap_micros
            must_ask = paused or retired or over_cap or self._closed or self._asks_always
            lease.deadline_ns = 0 if must_ask else max(lease.deadline_ns, deadline_ns)
            lease.recalled = reply.recall
            lease.drawn = max(lease.drawn, reply.drawn_micros)
            self._drop_settled(lease, reply, now_ns)
            outstanding = reply.granted_micros - pending.request.returned_micros - reply.drawn_micros
            if pending.sent_ns >= lease.owed_ns:
                lease.unsure = lease.returned != pending.request.returned_micros
                if outstanding <= 0:
                    lease.owed_ns = 0
            return (reply.recall or paused) and lease.free > 0

    # --- queries ------------------------------------------------------------------------------------------

    def free_micros(self, agent: str) -> int:
        """Return what this process can still reserve for the agent without asking."""
        lease = self._current.get(agent)
        return lease.free if lease is not None and self._now_ns() < lease.deadline_ns else 0

    def last_known(self, agent: str) -> Lease | None:
        """Return the agent's current lease if the counter has granted to it."""
        lease = self._current.get(agent)
        return lease if lease is not None and lease.granted > 0 else None

    def unsettled_leases(self) -> list[Lease]:
        """Return the leases that have events which the ledger is not known to have."""
        self.catch_up()
        with self._lock:
            return [lease for lease in self._all() if lease.unsettled]

    def unsettled(self) -> list[FinalizeEvent]:
        """Return every event that the ledger is not known to have, oldest first within its lease."""
        self.catch_up()
        with self._lock:
            return [event for lease in self._all() for event in lease.unsettled]

    def stalled(self, resend_ns: int) -> list[FinalizeEvent]:
        """Return the events of leases without settling progress for `resend_ns`, doubled after each resend in a row.

        A lease that stalls repeatedly gets a successor, so that an event which never settles (a dead letter) does not
        block the events after it.
        """
        now_ns = self._now_ns()
        with self._lock:
            self._catch_up()
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
        """Drop and return the events of days that the counter no longer keeps, so that it cannot confirm them.

        Drops only events that were resent; call it when the broker has accepted everything that was sent.
        """
        today = self.today()
        with self._lock:
            self._catch_up()
            dropped: list[FinalizeEvent] = []
            for lease in self._all():
                if lease.resends and _expired(lease.day, today):
                    dropped += lease.unsettled
                    lease.unsettled = ()
            for event in dropped:
                self._settled(event)
            return dropped

    def expired(self, day: str) -> bool:
        """Whether the counter no longer keeps `day`."""
        return _expired(day, self.today())

    def live_holds(self) -> int:
        """Return how many holds of this process have not ended."""
        self.catch_up()
        with self._lock:
            return sum(lease.live_holds for lease in self._all())

    def hear(self, counter_ms: int) -> None:
        """Set the clock offset from an answer that the counter gave just now."""
        self._clock_offset_ms = counter_ms - self._now_ns() // _MS

    def today(self) -> str:
        """Return the UTC day by the counter's clock if known, else by this host's."""
        return self._today(self._now_ns())

    def counter_ms(self) -> int | None:
        """Return the counter's clock now; None if it is not known yet."""
        offset_ms = self._clock_offset_ms
        return None if offset_ms is None else self._now_ns() // _MS + offset_ms

    # --- private; the lock is held --------------------------------------------------------------------------

    def _leave_lock(self) -> None:
        """Release the lock if an exception came between the end of a locked block and the lock's own exit."""
        if self.inside():
            self._lock.release()
        if self._inbox:
            self.catch_up()

    def _end(self, hold: BaseHold, actual: int, how: _How) -> None:
        """End a hold, off the hot path."""
        at_ms = time.time_ns() // _MS
        if self.inside():
            self._leave(hold, actual, at_ms, how)
            return
        with self._lock:
            self._catch_up()
            if hold._ended or hold._lease.foreign:
                raise _ended(hold)
            self._apply_end(hold, actual, at_ms, how)
        self.catch_up()

    def _leave(self, taken: Taken, actual: int, at_ms: int, how: _How) -> None:
        """Leave an end to the next caller. Raises `HoldEnded` if the hold is known to have ended."""
        if isinstance(taken, BaseHold) and how is not _How.DROPPED and (taken._ended or taken._lease.foreign):
            raise _ended(taken)
        self._inbox.append(_Ending(taken, actual, at_ms, how))

    def _catch_up(self) -> None:
        if self._move is not None:
            self._complete()
        inbox = self._inbox
        while inbox:
            taken, actual, at_ms, how = inbox[0]
            if not (taken._ended or taken._lease.foreign):
                self._apply_end(taken, actual, at_ms, how)
            inbox.popleft()

    def _apply_end(self, taken: Taken, actual: int, at_ms: int, how: _How) -> None:
        lease, held = taken._lease, taken.held_micros
        if not isinstance(taken, BaseHold):
            self._put_back(taken)
        elif how is _How.RELEASED:
            self._move = (taken, lease, lease.out - held, lease.last_hold, lease.released + 1, None, None, 0)
            self._complete()
        elif how is _How.IN_PART:
            part, number = min(actual, held), lease.last_hold + 1
            event, out = self._charge(taken, number, part, actual, at_ms)
            self._move = (None, lease, out, number, lease.released, event, taken, held - part)
            self._complete()
        else:
            if how is _How.DROPPED:
                actual = held if taken._actual is None else taken._actual
                now_ns = self._now_ns()
                age_s = (now_ns - getattr(taken, "_since_ns", now_ns)) / 1e9
                self._dropped.append(Dropped(lease.agent, actual, age_s, getattr(taken, "where", "")))
            event, out = self._charge(taken, taken._number, held, actual, at_ms)
            self._move = (taken, lease, out, lease.last_hold, lease.released, event, None, 0)
            self._complete()

    def _charge(self, taken: Taken, number: int, held: int, actual: int, at_ms: int) -> tuple[FinalizeEvent, int]:
        """Return the event that charges `actual` against `held`, and the lease's `out` after it."""
        lease, before = taken._lease, held
        if actual > held and self._now_ns() < lease.deadline_ns:
            # The lease's own free money covers an overage first, so that it is not lent twice.
            held += min(actual - held, lease.free)
        event = FinalizeEvent(lease.id, number, lease.finalized + 1, lease.agent, lease.day, held, actual, at_ms)
        return event, lease.out - before + event.drawn_micros

    def _complete(self) -> None:
        """Apply `_move` from the beginning: an earlier try may have been interrupted anywhere."""
        move = self._move
        assert move is not None  # noqa: S101
        ended, lease, out, last_hold, released, event, other, other_held = move
        lease.out, lease.last_hold, lease.released = out, last_hold, released
        if other is not None:
            other.held_micros = other_held
        if event is not None:
            unsettled = lease.unsettled
            if not unsettled:
                lease.progress_ns = self._now_ns()
                lease.unsettled = [event]
            elif unsettled[-1] is not event:
                unsettled.append(event)
            lease.finalized = event.number
            # Emit under the lock, so that events are sent in the order of their numbers.
            try:
                self.emit(event)
            except Exception as error:
                self.trouble = error  # The event is in `unsettled`, and is resent when it stalls.
        if ended is not None:
            if other is None and event is not None:
                ended.held_micros = event.held_micros
            ended._ended = True
            if isinstance(ended, BaseHold):
                ended.__class__ = self._ended_type
        self._move = None

    def _put_back(self, pending: Taken) -> None:
        """Free the money that a question earmarked."""
        if not pending.ended:
            lease = pending._lease
            lease.owed_ns = self._now_ns()
            lease.questions.pop(pending._number, None)
            out = lease.out - pending.held_micros
            self._move = (pending, lease, out, lease.last_hold, lease.released, None, None, 0)
            self._complete()

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
            # Its running totals would exceed what every tier counts exactly. (A request that the counter refuses anyway
            # stays on this lease. If the cap was raised and it does not refuse, it grants what it can.)
            self._replace(lease)
            lease = None
        if lease is None:
            lease = self._current[agent] = Lease(agent, today, new_lease_id(agent, today, self._random(16)), now_ns)
        return lease

    def _tidy(self, lease: Lease, today: str) -> bool:
        """Retire the lease if its day is over; remove it and return True if it is no longer needed."""
        if self._current.get(lease.agent) is lease:
            if lease.day < today:
                self._retire(lease)
            elif lease.granted == 0 and not lease.in_use:
                del self._current[lease.agent]  # Made for a question that was refused.
        if lease not in self._retired:
            return False
        let_go = not lease.in_use or (_expired(lease.day, today) and not lease.unsettled)
        if let_go:
            del self._retired[lease]
            if lease in (replaced := self._replaced.get(lease.agent, [])):
                replaced.remove(lease)
                if not replaced:
                    del self._replaced[lease.agent]
        return let_go

    def _report(self, lease: Lease, back: int, now_ns: int, farewell: int | None = None) -> Pending:
        """Hand back `back` and build the sync that reports the lease's totals."""
        _hand_back(lease, back, now_ns)
        request = SyncRequest(lease.agent, lease.day, lease.id, lease.granted, lease.returned, farewell=farewell)
        return Pending(self, lease, request, now_ns)

    def _handed_back(self, lease: Lease) -> int | None:
        """Return what the leases that it replaced have handed back; None if one may owe more.

        A removed lease has handed back everything, so the sum changes when it is removed.
        """
        total = 0
        for other in self._replaced.get(lease.agent, ()):
            if other.day == lease.day:
                if other.owes:
                    return None
                total += other.returned
        return total

    def _refusal(self, lease: Lease, reply: SyncReply, estimate: int) -> CapExceeded:
        """Build the error of a refusal; its amounts add up to the cap."""
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
        """Retire the lease during its day: the next question starts a new one."""
        self._retire(lease)
        self._replaced.setdefault(lease.agent, []).append(lease)

    def _retire(self, lease: Lease) -> None:
        """Make no new hold from the lease; it is renewed while in use."""
        lease.deadline_ns = 0
        self._retired[lease] = None  # First, so that the lease stays in the book wherever this is interrupted.
        del self._current[lease.agent]

    def _idle(self, lease: Lease, now_ns: int) -> int:
        """Return the free money beyond a slice at the higher rate of the last two windows, and start a new window."""
        elapsed_ns = now_ns - lease.window_ns
        if elapsed_ns < _SHORTEST_WINDOW_NS:
            return 0
        rate = lease.used * 1e9 / elapsed_ns
        idle = max(0, lease.free - int(max(rate, lease.rate) * self._slice_seconds))
        lease.rate, lease.used, lease.window_ns = rate, 0, now_ns
        return idle

    def _drop_settled(self, lease: Lease, reply: SyncReply, now_ns: int) -> None:
        up_to = settled_up_to(reply.events, reply.last_event)
        if not lease.unsettled or lease.unsettled[0].number > up_to:
            return
        settled_count = up_to + 1 - lease.unsettled[0].number  # Event numbers have no gaps.
        settled, lease.unsettled = lease.unsettled[:settled_count], lease.unsettled[settled_count:] or ()
        lease.progress_ns = now_ns if lease.unsettled else 0
        lease.resends = 0
        lease.ended += sum(event.drawn_micros for event in settled)
        for event in settled:
            self._settled(event)


def _hand_back(lease: Lease, amount: int, now_ns: int) -> None:
    """Move free money to `returned`: from now on it cannot be held."""
    if amount:
        lease.owed_ns, lease.unsure = now_ns, True
        lease.returned += amount


def _expired(day: str, today: str) -> bool:
    return day_start_ms(today) > day_start_ms(day) + KEPT_DAYS * DAY_MS


def _ended(hold: BaseHold) -> HoldEnded:
    if hold._lease.foreign:
        return HoldEnded(f"hold {hold.id} belongs to the parent of this forked process")
    return HoldEnded(f"hold {hold.id} was already finalized or released")
