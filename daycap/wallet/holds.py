"""The holds of a runner process: made from its leases, and ended, in memory and without I/O.

`reserve` and `finalize` are the hot path: one lock, a few integers.

A signal handler, or a finalizer that the garbage collector runs, may interrupt this code anywhere, raise an
exception, and call it again. Three rules make that harmless:

- Each move of money is one store (`Lease` derives what is free). Ending a hold takes several stores, so it is first
  recorded as a whole, and the next caller completes it if it was interrupted.
- A call that interrupted its own thread inside the book only appends to `_inbox`. The next caller processes the inbox.
- The book's lock is always the last one taken. Under it nothing is logged, and the only foreign code called is the
  code that keeps an event.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Generic, NamedTuple

from daycap.clock import boot_ns
from daycap.errors import BudgetUnavailable, HoldEnded
from daycap.protocol.labels import RUN, Labels
from daycap.protocol.wire import FinalizeEvent, Share
from daycap.wallet.counter_clock import CounterClock
from daycap.wallet.hold import BaseHold, H, Hold, Taken, kinds
from daycap.wallet.lease import Lease, Route
from daycap.wallet.leases import Leases

_MS = 1_000_000
_MOST_ROUTES = 1000
"""How many sets of labels of an agent are remembered."""

_wall_ns = time.time_ns
_new_event: Any = tuple.__new__
"""What a NamedTuple's constructor calls in the end; calling it directly saves a Python call on the hot path."""


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


_Outs = Sequence[tuple[Lease, int]]
"""Leases of other budgets, with their new `out`."""

_Move = tuple[Taken | None, Lease, int, int, int, FinalizeEvent | None, BaseHold | None, int, _Outs]
"""Everything that begins or ends a `Taken`, as final values, so that applying it twice is harmless.

In order: what ends, its lease, the lease's new `out`, `last_hold` and `released`, the event; another hold, which begins
if it has not, and the amount that it holds afterwards; the other leases.
"""


class Dropped(NamedTuple):
    """A hold that was dropped without being ended, and what was charged for it."""

    agent: str
    micros: int
    age_s: float
    where: str


class Holds(Generic[H]):
    """The holds of one runner process, with its leases. Threads may share it; a forked child starts with an empty one.

    `emit` is called with each event that a finalize creates. Holds are of `hold_type`; with `trace_holds` they store
    the line that reserved them. `reserve_more` is the wallet's reserve, for `extend`. `random` makes the leases' ids.
    """

    def __init__(
        self,
        emit: Callable[[FinalizeEvent], None],
        *,
        hold_type: type[H] = Hold,  # type: ignore[assignment]
        trace_holds: bool = False,
        reserve_more: Callable[[str, int], Any] | None = None,
        now_ns: Callable[[], int] = boot_ns,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.emit = emit
        self._ended_type, self._make_hold = kinds(hold_type, traced=trace_holds)
        self.reserve_more: Any = reserve_more
        self.now_ns = now_ns
        self.leases = Leases(random)
        self.clock = CounterClock(now_ns)
        self._clear()

    def _clear(self) -> None:
        self.lock = threading.RLock()  # It knows its owner; it is never entered twice to change something.
        self.inside: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]
        """Whether the calling thread was interrupted inside the book."""
        self._inbox: deque[_Ending] = deque()
        self._move: _Move | None = None
        self._dropped: deque[Dropped] = deque()
        self.trouble: Exception | None = None
        """The last error from `emit`; the renewer logs it and clears it."""
        self.leases.clear()
        self.clock.clear()
        self._current = self.leases.current
        self.closed = self.asks_always = False

    # --- the hot path -----------------------------------------------------------------------------------

    def reserve(self, agent: str, estimate: int, labels: Labels = ()) -> H | None:
        """Reserve from the leases' free money; return None if the counter must be asked. No I/O.

        Raises `BudgetUnavailable` in a thread that was interrupted inside the book.
        """
        if self.inside():
            raise BudgetUnavailable(
                f"agent {agent}: this signal handler or finalizer interrupted daycap itself; reserve after it returns"
            )
        lease = self._current.get(agent)
        if lease is None:
            return None
        if labels or lease.plan:
            return self._reserve_on_route(lease, estimate, labels)
        hold = self._make_hold()
        hold._book = self
        hold._lease = lease
        hold._actual = hold._pricing = hold._route = None
        hold.held_micros = estimate
        try:
            with self.lock:
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
        hold._since_ns = now_ns = self.now_ns()
        if now_ns >= lease.deadline_ns:
            lease.used -= estimate
            self.release(hold)
            return None
        if self._inbox:
            self.catch_up()
        return hold

    def _reserve_on_route(self, lease: Lease, estimate: int, labels: Labels) -> H | None:
        """Reserve for a call that has labels or counts in other budgets: from all its leases, or from none."""
        route = lease.routes.get(labels)
        if route is None:
            if lease.plan or RUN in dict(labels):
                return None
            route = self.add_route(lease, Route(0, labels))
        hold = self._make_hold()
        hold._book = self
        hold._lease = lease
        hold._actual = hold._pricing = None
        hold._route = route
        try:
            with self.lock:
                if self._move is not None or self._inbox:
                    self.catch_up_locked()
                enough = self._take(hold, lease, route, estimate)
            now_ns = 0  # See `finalize`.
        except BaseException:
            self._leave_lock()
            raise
        if not enough:
            return None
        # Read the clock once, after taking the money, for every lease's deadline.
        hold._since_ns = now_ns = self.now_ns()
        for each in (lease, *route.others):
            if now_ns >= each.deadline_ns:
                self.release(hold)
                return None
            each.used += estimate
        if self._inbox:
            self.catch_up()
        return hold

    def _take(self, hold: BaseHold, lease: Lease, route: Route, estimate: int) -> bool:
        """Take the estimate from every lease; from none, and return False, if one has less free."""
        out = lease.out + estimate
        if lease.granted - lease.returned < out:
            return False
        outs = []
        for other in route.others:
            its_out = other.out + estimate
            if other.granted - other.returned < its_out:
                return False
            outs.append((other, its_out))
        number = hold._number = lease.last_hold + 1
        try:
            self._move = (None, lease, out, number, lease.released, None, hold, estimate, outs)
            # `_do` inlined, for speed.
            lease.out, lease.last_hold = out, number
            for other, its_out in outs:
                other.out = its_out
            hold.held_micros = estimate
            hold._ended = False
            self._move = None
        except BaseException:
            if self._move is not None:
                self._do(self._move, again=True)
            raise
        return True

    @staticmethod
    def add_route(lease: Lease, route: Route) -> Route:
        """Remember the route for calls with its labels, and return it."""
        if len(lease.routes) >= _MOST_ROUTES:
            lease.routes = {}
        lease.routes[route.labels] = route
        return route

    def finalize(self, hold: BaseHold, actual: int, *, again: bool = False) -> None:
        """See `Hold.finalize`; `actual` is in micros. With `again`, a hold that has already ended is no error."""
        at_ms = _wall_ns() // _MS
        if self.inside():
            self._leave(hold, actual, at_ms, _How.CHARGED)
            return
        if hold._route is not None:
            self._finalize_on_route(hold, hold._route, actual, at_ms, again=again)
            return
        try:
            with self.lock:
                lease = hold._lease
                if hold._ended or lease.foreign:
                    if again and hold._ended:
                        return
                    raise _ended(hold)
                held = before = hold.held_micros
                if actual > held and self.now_ns() < lease.deadline_ns:
                    # The lease's own free money covers an overage first, so that it is not lent twice.
                    held += min(actual - held, lease.free)
                number = lease.finalized + 1
                event = _new_event(
                    FinalizeEvent,
                    (lease.id, hold._number, number, lease.agent, lease.day, held, actual, at_ms, (), 0, ()),
                )
                out = lease.out - before + (actual if actual < held else held)
                try:
                    # `_do` inlined, for speed.
                    lease.out = out
                    if lease.unsettled:
                        lease.unsettled.append(event)
                    else:
                        lease.progress_ns = self.now_ns()
                        lease.unsettled = [event]
                    lease.finalized = number
                    hold.held_micros = held
                    hold._ended = True
                    hold.__class__ = self._ended_type
                    # Emit under the lock, so that events are sent in the order of their numbers.
                    self.emit(event)
                except BaseException as error:
                    self._do((hold, lease, out, lease.last_hold, lease.released, event, None, 0, ()))
                    if not isinstance(error, Exception):
                        raise
                number = 0  # In CPython 3.11 the outer handler covers the end of this `try` only if code follows.
        except BaseException:
            self._leave_lock()
            raise
        if self._inbox:
            self.catch_up()

    def _finalize_on_route(self, hold: BaseHold, route: Route, actual: int, at_ms: int, *, again: bool) -> None:
        """Finalize a call that has labels or counts in other budgets: on all its leases."""
        try:
            with self.lock:
                if self._move is not None or self._inbox:
                    self.catch_up_locked()
                lease, held = hold._lease, hold.held_micros
                if hold._ended or lease.foreign:
                    if not (again and hold._ended):
                        raise _ended(hold)
                elif actual > held:
                    self._apply_end(hold, actual, at_ms, _How.CHARGED)
                else:
                    number, facts = lease.finalized + 1, (route.shares, route.plan, route.labels)
                    event = _new_event(
                        FinalizeEvent,
                        (lease.id, hold._number, number, lease.agent, lease.day, held, actual, at_ms, *facts),
                    )
                    outs = [(other, other.out - held + actual) for other in route.others]
                    out = lease.out - held + actual
                    self._do((hold, lease, out, lease.last_hold, lease.released, event, None, 0, outs))
            held = 0  # See `finalize`.
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
        try:
            with self.lock:
                self.catch_up_locked()
                lease = hold._lease
                together = not hold._ended and lease is more._lease and _others(hold) == _others(more)
                if together:
                    held = hold.held_micros + more.held_micros
                    self._do((more, lease, lease.out, lease.last_hold, lease.released + 1, None, hold, held, ()))
            held = 0  # See `finalize`.
        except BaseException:
            self._leave_lock()
            raise
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
            with self.lock:
                self.catch_up_locked()

    def close(self) -> None:
        """Make no new holds; live ones can still be ended."""
        with self.lock:
            self.catch_up_locked()
            self.closed = True
            for lease in self.leases.all():
                lease.deadline_ns = 0

    def ask_always(self, always: bool) -> None:
        """Make no hold from memory while `always` is set: no event could be sent, and asking raises the reason."""
        with self.lock:
            self.catch_up_locked()
            self.asks_always = always
            for lease in self.leases.all() if always else ():
                lease.deadline_ns = 0

    def forget(self) -> None:
        """Mark all leases as the parent's and start empty. Called in a forked child."""
        for lease in self.leases.all():
            lease.foreign = True
        self._clear()

    # --- queries ------------------------------------------------------------------------------------------

    def free_micros(self, agent: str) -> int:
        """Return what this process can still reserve for the agent without asking."""
        lease = self._current.get(agent)
        return lease.free if lease is not None and self.now_ns() < lease.deadline_ns else 0

    def live_holds(self) -> int:
        """Return how many holds of this process have not ended."""
        self.catch_up()
        with self.lock:
            return sum(lease.live_holds for lease in self.leases.all())

    # --- private; the lock is held --------------------------------------------------------------------------

    def _leave_lock(self) -> None:
        """Release the lock if an exception came between the end of a locked block and the lock's own exit."""
        if self.inside():
            self.lock.release()
        if self._inbox:
            self.catch_up()

    def _end(self, hold: BaseHold, actual: int, how: _How) -> None:
        """End a hold, off the hot path."""
        at_ms = time.time_ns() // _MS
        if self.inside():
            self._leave(hold, actual, at_ms, how)
            return
        try:
            with self.lock:
                self.catch_up_locked()
                if hold._ended or hold._lease.foreign:
                    raise _ended(hold)
                self._apply_end(hold, actual, at_ms, how)
            at_ms = 0  # See `finalize`.
        except BaseException:
            self._leave_lock()
            raise
        self.catch_up()

    def _leave(self, taken: Taken, actual: int, at_ms: int, how: _How) -> None:
        """Leave an end to the next caller. Raises `HoldEnded` if the hold is known to have ended."""
        if isinstance(taken, BaseHold) and how is not _How.DROPPED and (taken._ended or taken._lease.foreign):
            raise _ended(taken)
        self._inbox.append(_Ending(taken, actual, at_ms, how))

    def catch_up_locked(self) -> None:
        if self._move is not None:
            self._do(self._move)
        inbox = self._inbox
        while inbox:
            taken, actual, at_ms, how = inbox[0]
            if not (taken._ended or taken._lease.foreign):
                self._apply_end(taken, actual, at_ms, how)
            inbox.popleft()

    def _apply_end(self, taken: Taken, actual: int, at_ms: int, how: _How) -> None:
        lease, held = taken._lease, taken.held_micros
        if not isinstance(taken, BaseHold):
            self.put_back(taken)
        elif how is _How.RELEASED:
            outs: _Outs = [(other, other.out - held) for other in _others(taken)]
            self._do((taken, lease, lease.out - held, lease.last_hold, lease.released + 1, None, None, 0, outs))
        elif how is _How.IN_PART:
            part, number = min(actual, held), lease.last_hold + 1
            event, out, outs = self._charge(taken, number, part, actual, at_ms)
            self._do((None, lease, out, number, lease.released, event, taken, held - part, outs))
        else:
            if how is _How.DROPPED:
                actual = held if taken._actual is None else taken._actual
                now_ns = self.now_ns()
                age_s = (now_ns - getattr(taken, "_since_ns", now_ns)) / 1e9
                self._dropped.append(Dropped(lease.agent, actual, age_s, getattr(taken, "where", "")))
            event, out, outs = self._charge(taken, taken._number, held, actual, at_ms)
            self._do((taken, lease, out, lease.last_hold, lease.released, event, None, 0, outs))

    def _charge(
        self, hold: BaseHold, number: int, held: int, actual: int, at_ms: int
    ) -> tuple[FinalizeEvent, int, _Outs]:
        """Return the event that charges `actual` against `held`, and each lease's `out` after it."""
        lease, route, before = hold._lease, hold._route, held
        plan = 0
        labels: Labels = ()
        shares: tuple[Share, ...] = ()
        outs: _Outs = ()
        if route is not None:
            plan, labels, shares = route.plan, route.labels, route.shares
        if actual <= held:
            if route is not None:
                outs = tuple([(other, other.out - held + actual) for other in route.others])
        else:
            # The free money of each lease covers an overage of its own first, so that it is not lent twice.
            now_ns = self.now_ns()
            held = _with_free(lease, before, actual, now_ns)
            if route is not None:
                helds = [_with_free(other, before, actual, now_ns) for other in route.others]
                pairs = list(zip(route.others, helds, strict=True))
                outs = tuple([(other, other.out - before + min(actual, its)) for other, its in pairs])
                shares = (
                    *(
                        share if its == held else share._replace(held_micros=its)
                        for share, its in zip(shares, helds, strict=False)
                    ),
                    *shares[len(helds) :],
                )
        facts = (lease.id, number, lease.finalized + 1, lease.agent, lease.day, held, actual, at_ms)
        event: FinalizeEvent = _new_event(FinalizeEvent, (*facts, shares, plan, labels))
        return event, lease.out - before + min(actual, held), outs

    def _do(self, move: _Move, *, again: bool = False) -> None:
        """Apply `move` as a whole: from the beginning once more if an exception from a signal handler interrupts it."""
        try:
            self._move = move
            ended, lease, out, last_hold, released, event, other, other_held, outs = move
            lease.out, lease.last_hold, lease.released = out, last_hold, released
            for its_lease, its_out in outs:
                its_lease.out = its_out
                if event is not None and not its_lease.owed_ns:
                    its_lease.owed_ns = self.now_ns()  # It is renewed until its own counter has what was drawn.
            if other is not None:
                other.held_micros = other_held
                if getattr(other, "_ended", True):
                    other._ended = False
            if event is not None:
                unsettled = lease.unsettled
                if not unsettled:
                    lease.progress_ns = self.now_ns()
                    lease.unsettled = [event]
                elif unsettled[-1] is not event:
                    unsettled.append(event)
                lease.finalized = event.number
                self._hand_on(event)
            if ended is not None:
                if other is None and event is not None:
                    ended.held_micros = event.held_micros
                ended._ended = True
                if isinstance(ended, BaseHold):
                    ended.__class__ = self._ended_type
            self._move = None
        except BaseException:
            if self._move is not None and not again:
                self._do(move, again=True)
            raise

    def _hand_on(self, event: FinalizeEvent) -> None:
        """Emit under the lock, so that events are sent in the order of their numbers."""
        try:
            self.emit(event)
        except Exception as error:
            self.trouble = error  # The event is in `unsettled`, and is resent when it stalls.

    def put_back(self, pending: Taken) -> None:
        """Free the money that a question earmarked."""
        if not pending.ended:
            lease = pending._lease
            lease.owed_ns = self.now_ns()
            lease.questions.pop(pending._number, None)
            out = lease.out - pending.held_micros
            self._do((pending, lease, out, lease.last_hold, lease.released, None, None, 0, ()))


def _others(hold: Taken) -> tuple[Lease, ...]:
    """Return the leases of other budgets that the hold draws on."""
    route = hold._route if isinstance(hold, BaseHold) else None
    return () if route is None else route.others


def _with_free(lease: Lease, held: int, actual: int, now_ns: int) -> int:
    """Return what a hold of `held` has of its lease, with the lease's free money up to the `actual` cost."""
    return held + min(actual - held, lease.free) if now_ns < lease.deadline_ns else held


def _ended(hold: BaseHold) -> HoldEnded:
    if hold._lease.foreign:
        return HoldEnded(f"hold {hold.id} belongs to the parent of this forked process")
    return HoldEnded(f"hold {hold.id} was already finalized or released")
