"""The rows of agents' days: made when they are missing, locked while they are charged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa

from daycap.ledger_reader import one_of
from worker.ledger import insert
from worker.schema import agent_accounts as accounts
from worker.schema import daily_agent_spending as days
from worker.slices import Place

AgentDay = tuple[str, str]

SOME = 300
"""Agent-days a statement: two parameters each, below every database's limit."""


def chunks(agent_days: Iterable[AgentDay]) -> Iterable[list[AgentDay]]:
    """In sorted order, so that two workers take their locks in the same one; at most `SOME` at once."""
    ordered = sorted(set(agent_days))
    return (ordered[start : start + SOME] for start in range(0, len(ordered), SOME))


def walk(on: Iterable[str], place: Place, agents_after: Callable[[str, str], list[str]]) -> list[AgentDay]:
    """The next agent-days of the days `on` after `place`, [day, agent]; none when all have been walked.

    `agents_after(day, agent)` finds the next agents of a day by id, some at a time.
    """
    reached, last = place or ("", "")
    for day in sorted(on):
        if day >= reached and (agents := agents_after(day, last if day == reached else "")):
            return [(agent, day) for agent in agents]
    return []


def place_after(agent_days: list[AgentDay]) -> Place:
    """Where `walk` goes on after these."""
    agent, day = agent_days[-1]
    return [day, agent]


def insert_missing(connection: sa.Connection, agent_days: Iterable[AgentDay], now_ms: int) -> set[AgentDay]:
    """Open the books of days that have no row, under the account's cap. Returns those that this call made.

    `now_ms` is the counter's time. An agent without an account gets none.
    """
    made: set[AgentDay] = set()
    for some in chunks(agent_days):
        found = connection.execute(sa.select(days.c.agent_account_id, days.c.spending_date).where(one_of(days, some)))
        missing: dict[str, list[str]] = {}
        for agent, day in set(some) - {(row[0], row[1]) for row in found}:
            missing.setdefault(day, []).append(agent)
        for day, agents in missing.items():
            made |= _insert(connection, day, sorted(agents), now_ms)
    return made


def _insert(connection: sa.Connection, day: str, agents: list[str], now_ms: int) -> set[AgentDay]:
    zero: Any = sa.literal_column("0")
    new = (
        sa.select(
            accounts.c.agent_account_id,
            sa.literal(day),
            accounts.c.daily_cap_micros,
            zero.label("spent_micros"),
            zero.label("uncovered_micros"),
            zero.label("settled_count"),
            sa.literal_column("1").label("seq"),
            sa.literal(now_ms, accounts.c.updated_at.type),
        )
        .where(accounts.c.agent_account_id.in_(agents))
        .order_by(accounts.c.agent_account_id)
        .with_for_update(read=True)  # A cap that is being changed is waited for, or the row would miss it.
    )
    statement = (
        insert(connection, days)
        .from_select([column.name for column in days.columns], new)
        .on_conflict_do_nothing()
        .returning(days.c.agent_account_id)
    )
    return {(agent, day) for (agent,) in connection.execute(statement)}


def lock(connection: sa.Connection, agent_days: Iterable[AgentDay]) -> dict[AgentDay, Any]:
    """The rows, held against every other settle and cap change until the transaction ends."""
    rows: dict[AgentDay, Any] = {}
    for some in chunks(agent_days):
        statement = sa.select(days).where(one_of(days, some)).order_by(days.c.agent_account_id, days.c.spending_date)
        for row in connection.execute(statement.with_for_update()):
            rows[row.agent_account_id, row.spending_date] = row
    return rows
