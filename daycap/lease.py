"""What a runner process has been granted, and the holds that it made of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, overload

from daycap.counter import SyncRequest
from daycap.errors import InvalidInput
from daycap.money import MAX_MICROS, micros
from daycap.usage import AnyUsage
from daycap.wire import FinalizeEvent

if TYPE_CHECKING:
    from daycap.lease_book import LeaseBook


_PACKAGE = str(Path(__file__).parent)


class _Touched:
    """What a call reads or writes of its lease, side by side in memory: Python sorts the slots of one class by name."""

    __slots__ = (
        "agent",
        "day",
        "deadline_ns",
        "events",
        "foreign",
        "granted",
        "id",
        "last_hold",
        "out",
        "progress_ns",
        "released",
        "returned",
        "unsettled",
        "used",
    )


class Lease(_Touched):
    """What the counter has set aside for this process, one agent, one day. Amounts are micros.

    `granted` and `returned` are the running totals that are reported. `out` is what live holds and open questions have
    taken, and what ended holds have drawn; `free` is derived from the three, so that each move of money is one store
    that nothing can interrupt halfway. `released`: how many holds ended without an event. `deadline_ns` is the local
    deadline on the boot clock: past it there is no new hold. `unsettled` keeps each event until the counter says that
    the ledger has it; `progress_ns`: when it last said so of some, or the first of them came. `ended`: what the events
    drew that are known to be settled and not kept here; `drawn`: what the counter says that the ledger has drawn.
    `questions`: what each reservation that asks the counter just now keeps of the free money, by its number. `owed_ns`:
    when something happened that may leave money set aside in the counter which is not needed here, 0 once it said
    otherwise; `recalled`: it wants back what is free. `unsure`: the counter may have other totals than these, until it
    has answered to them.
    """

    __slots__ = (
        "cap",
        "drawn",
        "ended",
        "leased",
        "owed_ns",
        "questions",
        "rate",
        "recalled",
        "resends",
        "spent",
        "ttl_ms",
        "unsure",
        "window_ns",
    )

    def __init__(self, agent: str, day: str, lease_id: str, now_ns: int) -> None:
        self.agent = agent
        self.day = day
        self.id = lease_id
        self.granted = self.returned = self.out = 0
        self.deadline_ns = 0
        self.last_hold = self.events = self.released = 0
        self.unsettled: list[FinalizeEvent] | tuple[()] = ()
        self.progress_ns = 0
        self.resends = 0
        self.used = 0
        self.window_ns = now_ns
        self.rate = 0.0
        self.drawn = self.ended = 0
        self.cap = self.spent = self.leased = self.ttl_ms = 0
        self.questions: dict[int, int] = {}
        self.owed_ns = 0
        self.recalled = self.foreign = self.unsure = False

    @property
    def free(self) -> int:
        """What no hold, no question and no event has of the lease."""
        return self.granted - self.returned - self.out

    @property
    def live_holds(self) -> int:
        """How many holds have not ended."""
        return self.last_hold - self.events - self.released

    @property
    def earmarked(self) -> int:
        """What reservations keep that ask the counter just now."""
        return sum(self.questions.values())

    @property
    def held(self) -> int:
        """What live holds have."""
        return self.out - self.earmarked - self.ended - sum(event.drawn_micros for event in self.unsettled)

    @property
    def aside(self) -> int:
        """What the counter has set aside for this lease, by its last answer."""
        return max(0, self.granted - self.returned - self.drawn)

    @property
    def owes(self) -> bool:
        """Whether the counter may have set aside more than this lease's holds and events need."""
        return self.unsure or self.free > 0 or self.earmarked > 0

    @property
    def in_use(self) -> bool:
        """Whether the counter must go on hearing of this lease."""
        return self.owed_ns > 0 or self.free > 0 or self.live_holds > 0 or bool(self.unsettled)


class Taken:
    """Money that was taken out of a lease, until it ended. Its owner may forget it: then `_dropped` ends it."""

    __slots__ = ("_book", "_ended", "_lease", "_number", "held_micros")

    _ended: bool
    """False from when the book has taken the money until it ends; before that it is not set."""

    _number: int
    """Which of the lease's holds, or of the book's questions, it is."""

    def __init__(self, book: LeaseBook[Any], lease: Lease, held_micros: int) -> None:
        self._book = book
        self._lease = lease
        self.held_micros = held_micros

    @property
    def ended(self) -> bool:
        """Whether it has no money (any more)."""
        return getattr(self, "_ended", True)


def _forgotten(taken: Taken) -> None:
    """The finalizer of what still has money."""
    try:
        if taken._ended or taken._lease.foreign:
            return
    except AttributeError:  # It never had any.
        return
    taken._book.dropped(taken)


class Pending(Taken):
    """A sync that is under way: when it was built, and the free money that it keeps for one reservation.

    That of a renewal keeps none.
    """

    __slots__ = ("handed_back", "request", "sent_ns")

    __del__ = _forgotten

    handed_back: int | None
    """What the agent's retired leases of the day had handed back by then; None where they may have more."""

    def __init__(
        self, book: LeaseBook[Any], lease: Lease, request: SyncRequest, sent_ns: int, earmarked: int = 0
    ) -> None:
        super().__init__(book, lease, earmarked)
        self.request = request
        self.sent_ns = sent_ns
        self.handed_back = None

    @property
    def lease(self) -> Lease:
        """The lease that the counter is asked about."""
        return self._lease

    @property
    def earmarked(self) -> int:
        """How many micros it keeps, or kept."""
        return self.held_micros


class BaseHold(Taken):
    """One reservation, to be ended once: by `finalize` with the actual cost, or by `release`.

    As a context manager it is finalized on leaving with `actual`, if that was set, and else with all that is
    held: the provider may have billed the call even though it failed, or was cancelled. One that its owner forgets
    without ending it is finalized so too, and logged.
    """

    __slots__ = ("_actual", "_cost_of", "_since_ns")

    _cost_of: Callable[[AnyUsage], int]
    """What a usage costs, in micros. Only a hold that was reserved for a model has it."""

    _since_ns: int
    """When the money was taken, on the book's clock."""

    _actual: int | None

    @property
    def actual(self) -> int | None:
        """The actual cost in micros, for leaving a `with` block; None until it is set. Raises `InvalidAmount`."""
        return self._actual

    @actual.setter
    def actual(self, actual_micros: int) -> None:
        self._actual = micros(actual_micros)

    @property
    def id(self) -> str:
        """The reservation's id, `<lease>-<n>`."""
        return f"{self._lease.id}-{self._number}"

    @property
    def agent(self) -> str:
        """Whose money is held."""
        return self._lease.agent

    @property
    def day(self) -> str:
        """The UTC day that the cost will be charged to."""
        return self._lease.day

    def used(self, usage: AnyUsage) -> None:
        """Set `actual` by the call's usage. Raises `InvalidInput`, `UnknownModel`; see `Prices.actual_micros`."""
        self._actual = self._cost(usage)

    @overload
    def finalize(self, actual_micros: int) -> None: ...
    @overload
    def finalize(self, *, usage: AnyUsage) -> None: ...
    def finalize(self, actual_micros: int | None = None, *, usage: AnyUsage = None) -> None:
        """End the hold with what the call cost, in micros or by its usage, queue the event and return.

        A cost above the hold is taken: the wallet cannot undo a bill. A usage is that of the whole call, parts that
        are settled included. Raises `HoldEnded`, `InvalidAmount` and, for a usage, what `Prices.actual_micros`
        raises; then the hold stays as it was.
        """
        if usage is not None:
            actual_micros = self._cost(usage)
        elif type(actual_micros) is not int or not 0 <= actual_micros <= MAX_MICROS:
            actual_micros = micros(actual_micros)  # It says what is wrong; this is the hot path.
        self._book.finalize(self, actual_micros)

    def _cost(self, usage: AnyUsage) -> int:
        if not hasattr(self, "_cost_of"):
            raise InvalidInput("a hold that was not reserved for a model takes micros and no usage")
        return self._cost_of(usage)

    def settle_part(self, actual_micros: int) -> None:
        """Charge a part of the call now, in micros, and hold the rest: for a long one, so that a crash loses little.

        The part is taken out of what is held, and settled as an event of its own; `finalize` then takes what came
        after the last part. Of a part that costs more than is held the rest is an overage, as in `finalize`. Raises
        `InvalidAmount` or `HoldEnded`, and the hold stays as it was.
        """
        self._book.settle_part(self, micros(actual_micros))
        if hasattr(self, "_cost_of"):
            whole = self._cost_of
            self._cost_of = lambda usage: max(0, whole(usage) - actual_micros)

    def release(self) -> None:
        """End the hold without a cost: only for a call that surely was not made. Raises `HoldEnded`."""
        self._book.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if not self._ended:
            self._book.finalize(self, self.held_micros if self._actual is None else self._actual, again=True)

    def __reduce__(self) -> NoReturn:
        raise InvalidInput("a hold cannot be pickled: it is ended in the process that reserved it")

    def __repr__(self) -> str:
        state = "ended" if self.ended else "live"
        facts = f"agent={self.agent} day={self.day} held_micros={self.held_micros}"
        return f"<{type(self).__name__} {self.id} {facts} {state}>"


H = TypeVar("H", bound=BaseHold)


class Hold(BaseHold):
    """A hold of a `Wallet`."""

    __slots__ = ()

    def extend(self, more_micros: int) -> None:
        """Hold so many micros more, in the middle of the call. Waits and raises as `Wallet.reserve` does.

        A hold cannot be extended when its day is over: `BudgetUnavailable`; then `settle_part` what it has cost and
        reserve anew. Refused, it stays as it was. Raises `HoldEnded`.
        """
        self._book.join(self, self._book.reserve_more(self.agent, more_micros))


class AsyncHold(BaseHold):
    """A hold of an `AsyncWallet`. Only `extend` may have to wait, all else is done in memory."""

    __slots__ = ()

    async def extend(self, more_micros: int) -> None:
        """See `Hold.extend`."""
        self._book.join(self, await self._book.reserve_more(self.agent, more_micros))


def kinds(hold_type: type[H], *, traced: bool) -> tuple[type[H], Callable[[], H]]:
    """The class of holds that have ended, and what makes live ones: the book fills them in, for a constructor in Python
    is slower.

    Only the class of live ones has a finalizer: of the exceptions that a signal's handler raises in one, Python loses
    each. Those that are `traced` remember in `where` what line reserved them, as `file:line`.
    """
    ended: Any = type(hold_type.__name__, (hold_type,), {"__slots__": ("where",)}) if traced else hold_type
    live: Any = type(hold_type.__name__, (ended,), {"__slots__": (), "__del__": _forgotten})
    if not traced:
        return ended, partial(object.__new__, live)

    def make() -> Any:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        hold = object.__new__(live)
        hold.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return hold

    return ended, make
