"""Retention: when a day's books are closed, and when old rows are deleted. Derived from dates alone."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.ledger.budget_rows import MOST_APART_MS
from daycap.ledger.engine import Ledger
from daycap.ledger.slices import Place, Slice
from daycap.ledger.tables import (
    budget_leases,
    budget_periods,
    contexts,
    daily_agent_spending,
    dead_letters,
    lease_totals,
    settlements,
    shortfalls,
)
from daycap.settings import Settings

_AT_ONCE = 1000
"""Rows per transaction, which takes some hundredths of a second and blocks settling on SQLite."""


class OpenDays(NamedTuple):
    """The first and last day that can be charged."""

    oldest: str
    newest: str


def open_days(settings: Settings, now_ms: int) -> OpenDays:
    """Return the days that can be charged at `now_ms`, the counter's time. Every day before them is closed.

    Includes tomorrow: `now_ms` may be an estimate, and a valid event must not be rejected.
    """
    return OpenDays(day_of(now_ms - settings.close_after_days * DAY_MS), day_of(now_ms + DAY_MS))


def kept_days(settings: Settings, now_ms: int) -> OpenDays:
    """Return the days that an operator may still charge, even closed ones: their settlements reveal duplicates."""
    return OpenDays(day_of(now_ms - settings.retention_days * DAY_MS), day_of(now_ms + DAY_MS))


def no_event_since_ms(oldest: str) -> int:
    """Return until when a budget's period must have ended, so that no event of day `oldest` or later counts in it."""
    return day_start_ms(oldest) - MOST_APART_MS


def prune(ledger: Ledger, settings: Settings, now_ms: int, _place: Place) -> Slice:
    """Delete expired rows in one short transaction. One step; counts the rows of each table.

    Totals of leases are deleted when their day, or the budget's period, is closed, because the counter has forgotten it
    by then. Settlements, with what belongs to them, and dead letters are deleted after `retention_days`, days and
    periods after `books_days`. Accounts and budgets, with their changes, and plans are kept forever. Safe to run late,
    or twice at once.
    """
    open_day, kept_day = open_days(settings, now_ms).oldest, kept_days(settings, now_ms).oldest
    books_day = day_of(now_ms - settings.books_days * DAY_MS)
    for table, is_old in (
        (lease_totals, lease_totals.c.spending_date < open_day),
        (budget_leases, budget_leases.c.end_ms <= no_event_since_ms(open_day)),
        (settlements, settlements.c.spending_date < kept_day),
        (shortfalls, shortfalls.c.spending_date < kept_day),
        (contexts, contexts.c.last_date < kept_day),
        (dead_letters, dead_letters.c.last_seen_at < day_start_ms(kept_day)),
        # Last: the others refer to them.
        (daily_agent_spending, daily_agent_spending.c.spending_date < books_day),
        (budget_periods, budget_periods.c.end_ms <= no_event_since_ms(books_day)),
    ):
        if deleted := _delete_some(ledger, table, is_old):
            return Slice({table.name: deleted}, [])
    return Slice({}, None)


def _delete_some(ledger: Ledger, table: sa.Table, is_old: sa.ColumnElement[bool]) -> int:
    key = sa.tuple_(*table.primary_key) if len(table.primary_key) > 1 else next(iter(table.primary_key))
    # Skip rows that others have locked: never wait while holding locks. The next run deletes them.
    expired = sa.select(*table.primary_key).where(is_old).limit(_AT_ONCE).with_for_update(skip_locked=True)
    with ledger.reading() as connection:  # Check without the write lock whether there is anything to delete.
        if connection.execute(sa.select(*table.primary_key).where(is_old).limit(1)).first() is None:
            return 0
    with ledger.writing() as connection:
        return connection.execute(sa.delete(table).where(key.in_(expired))).rowcount
