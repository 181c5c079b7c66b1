"""The transport interface: how a runner delivers events for settling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from daycap.errors import InvalidSetting
from daycap.protocol.counter import DaySnapshot
from daycap.protocol.wire import FinalizeEvent


class Transport(ABC):
    """Delivers events to whatever settles them. Used by one thread at a time; after any exception, retry."""

    @abstractmethod
    def send(self, events: Sequence[FinalizeEvent]) -> None:
        """Hand over 1..500 events. When it returns, the receiver has them."""

    @abstractmethod
    def open_day(self, agent: str, day: str) -> None:
        """Request that the agent's day be opened in the counter."""

    def connect(self) -> None:  # noqa: B027  (most have nothing to connect to)
        """Connect for `send`, if not connected yet."""

    def refusal(self, error: Exception) -> str | None:
        """Return why nothing can be sent until someone acts, and what to do; None if `error` may pass by itself."""
        return None

    @abstractmethod
    def backlog(self) -> int:
        """Return how many messages wait to be settled."""

    def snapshot(self, agent: str, day: str) -> DaySnapshot | None:
        """Return the day if this transport settles it in this process; None if a worker does."""
        return None

    def hear_changes(self) -> None:  # noqa: B027  (most are told)
        """Look, before leases are renewed, whether others changed caps or states. Raises `LedgerUnavailable`."""

    def add_agent(self, agent: str, cap_micros: int) -> None:
        """See `Wallet.add_agent`."""
        raise _no_accounts(f"daycap agent add {agent} --cap USD")

    def set_cap(self, agent: str, cap_micros: int) -> None:
        """See `Wallet.set_cap`."""
        raise _no_accounts(f"daycap cap set {agent} USD")

    def add_group(self, name: str, agents: Collection[str], groups: Collection[str]) -> None:
        """See `Wallet.add_group`."""
        raise _no_accounts(f"daycap group add {name}")

    def add_budget(self, name: str, facts: Mapping[str, Any]) -> None:
        """See `Wallet.add_budget`. `facts`: as `daycap.ledger.definitions.defined` takes them."""
        raise _no_accounts(f"daycap budget add {name} --cap USD")

    @abstractmethod
    def use_clock(self, counter_ms: Callable[[], int | None]) -> None:
        """Stamp messages with the counter's time from `counter_ms`, which returns None while it is unknown."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what is shared with the parent without touching it. Called in a forked child."""

    @abstractmethod
    def close(self) -> None:
        """Close connections."""


def _no_accounts(command: str) -> InvalidSetting:
    return InvalidSetting(
        "this wallet keeps no agents or budgets: only one with DAYCAP_LEDGER_URL=sqlite:///... and without Redis and "
        "broker does; "
        f"run: {command} (or pass caps= to a wallet in memory)"
    )
