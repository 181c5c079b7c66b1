"""Holds: money taken out of a lease, for a call or for a question to the counter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self, TypeVar, overload

from daycap.errors import InvalidInput
from daycap.money import MAX_MICROS, micros
from daycap.pricing.answer_cost import CallPricing
from daycap.pricing.usage import AnyUsage
from daycap.protocol.counter import SyncRequest
from daycap.wallet.lease import Lease

_PACKAGE = str(Path(__file__).parents[1])


class Book(Protocol):
    """What a hold needs of the book that made it."""

    reserve_more: Any
    """The wallet's `reserve`."""

    def finalize(self, hold: BaseHold, actual: int, *, again: bool = False) -> None:
        """See `BaseHold.finalize`."""

    def settle_part(self, hold: BaseHold, actual: int) -> None:
        """See `BaseHold.settle_part`."""

    def join(self, hold: BaseHold, more: BaseHold) -> None:
        """See `Hold.extend`."""

    def release(self, hold: BaseHold) -> None:
        """See `BaseHold.release`."""

    def dropped(self, taken: Taken) -> None:
        """Its owner forgot it."""


class Taken:
    """Money that was taken out of a lease, until it ended. Its owner may forget it: then `_dropped` ends it."""

    __slots__ = ("_book", "_ended", "_lease", "_number", "held_micros")

    _ended: bool
    """False from when the book has taken the money until it ends; before that it is not set."""

    _number: int
    """Which of the lease's holds, or of the book's questions, it is."""

    def __init__(self, book: Book, lease: Lease, held_micros: int) -> None:
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

    def __init__(self, book: Book, lease: Lease, request: SyncRequest, sent_ns: int, earmarked: int = 0) -> None:
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

    __slots__ = ("_actual", "_pricing", "_since_ns")

    _pricing: CallPricing | None
    """What a usage of its call costs; None for a hold that was reserved without a model."""

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
        if self._pricing is None:
            raise InvalidInput("a hold that was not reserved for a model takes micros and no usage")
        return self._pricing.cost_micros(usage)

    def settle_part(self, actual_micros: int) -> None:
        """Charge a part of the call now, in micros, and hold the rest: for a long one, so that a crash loses little.

        The part is taken out of what is held, and settled as an event of its own; `finalize` then takes what came
        after the last part. Of a part that costs more than is held the rest is an overage, as in `finalize`. Raises
        `InvalidAmount` or `HoldEnded`, and the hold stays as it was.
        """
        self._book.settle_part(self, micros(actual_micros))
        if self._pricing is not None:
            self._pricing.settled_micros += actual_micros

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
