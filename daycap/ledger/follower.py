"""The counter of a set-up with a ledger but no Redis: in memory, with settled spending read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from daycap.counters.memory import MemoryCounter
from daycap.errors import CounterUnavailable, LedgerUnavailable
from daycap.ledger.reader import LedgerReader
from daycap.protocol.counter import LeaseTerms, SyncReply, SyncRequest


class LedgerFollower(MemoryCounter):
    """An in-memory counter for one process, which opens days and updates itself from the ledger.

    Every sync that needs no money (renewals, and the polls of a flush) reads the ledger first. With Redis, a worker's
    publish would update the counter instead.
    """

    immediate = False

    def __init__(self, reader: LedgerReader, terms: LeaseTerms) -> None:
        super().__init__()
        self._reader = reader
        self._terms = terms

    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        known = self.read([(request.agent, request.day) for request in requests])
        stale = {
            (request.agent, request.day): None
            for request, reading in zip(requests, known, strict=True)
            if reading is None or request.need_micros == 0
        }
        if stale:
            try:
                snapshots = self._reader.snapshots(list(stale))
            except LedgerUnavailable as error:
                raise CounterUnavailable(f"cannot update the counter: {error}") from error
            # This process created every existing lease, so no fence is needed.
            self.publish(snapshots, self._terms, first_until_ms=self.now_ms() + 1000)
        return super().sync(requests)
