"""The rows of agents' days: made when they are missing, locked while they are charged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from worker.ledger import insert
from worker.schema import agent_accounts as accounts
from worker.schema import daily_agent_spending as days
from worker.slices import Place

AgentDay = tuple[str, str]

SOME = 500
"""Agents a statement, below every database's limit of parameters."""


def by_day(agent_days: Iterable[AgentDay]) -> Iterator[tuple[str, list[str]]]:
    """Each day with its agents, at most `SOME` at once, in order, so that two workers take their locks in the same."""
    agents_of: dict[str, list[str]] = {}
    for agent, day in sorted(set(agent_days)):
        agents_of.setdefault(day, []).append(agent)
    for day in sorted(agents_of):
        agents = agents_of[day]
        yield from ((day, agents[start : start + SOME]) for start in range(0, len(agents), SOME))


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
    for day, agents in by_day(agent_days):
        missing = set(agents).difference(connection.scalars(_PRESENT, {"day": day, "agents": agents}))
        if missing:
            made |= _insert(connection, day, sorted(missing), now_ms)
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
        insert(connection.dialect.name, days)
        .from_select([column.name for column in days.columns], new)
        .on_conflict_do_nothing()
        .returning(days.c.agent_account_id)
    )
    return {(agent, day) for (agent,) in connection.execute(statement)}


class Numbers(NamedTuple):
    """What a day's row says."""

    cap_micros: int
    spent_micros: int
    uncovered_micros: int
    settled_count: int
    seq: int


def lock(connection: sa.Connection, agent_days: Iterable[AgentDay]) -> dict[AgentDay, Numbers]:
    """The rows that there are, held against every other settle and cap change until the transaction ends."""
    return {
        (agent, day): Numbers(*numbers)
        for day, agents in by_day(agent_days)
        for agent, *numbers in connection.execute(_LOCKED, {"day": day, "agents": agents})
    }


_THESE = sa.and_(
    days.c.spending_date == sa.bindparam("day"),
    days.c.agent_account_id.in_(sa.bindparam("agents")),
)
_PRESENT = sa.select(days.c.agent_account_id).where(_THESE)
_LOCKED = (
    sa.select(days.c.agent_account_id, *(days.c[name] for name in Numbers._fields))
    .where(_THESE)
    .order_by(days.c.agent_account_id)
    .with_for_update()
)
