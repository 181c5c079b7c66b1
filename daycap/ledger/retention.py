"""Retention: when a day's books are closed, and when what is old leaves the ledger. All derived from dates."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.ledger.engine import Ledger
from daycap.ledger.slices import Place, Slice
from daycap.ledger.tables import daily_agent_spending, dead_letters, lease_totals, settlements
from daycap.settings import Settings

_AT_ONCE = 1000
"""Rows a transaction: some hundredths of a second in which nothing can be settled."""


class OpenDays(NamedTuple):
    """The first and the last day that may be charged."""

    oldest: str
    newest: str


def open_days(settings: Settings, now_ms: int) -> OpenDays:
    """The days that are charged at `now_ms`, the counter's time: every day before them is closed.

    A day more than there is: the counter's time is known by its last answer, and a good event is not turned away.
    """
    return OpenDays(day_of(now_ms - settings.close_after_days * DAY_MS), day_of(now_ms + DAY_MS))


def kept_days(settings: Settings, now_ms: int) -> OpenDays:
    """The days that an operator may have charged, closed or not: whether an event was settled is still known."""
    return OpenDays(day_of(now_ms - settings.retention_days * DAY_MS), day_of(now_ms + DAY_MS))


def prune(ledger: Ledger, settings: Settings, now_ms: int, _place: Place) -> Slice:
    """A step of deleting what is past its time, in one short transaction. Counts the rows of each table.

    Lease totals go when their day is closed: the counter has forgotten it. Settlements and dead letters go after
    `retention_days`, what was spent on a day after `books_days`. Accounts and their changes stay for ever.
    Safe to run twice at once, and late.
    """
    open_day, kept_day = open_days(settings, now_ms).oldest, kept_days(settings, now_ms).oldest
    books_day = day_of(now_ms - settings.books_days * DAY_MS)
    for table, is_old in (
        (lease_totals, lease_totals.c.spending_date < open_day),
        (settlements, settlements.c.spending_date < kept_day),
        (dead_letters, dead_letters.c.last_seen_at < day_start_ms(kept_day)),
        (daily_agent_spending, daily_agent_spending.c.spending_date < books_day),  # Last: the others refer to it.
    ):
        if deleted := _delete_some(ledger, table, is_old):
            return Slice({table.name: deleted}, [])
    return Slice({}, None)


def _delete_some(ledger: Ledger, table: sa.Table, is_old: sa.ColumnElement[bool]) -> int:
    key = sa.tuple_(*table.primary_key) if len(table.primary_key) > 1 else next(iter(table.primary_key))
    # What somebody else has locked is left for the next time: nothing is waited for while rows are held.
    some = sa.select(*table.primary_key).where(is_old).limit(_AT_ONCE).with_for_update(skip_locked=True)
    with ledger.reading() as connection:  # Whether there is any is looked up without the lock of a writer.
        if connection.execute(sa.select(*table.primary_key).where(is_old).limit(1)).first() is None:
            return 0
    with ledger.writing() as connection:
        return connection.execute(sa.delete(table).where(key.in_(some))).rowcount
