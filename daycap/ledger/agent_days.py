"""Groups agents' days for the ledger's statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from daycap.ledger.tables import Books, books_of
from daycap.protocol.counter import AgentDay
from daycap.protocol.plan import is_budget

AT_ONCE = 500
"""Agents per statement, below every database's parameter limit."""


def by_day(agent_days: Iterable[AgentDay]) -> Iterator[tuple[Books, str, list[str]]]:
    """Yield each day with its agents, then each budgets' period with its budgets, at most `AT_ONCE` owners per item.

    Sorted: all workers take locks in this order.
    """
    owners_of: dict[tuple[bool, str], list[str]] = {}
    for owner, day in sorted(set(agent_days)):
        owners_of.setdefault((is_budget(owner), day), []).append(owner)
    for (_, day), owners in sorted(owners_of.items()):
        for start in range(0, len(owners), AT_ONCE):
            yield books_of(owners[0]), day, owners[start : start + AT_ONCE]
