"""The way from a runner to whoever settles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from daycap.errors import InvalidSetting
from daycap.protocol.counter import DaySnapshot
from daycap.protocol.wire import FinalizeEvent


class Transport(ABC):
    """The way from a runner to whoever settles. Used by one thread at a time; any exception means try again."""

    @abstractmethod
    def send(self, events: Sequence[FinalizeEvent]) -> None:
        """Hand over 1..500 events. When it returns, the receiver has them."""

    @abstractmethod
    def open_day(self, agent: str, day: str) -> None:
        """Ask for the agent's day to be opened in the counter."""

    def connect(self) -> None:  # noqa: B027  (most have nothing to connect to)
        """Make the connection that `send` needs, if there is none."""

    def refusal(self, error: Exception) -> str | None:
        """Why nothing can be sent before somebody acts, and what to do; None if `error` may pass by itself."""
        return None

    @abstractmethod
    def backlog(self) -> int:
        """How many messages wait to be settled."""

    def snapshot(self, agent: str, day: str) -> DaySnapshot | None:
        """The day, where this transport settles it in this process; None where somebody else does."""
        return None

    def hear_changes(self) -> None:  # noqa: B027  (most are told)
        """Look, before leases are renewed, whether others changed caps or states. Raises `LedgerUnavailable`."""

    def add_agent(self, agent: str, cap_micros: int) -> None:
        """See `Wallet.add_agent`."""
        raise _no_accounts(f"daycap agent add {agent} --cap USD")

    def set_cap(self, agent: str, cap_micros: int) -> None:
        """See `Wallet.set_cap`."""
        raise _no_accounts(f"daycap cap set {agent} USD")

    @abstractmethod
    def use_clock(self, counter_ms: Callable[[], int | None]) -> None:
        """Be told where the counter's time comes from, None while it is not known; messages carry it."""

    @abstractmethod
    def forget(self) -> None:
        """In a forked child: let go of what is shared with the parent without touching it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections."""


def _no_accounts(command: str) -> InvalidSetting:
    return InvalidSetting(
        "this wallet keeps no agents: only one with DAYCAP_LEDGER_URL=sqlite:///... and without Redis and broker does; "
        f"run: {command} (or pass caps= to a wallet in memory)"
    )
