"""The counter of a set-up with a ledger but no Redis: in memory, with settled spending read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from daycap.counters.memory import MemoryCounter
from daycap.errors import CounterUnavailable, LedgerUnavailable
from daycap.ledger.reader import LedgerReader
from daycap.protocol.counter import (
    AgentDay,
    DayReading,
    DaySnapshot,
    LeaseTerms,
    SyncReply,
    SyncRequest,
)


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
            (request.agent, request.day): reading
            for request, reading in zip(requests, known, strict=True)
            if reading is None or request.need_micros == 0
        }
        if stale:
            try:
                self._catch_up(stale)
            except LedgerUnavailable as error:
                raise CounterUnavailable(f"cannot update the counter: {error}") from error
        return super().sync(requests)

    def _catch_up(self, known: dict[AgentDay, DayReading | None]) -> None:
        """Publish what the ledger has of these days. This process created every lease, so no fence is needed."""
        # A day is opened without the leases of former processes: their sum is enough.
        new = self._reader.rows([where for where, reading in known.items() if reading is None])
        changes = self._reader.changes({where: reading.seq for where, reading in known.items() if reading is not None})
        if differing := self._publish_all([*(row._replace(base_seq=None) for row in new), *changes]):
            seen = dict(zip(differing, self.leases(differing), strict=True))
            self._publish_all(self._reader.repairs(seen))

    def _publish_all(self, snapshots: list[DaySnapshot]) -> list[AgentDay]:
        """Publish, and return the days whose counter did not take it."""
        replies = self.publish(snapshots, self._terms, first_until_ms=self.now_ms() + 1000)
        return [
            (snapshot.agent, snapshot.day)
            for snapshot, reply in zip(snapshots, replies, strict=True)
            if reply is not None and reply.behind is not None
        ]
