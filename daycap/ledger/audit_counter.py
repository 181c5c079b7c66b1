"""Audit of the counter: it says what the ledger says, of agents' days and of budgets' periods."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.tables import books_of
from daycap.protocol.counter import AgentDay, DayReading
from daycap.protocol.plan import is_budget

_TRIES = 5
_BETWEEN_TRIES_S = 0.1


class Difference(NamedTuple):
    """One violation of a promise. `agent`: an agent, or a budget's id; then `what` begins with the period."""

    promise: str
    agent: str
    what: str
    expected: int | str
    found: int | str


def difference(promise: str, where: AgentDay, what: str, expected: int, found: int) -> Difference:
    """Return the difference of an agent's day or a budget's period."""
    owner, period = where
    return Difference(promise, owner, f"{period}: {what}" if is_budget(owner) else what, int(expected), int(found))


def check_counter(ledger: Ledger, publisher: CounterPublisher, wanted: Sequence[AgentDay]) -> list[Difference]:
    """Compare the counter with the ledger; all are agents' days, or all budgets' periods.

    A difference must persist over several tries: events settle meanwhile. A counter that is behind the ledger is
    correct if it has reached the seq that the ledger had at the first try.
    """
    reached: dict[AgentDay, int] = {}
    found: dict[AgentDay, list[Difference]] = {}
    for attempt in range(_TRIES):
        if not wanted:
            break
        if attempt:
            time.sleep(_BETWEEN_TRIES_S)
        readings = dict(zip(wanted, publisher.read(wanted), strict=False))
        found = {}
        for where, row in _rows(ledger, wanted).items():
            reading = readings.get(where)
            moving = reading is not None and reached.get(where, row.seq) <= reading.seq < row.seq
            if not moving and (differences := list(_differences(where, row, reading))):
                found[where] = differences
            reached.setdefault(where, row.seq)
        wanted = sorted(found)
    return [each for differences in found.values() for each in differences]


def _rows(ledger: Ledger, wanted: Sequence[AgentDay]) -> dict[AgentDay, Any]:
    books = books_of(wanted[0][0])
    with ledger.reading() as connection:
        rows = connection.execute(sa.select(books.rows).where(books.these(books.rows, wanted)))
        return {(row._mapping[books.owner], row._mapping[books.period]): row for row in rows}


def _differences(where: AgentDay, row: Any, reading: DayReading | None) -> Iterator[Difference]:
    if reading is None:
        return  # Not open: there are no leases, and opening it copies the ledger.
    for name in ("seq", "cap_micros", "spent_micros"):
        if getattr(reading, name) != getattr(row, name):
            yield difference("P3", where, f"{name} in the counter", getattr(row, name), getattr(reading, name))
