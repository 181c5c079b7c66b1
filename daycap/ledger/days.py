"""The rows of agents' days: inserted when missing, locked while they are charged.

All transactions take locks in one order, so that none deadlock: accounts, missing days, existing days, each by day and
then by the agents' bytes; then leases, settlements and dead letters. A transaction that has locked an existing day
locks no account and inserts no day.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.ledger.agent_days import by_day
from daycap.ledger.engine import Ledger, in_byte_order, insert
from daycap.ledger.slices import Place
from daycap.ledger.tables import agent_accounts as accounts
from daycap.ledger.tables import daily_agent_spending as days
from daycap.ledger.tables import drawn_micros
from daycap.protocol.counter import AgentDay


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


def insert_missing(connection: sa.Connection, agent_days: Iterable[AgentDay], now_ms: int) -> set[AgentDay]:
    """Insert the missing rows with the account's cap. Returns the agent-days that this call inserted.

    `now_ms` is the counter's time. An agent without an account gets no row.
    """
    inserted: set[AgentDay] = set()
    for day, agents in by_day(agent_days):
        missing = set(agents).difference(connection.scalars(_PRESENT, {"day": day, "agents": agents}))
        if missing:
            inserted |= _insert(connection, day, sorted(missing), now_ms)
    return inserted


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
            zero.label("drawn_micros"),
            sa.literal_column("1").label("drawn_seq"),
        )
        .where(accounts.c.agent_account_id.in_(agents))
        .order_by(in_byte_order(connection.dialect.name, accounts.c.agent_account_id))
        .with_for_update(read=True)  # Waits for a cap change under way; otherwise the row would miss it.
    )
    statement = (
        insert(connection.dialect.name, days)
        .from_select([column.name for column in days.columns], new)
        .on_conflict_do_nothing()
        .returning(days.c.agent_account_id)
    )
    return {(agent, day) for (agent,) in connection.execute(statement)}


class Numbers(NamedTuple):
    """The numbers of a day's row."""

    cap_micros: int
    spent_micros: int
    uncovered_micros: int
    drawn_micros: int
    settled_count: int
    seq: int


@contextmanager
def locked(
    ledger: Ledger, agent_days: Collection[AgentDay], now_ms: int
) -> Iterator[tuple[sa.Connection, dict[AgentDay, Numbers]]]:
    """Begin a transaction that locks these days' rows, and return it with their numbers. Inserts missing rows.

    An agent without an account has no row.
    """
    with ledger.writing() as connection:
        rows = lock(connection, agent_days)
        if len(rows) == len(agent_days):
            yield connection, rows
            return
    # A new transaction: one that has locked existing rows must not insert others. Most batches find all their rows.
    with ledger.writing() as connection:
        insert_missing(connection, agent_days, now_ms)
        yield connection, lock(connection, agent_days)


def lock(connection: sa.Connection, agent_days: Iterable[AgentDay]) -> dict[AgentDay, Numbers]:
    """Lock the existing rows against other settles and cap changes until the transaction ends; return their numbers."""
    return {
        (agent, day): Numbers(*numbers)
        for day, agents in by_day(agent_days)
        for agent, *numbers in connection.execute(_locked(connection.dialect.name), {"day": day, "agents": agents})
    }


_THESE = sa.and_(
    days.c.spending_date == sa.bindparam("day"),
    days.c.agent_account_id.in_(sa.bindparam("agents")),
)
_PRESENT = sa.select(days.c.agent_account_id).where(_THESE)


@functools.cache
def _locked(dialect: str) -> sa.Select[Any]:
    return (
        sa.select(
            days.c.agent_account_id,
            days.c.cap_micros,
            days.c.spent_micros,
            days.c.uncovered_micros,
            drawn_micros,
            days.c.settled_count,
            days.c.seq,
        )
        .where(_THESE)
        .order_by(in_byte_order(dialect, days.c.agent_account_id))
        .with_for_update()
    )
