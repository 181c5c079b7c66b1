"""Groups agents' days for the ledger's statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from daycap.ledger.tables import AGENTS, BUDGETS, Books, books_of, owners_by_period
from daycap.protocol.counter import AgentDay

AT_ONCE = 500
"""Agents per statement, below every database's parameter limit."""


def by_day(agent_days: Iterable[AgentDay]) -> Iterator[tuple[Books, str, list[str]]]:
    """Yield each day with its agents, then each budgets' period with its budgets, at most `AT_ONCE` owners per item.

    Sorted: all workers take locks in this order.
    """
    agent_days = set(agent_days)
    for books in (AGENTS, BUDGETS):
        theirs = (where for where in agent_days if books_of(where[0]) is books)
        for day, owners in owners_by_period(theirs).items():
            for start in range(0, len(owners), AT_ONCE):
                yield books, day, owners[start : start + AT_ONCE]
