"""What the ledger has of budgets, and the same figures computed anew from each settled event."""

from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

import sqlalchemy as sa

from daycap.ledger.engine import Ledger
from daycap.ledger.tables import budget_leases, budget_periods, contexts, settlements, shortfalls


class Figures(NamedTuple):
    """A period's sums, in micros, and its number of events."""

    spent: int
    uncovered: int
    events: int


def figures(ledger: Ledger) -> dict[tuple[str, str], Figures]:
    """Return the figures of each budget's period, by id of budget and period; without those in which nothing counts."""
    columns = budget_periods.c
    with ledger.reading() as connection:
        return {
            (row.budget_id, row.period_id): Figures(row.spent_micros, row.uncovered_micros, row.settled_count)
            for row in connection.execute(sa.select(budget_periods).where(columns.settled_count > 0))
        }


def recomputed(ledger: Ledger) -> dict[tuple[str, str], Figures]:
    """Return the figures that settlements, contexts and shortfalls prove."""
    actual: Counter[tuple[str, str]] = Counter()
    events: Counter[tuple[str, str]] = Counter()
    short: Counter[tuple[str, str]] = Counter()
    with ledger.reading() as connection:
        of_context = sa.select(contexts.c.budgets, settlements.c.actual_micros).join_from(
            settlements, contexts, contexts.c.context_id == settlements.c.context_id
        )
        for text, micros in connection.execute(of_context):
            for budget, period in json.loads(text):
                actual[budget, period] += micros
                events[budget, period] += 1
        for row in connection.execute(sa.select(shortfalls)):
            short[row.budget_id, row.period_id] += row.uncovered_micros
    return {where: Figures(actual[where] - short[where], short[where], events[where]) for where in events}


def drawn(ledger: Ledger) -> dict[tuple[str, str], int]:
    """Return what each period has drawn. Raises `AssertionError` unless that is the sum over its leases."""
    of_leases: Counter[tuple[str, str]] = Counter()
    with ledger.reading() as connection:
        for lease in connection.execute(sa.select(budget_leases)):
            of_leases[lease.budget_id, lease.period_id] += lease.drawn_micros
        rows = connection.execute(sa.select(budget_periods)).all()
    found = {(row.budget_id, row.period_id): row.drawn_micros for row in rows}
    assert found == {where: of_leases[where] for where in found}
    return {where: micros for where, micros in found.items() if micros}
