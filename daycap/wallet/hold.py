"""Holds: money taken out of a lease, for a call or while the counter is asked."""

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
from daycap.protocol.labels import Labels
from daycap.wallet.lease import Lease, Route

_PACKAGE = str(Path(__file__).parents[1])


class Book(Protocol):
    """The part of the lease book that a hold calls."""

    reserve_more: Any
    """The wallet's `reserve`, which is given the labels of the hold that is extended."""

    def finalize(self, hold: BaseHold, actual: int, *, again: bool = False) -> None:
        """See `BaseHold.finalize`."""

    def settle_part(self, hold: BaseHold, actual: int) -> None:
        """See `BaseHold.settle_part`."""

    def join(self, hold: BaseHold, more: BaseHold) -> None:
        """See `Hold.extend`."""

    def release(self, hold: BaseHold) -> None:
        """See `BaseHold.release`."""

    def dropped(self, taken: Taken) -> None:
        """End what its owner dropped without ending it."""


class Taken:
    """Money taken out of a lease until it is ended. If the owner drops it, its finalizer ends it."""

    __slots__ = ("_book", "_ended", "_lease", "_number", "held_micros")

    _ended: bool
    """Unset until the book has taken the money, then False, and True once it is ended."""

    _number: int
    """Its number among the lease's holds, or among the book's questions."""

    def __init__(self, book: Book, lease: Lease, held_micros: int) -> None:
        self._book = book
        self._lease = lease
        self.held_micros = held_micros

    @property
    def ended(self) -> bool:
        """Whether it holds no money, or none any more."""
        return getattr(self, "_ended", True)


def _forgotten(taken: Taken) -> None:
    """Finalizer: end what still holds money."""
    try:
        if taken._ended or taken._lease.foreign:
            return
    except AttributeError:  # It never held any.
        return
    taken._book.dropped(taken)


class Pending(Taken):
    """A sync in progress: when it was built, and the free money that it earmarks for one reservation.

    The sync of a renewal earmarks nothing.
    """

    __slots__ = ("handed_back", "kept", "labels", "others", "request", "sent_ns")

    __del__ = _forgotten

    handed_back: int | None
    """What the agent's retired leases of the day had handed back when it was built; None if they may owe more."""

    labels: Labels
    """Of the question about an agent's own day: the call's labels."""

    others: tuple[Pending, ...]
    """Of the question about an agent's own day: those about other budgets, which go in the same exchange."""

    kept: tuple[Pending, ...]
    """What the question earmarks of leases that need not be asked. They are not sent."""

    def __init__(self, book: Book, lease: Lease, request: SyncRequest, sent_ns: int, earmarked: int = 0) -> None:
        super().__init__(book, lease, earmarked)
        self.request = request
        self.sent_ns = sent_ns
        self.handed_back = None
        self.labels = ()
        self.others = self.kept = ()

    @property
    def lease(self) -> Lease:
        """The lease that the counter is asked about."""
        return self._lease

    @property
    def earmarked(self) -> int:
        """How many micros it earmarks, or did."""
        return self.held_micros

    @property
    def all(self) -> tuple[Pending, ...]:
        """It and the others, in the order of their replies."""
        return (self, *self.others)


class BaseHold(Taken):
    """One reservation. End it once: with `finalize` and the actual cost, or with `release`.

    As a context manager it finalizes on exit with `actual` if that was set, otherwise with the whole hold: the
    provider may have billed the call even if it failed or was cancelled. A hold that is dropped without being ended
    is finalized the same way, and logged.
    """

    __slots__ = ("_actual", "_pricing", "_route", "_since_ns")

    _pricing: CallPricing | None
    """The prices of its call; None for a hold that was reserved without a model."""

    _route: Route | None
    """What it draws on besides the lease of its agent's day; None if nothing, and without labels."""

    _since_ns: int
    """When the money was taken, on the book's clock."""

    _actual: int | None

    @property
    def actual(self) -> int | None:
        """The actual cost in micros, charged at the end of a `with` block; None until it is set.

        Setting it raises `InvalidAmount`.
        """
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
        """The agent whose money is held."""
        return self._lease.agent

    @property
    def day(self) -> str:
        """The UTC day that the cost will be charged to."""
        return self._lease.day

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the call."""
        return {} if self._route is None else dict(self._route.labels)

    def used(self, usage: AnyUsage) -> None:
        """Set `actual` from the call's usage. Raises `InvalidInput`, `UnknownModel`; see `Prices.actual_micros`."""
        self._actual = self._cost(usage)

    @overload
    def finalize(self, actual_micros: int) -> None: ...
    @overload
    def finalize(self, *, usage: AnyUsage) -> None: ...
    def finalize(self, actual_micros: int | None = None, *, usage: AnyUsage = None) -> None:
        """End the hold with the actual cost of the call, in micros or from its usage. Queues the event and returns.

        A cost above the hold is charged: the wallet cannot undo a bill. Pass the usage of the whole call, including
        parts that are already settled. Raises `HoldEnded`, `InvalidAmount` and, for a usage, what
        `Prices.actual_micros` raises; the hold is then unchanged.
        """
        if usage is not None:
            actual_micros = self._cost(usage)
        elif type(actual_micros) is not int or not 0 <= actual_micros <= MAX_MICROS:
            actual_micros = micros(actual_micros)  # Raises the right error. The check is inlined for the hot path.
        self._book.finalize(self, actual_micros)

    def _cost(self, usage: AnyUsage) -> int:
        if self._pricing is None:
            raise InvalidInput("a hold that was reserved without a model takes micros, not a usage")
        return self._pricing.cost_micros(usage)

    def settle_part(self, actual_micros: int) -> None:
        """Charge part of a long call now, in micros, and hold the rest, so that a crash loses little.

        The part is taken out of the hold and settled as its own event; `finalize` then charges the cost after the
        last part. If a part costs more than the hold, the rest is an overage, as in `finalize`. Raises
        `InvalidAmount` or `HoldEnded`; the hold is then unchanged.
        """
        self._book.settle_part(self, micros(actual_micros))
        if self._pricing is not None:
            self._pricing.settled_micros += actual_micros

    def release(self) -> None:
        """End the hold without a cost. Only for a call that was definitely not sent. Raises `HoldEnded`."""
        self._book.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if not self._ended:
            self._book.finalize(self, self.held_micros if self._actual is None else self._actual, again=True)

    def __reduce__(self) -> NoReturn:
        raise InvalidInput("a hold cannot be pickled: end it in the process that reserved it")

    def __repr__(self) -> str:
        state = "ended" if self.ended else "live"
        facts = f"agent={self.agent} day={self.day} held_micros={self.held_micros}"
        return f"<{type(self).__name__} {self.id} {facts} {state}>"


H = TypeVar("H", bound=BaseHold)


class Hold(BaseHold):
    """A hold of a `Wallet`."""

    __slots__ = ()

    def extend(self, more_micros: int) -> None:
        """Hold `more_micros` more during the call. Waits and raises as `Wallet.reserve` does, and raises `HoldEnded`.

        After the end of its day a hold cannot be extended: on `BudgetUnavailable`, call `settle_part` with the cost so
        far and reserve again. On an error the hold is unchanged.
        """
        self._book.join(self, self._book.reserve_more(self.agent, more_micros, labels=self.labels))


class AsyncHold(BaseHold):
    """A hold of an `AsyncWallet`. Only `extend` may wait; everything else happens in memory."""

    __slots__ = ()

    async def extend(self, more_micros: int) -> None:
        """Extend as `Hold.extend` does."""
        self._book.join(self, await self._book.reserve_more(self.agent, more_micros, labels=self.labels))


def kinds(hold_type: type[H], *, traced: bool) -> tuple[type[H], Callable[[], H]]:
    """Return the class of ended holds, and a factory of live ones. The book fills those in: faster than `__init__`.

    Only live holds have a finalizer, because Python loses an exception that a signal handler raises in one. Holds that
    are `traced` store the line that reserved them in `where`, as `file:line`.
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
