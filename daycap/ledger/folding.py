"""Fold: leases that are over leave the counter, which keeps their sum, so that a day costs what is in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from daycap.clock import wall_ms
from daycap.ledger import days
from daycap.ledger.engine import Ledger
from daycap.ledger.snapshots import read_rows
from daycap.ledger.tables import AGENTS, Books, books_of
from daycap.protocol.counter import AgentDay, DaySnapshot

_AT_ONCE = 1000
"""Leases of a day per transaction, in which nothing else of that day is settled."""


def fold(ledger: Ledger, finished: Mapping[AgentDay, Sequence[tuple[str, int]]]) -> list[DaySnapshot]:
    """Fold each day's `finished` leases and return the deltas that say so.

    Leases are given with the number of their events, those of budgets with what they drew. One of which the ledger has
    not every event stays as it is. At most a thousand leases of a day: what is left comes again.
    """
    folded: dict[AgentDay, tuple[str, ...]] = {}
    if not finished:
        return []
    with days.locked(ledger, finished.keys(), wall_ms()) as (connection, rows):
        for where, row in rows.items():
            if leases := _fold(connection, books_of(where[0]), row.seq + 1, dict(finished[where][:_AT_ONCE])):
                folded[where] = leases
                days.set_seq(connection, where, row.seq + 1)
        snapshots = read_rows(connection, folded)
    return [each._replace(base_seq=each.seq - 1, folded=folded[each.agent, each.day]) for each in snapshots]


def _fold(connection: sa.Connection, books: Books, seq: int, finished: dict[str, int]) -> tuple[str, ...]:
    columns = books.leases.c
    said = (columns.events, columns.last_event) if books is AGENTS else (columns.drawn_micros, columns.drawn_micros)
    statement = sa.select(columns.lease_id, *said).where(columns.lease_id.in_(finished))
    settled = {lease: (first, second) for lease, first, second in connection.execute(statement)}
    # One that the ledger has never seen had no event.
    done = [lease for lease, all_ in sorted(finished.items()) if settled.get(lease, (0, 0)) == (all_, all_)]
    connection.execute(sa.update(books.leases).where(columns.lease_id.in_(done)).values(folded=1, changed_seq=seq))
    return tuple(done)
