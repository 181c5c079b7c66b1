"""Walks: through agents' days and then budgets' periods, some at a time, for the worker's long tasks.

A place is [day, agent] among agents, and [`BUDGETS`, ...] after them. A worker of an earlier release, which knows only
agents, finds itself at the end there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import sqlalchemy as sa

from daycap.ledger.engine import Ledger
from daycap.ledger.slices import Place
from daycap.ledger.tables import budget_periods, budgets, daily_agent_spending
from daycap.protocol.counter import AgentDay
from daycap.protocol.plan import ENFORCE

BUDGETS = "budgets"
"""In a place, instead of a day: the agents are done. It sorts after every day."""

_AT_ONCE = 500


def walk(on: Iterable[str], place: Place, agents_after: Callable[[str, str], list[str]]) -> list[AgentDay]:
    """Return the next agent-days of the days `on` after `place` ([day, agent]); none at the end.

    `agents_after(day, agent)` returns the next agents of a day by id, a limited number at a time.
    """
    reached, last = place or ("", "")
    for day in sorted(on):
        if day >= reached and (agents := agents_after(day, last if day == reached else "")):
            return [(agent, day) for agent in agents]
    return []


def place_after(agent_days: list[AgentDay]) -> Place:
    """Return the place from which `walk` continues after these."""
    agent, day = agent_days[-1]
    return [day, agent]


def step(
    ledger: Ledger, place: Place, on: Iterable[str], ends_after_ms: int, begins_before_ms: int | None = None
) -> tuple[list[AgentDay], Place]:
    """Return the next days or periods that have a row, and the place after them; none at the end.

    First agents' days `on`, by day and agent; then the periods of budgets that the counter may have, which end after
    `ends_after_ms` and have begun by `begins_before_ms`. What a step costs does not grow with the periods before.
    """
    if agent_days := walk(on, place, lambda day, last: _agents_after(ledger, day, last)):
        return agent_days, place_after(agent_days)
    last = place[1] if place and place[0] == BUDGETS else [ends_after_ms + 1, "", ""]
    return _periods_after(ledger, last, begins_before_ms)


def _agents_after(ledger: Ledger, day: str, last: str) -> list[str]:
    columns = daily_agent_spending.c
    statement = (
        sa.select(columns.agent_account_id)
        .where(columns.spending_date == day, columns.agent_account_id > last)
        .order_by(columns.agent_account_id)
        .limit(_AT_ONCE)
    )
    with ledger.reading() as connection:
        return list(connection.scalars(statement))


def _periods_after(ledger: Ledger, last: list[object], begins_before_ms: int | None) -> tuple[list[AgentDay], Place]:
    """Return the next periods by their end, budget and id, and the place after them."""
    columns = budget_periods.c
    key = (columns.end_ms, columns.budget_id, columns.period_id)
    statement = (
        sa.select(columns.budget_id, columns.period_id, columns.end_ms)
        .join_from(budget_periods, budgets, columns.budget_id == budgets.c.budget_id)
        .where(sa.tuple_(*key) > sa.tuple_(*last), budgets.c.mode == ENFORCE)
        .order_by(*key)
        .limit(_AT_ONCE)
    )
    if begins_before_ms is not None:
        statement = statement.where(columns.start_ms <= begins_before_ms)
    with ledger.reading() as connection:
        found = [(budget, period, end_ms) for budget, period, end_ms in connection.execute(statement)]
    periods = [(budget, period) for budget, period, _ in found]
    return periods, [BUDGETS, [found[-1][2], *periods[-1]]] if found else []
