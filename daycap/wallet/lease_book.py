"""The lease book: what a runner process has been granted, what it holds, and what it still has to hear of.

Pure memory, no I/O. Everything that needs the counter has two steps, building a request and applying its reply, so
that a thread or an event loop can wait in between.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from daycap.clock import boot_ns
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet.exchanges import Exchanges
from daycap.wallet.hold import H, Hold
from daycap.wallet.holds import Holds
from daycap.wallet.unsettled import Unsettled


class LeaseBook(Holds[H]):
    """The book of one runner process: its holds, its `exchanges` with the counter, and its `unsettled` events.

    `emit` is called with each event that a finalize creates, `settled` with each that the ledger has. `guard_ms` is
    how long before the counter's deadline this process stops using a lease, and how old an answer may be.
    `slice_seconds` is how many seconds of an agent's use to lease ahead, 0 for none. See `Holds` for the others.
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
        super().__init__(
            emit,
            hold_type=hold_type,
            trace_holds=trace_holds,
            reserve_more=reserve_more,
            now_ns=now_ns,
            random=random,
        )
        self.unsettled = Unsettled(self, settled)
        self.exchanges: Exchanges[H] = Exchanges(self, self.unsettled, guard_ms, slice_seconds)

    def forget(self) -> None:
        """Mark all leases as the parent's and start empty. Called in a forked child."""
        super().forget()
        self.exchanges.clear()
