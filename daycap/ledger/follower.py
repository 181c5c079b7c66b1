"""Without Redis but with a ledger: the counter is in memory, and what is settled is read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from daycap.counters.memory import MemoryCounter
from daycap.errors import CounterUnavailable, LedgerUnavailable
from daycap.ledger.reader import LedgerReader
from daycap.protocol.counter import LeaseTerms, SyncReply, SyncRequest


class LedgerFollower(MemoryCounter):
    """A counter in memory, for one process, that opens and warms itself from the ledger that it reads.

    Each sync that needs no money (renewals, and the polls of a flush) reads the ledger first, as each publish
    of a worker would have told it.
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
                raise CounterUnavailable(f"the counter follows the ledger, but {error}") from error
            # One process made every lease that there is: it needs no fence.
            self.publish(snapshots, self._terms, first_until_ms=self.now_ms() + 1000)
        return super().sync(requests)
