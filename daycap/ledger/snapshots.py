"""Reads agents' days from the ledger, to publish them to the counter."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from daycap.ledger.agent_days import AgentDay, by_day
from daycap.ledger.tables import agent_accounts as accounts
from daycap.ledger.tables import daily_agent_spending as days
from daycap.ledger.tables import lease_totals as leases
from daycap.protocol.counter import UNKNOWN, DaySnapshot, LeaseTotals

_AT_ONCE = 300
"""Agent-days per statement: up to two parameters each, below every database's parameter limit."""

_ACCOUNTS = sa.select(accounts.c.agent_account_id, accounts.c.daily_cap_micros, accounts.c.status)
_DAYS = sa.select(days.c.agent_account_id, days.c.spending_date, days.c.seq, days.c.cap_micros, days.c.spent_micros)
_LEASES = sa.select(
    leases.c.agent_account_id,
    leases.c.spending_date,
    leases.c.lease_id,
    leases.c.drawn_micros,
    leases.c.events,
    leases.c.last_event,
)


def read_snapshots(connection: sa.Connection, agent_days: Iterable[AgentDay]) -> list[DaySnapshot]:
    """Return a snapshot of each (agent, day), in the given order, in the connection's transaction.

    A day without a row has the agent's daily cap and nothing spent. An agent without an account has status `unknown`.
    """
    wanted = list(agent_days)
    return [
        snapshot
        for start in range(0, len(wanted), _AT_ONCE)
        for snapshot in _read(connection, wanted[start : start + _AT_ONCE])
    ]


def _read(connection: sa.Connection, wanted: list[AgentDay]) -> list[DaySnapshot]:
    of_agents = accounts.c.agent_account_id.in_({agent for agent, _ in wanted})
    account_of = {row.agent_account_id: row for row in connection.execute(_ACCOUNTS.where(of_agents))}
    day_of = {
        (row.agent_account_id, row.spending_date): row for row in connection.execute(_DAYS.where(_one_of(days, wanted)))
    }
    leases_of: dict[AgentDay, list[LeaseTotals]] = {}
    for row in connection.execute(_LEASES.where(_one_of(leases, wanted))):
        totals = LeaseTotals(row.lease_id, row.drawn_micros, row.events, row.last_event)
        leases_of.setdefault((row.agent_account_id, row.spending_date), []).append(totals)
    snapshots = []
    for agent, day in wanted:
        account, of_day = account_of.get(agent), day_of.get((agent, day))
        if account is None:
            snapshots.append(DaySnapshot(agent, day, 0, UNKNOWN, 0, 0))
            continue
        seq, cap, spent = of_day[2:] if of_day else (0, account.daily_cap_micros, 0)
        lease_totals = tuple(leases_of.get((agent, day), ()))
        snapshots.append(DaySnapshot(agent, day, seq, account.status, cap, spent, lease_totals))
    return snapshots


def _one_of(table: sa.Table, agent_days: list[AgentDay]) -> sa.ColumnElement[bool]:
    """Return the condition that a row of `table` belongs to one of these agent-days.

    It names each day with its agents: SQLite would read the whole table for a list of pairs.
    """
    return sa.or_(
        sa.false(),
        *(
            sa.and_(table.c.spending_date == day, table.c.agent_account_id.in_(agents))
            for day, agents in by_day(agent_days)
        ),
    )
