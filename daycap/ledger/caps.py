"""The cap of a period: that of its agent or budget, and what `cap_raises` adds to this one period.

While a period lasts, the cap of its row is its owner's plus what was added and has not ended. Whatever changes one of
them computes the sum anew, with the owner's row locked. A period that is over keeps the cap it had.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from daycap.ledger.plans import Change
from daycap.ledger.tables import Books, Number, cap_raises
from daycap.money import MAX_MICROS
from daycap.protocol.counter import AgentDay

RAISE, RESET, CARRY = "raise", "reset", "carry"
"""Kinds of what is added: for a while, what was spent before a reset, and what the period before left."""

_AT_ONCE = 300
"""Periods per statement, below every database's parameter limit."""


def period_cap(books: Books, cap_micros: int) -> sa.ColumnElement[int]:
    """Return the cap, in an UPDATE of `books.rows`, of a row whose owner has the cap `cap_micros`."""
    columns, rows = cap_raises.c, books.rows.c
    added = (
        sa.select(sa.cast(sa.func.coalesce(sa.func.sum(columns.amount_micros), 0), Number))
        .where(
            columns.owner == rows[books.owner],
            columns.period_id == rows[books.period],
            columns.ended_at.is_(None),
        )
        .correlate(books.rows)
        .scalar_subquery()
    )
    cap, most = sa.literal(cap_micros, Number), sa.literal(MAX_MICROS, Number)
    return sa.case((added > most - cap, most), else_=cap + added)


def insert_raise(change: Change, where: AgentDay, kind: str, amount_micros: int, until_ms: int | None = None) -> int:
    """Insert a row of `cap_raises`, without the cap that follows, and return its number."""
    row = {
        "kind": kind,
        "owner": where[0],
        "period_id": where[1],
        "amount_micros": amount_micros,
        "cap_micros": 0,
        "until_ms": until_ms,
        "reason": change.reason,
        "raised_by": change.changed_by,
        "raised_at": change.now_ms,
    }
    return int(change.connection.scalar(sa.insert(cap_raises).returning(cap_raises.c.cap_raise_id), row))


def raises_of(connection: sa.Connection, periods: Iterable[AgentDay]) -> dict[AgentDay, list[Any]]:
    """Return the rows of `cap_raises` of each period that has some, also of raises that have ended."""
    columns = cap_raises.c
    wanted = sorted(set(periods))
    found: dict[AgentDay, list[Any]] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        owners_of: dict[str, list[str]] = {}
        for owner, period in wanted[start : start + _AT_ONCE]:
            owners_of.setdefault(period, []).append(owner)
        for period, owners in owners_of.items():
            these = sa.and_(columns.period_id == period, columns.owner.in_(owners))
            for row in connection.execute(sa.select(cap_raises).where(these).order_by(columns.cap_raise_id)):
                found.setdefault((row.owner, period), []).append(row)
    return found


def highest_cap(changes: Iterable[tuple[int, int | None, int]], raises: Iterable[Any]) -> int:
    """Return the highest cap that a period has had, 0 if nothing has changed it since it began.

    `changes`: when the owner's cap was changed since, from what and to what. `raises`: the period's `cap_raises`.
    """
    raises = list(raises)
    highest = max((row.cap_micros for row in raises), default=0)
    for at_ms, old, new in changes:
        added = sum(
            row.amount_micros
            for row in raises
            if row.raised_at <= at_ms and (row.ended_at is None or row.ended_at >= at_ms)
        )
        highest = max(highest, max(old or 0, new) + added)
    return highest
