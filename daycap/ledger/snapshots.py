"""Reads agents' days from the ledger, to publish them to the counter."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

import sqlalchemy as sa

from daycap.ledger.agent_days import by_day
from daycap.ledger.tables import agent_accounts as accounts
from daycap.ledger.tables import daily_agent_spending as days
from daycap.ledger.tables import drawn_micros
from daycap.ledger.tables import lease_totals as leases
from daycap.money import MAX_MICROS
from daycap.protocol.counter import NOT_OPEN, UNKNOWN, AgentDay, DaySnapshot, LeaseTotals

_AT_ONCE = 300
"""Agent-days per statement: up to two parameters each, below every database's parameter limit."""

_ACCOUNTS = sa.select(accounts.c.agent_account_id, accounts.c.daily_cap_micros, accounts.c.status)
_DAYS = sa.select(
    days.c.agent_account_id,
    days.c.spending_date,
    days.c.seq,
    days.c.cap_micros,
    days.c.spent_micros,
    drawn_micros,
)
_LEASES = sa.select(
    leases.c.agent_account_id,
    leases.c.spending_date,
    leases.c.folded,
    leases.c.lease_id,
    leases.c.drawn_micros,
    leases.c.events,
    leases.c.last_event,
)


def read_snapshots(connection: sa.Connection, agent_days: Iterable[AgentDay]) -> list[DaySnapshot]:
    """Return a snapshot of each (agent, day), in the given order, in the connection's transaction.

    A day without a row has the agent's daily cap and nothing spent. An agent without an account has status `unknown`.
    """
    return _snapshots(connection, list(agent_days), _unfolded)


def read_rows(connection: sa.Connection, agent_days: Iterable[AgentDay]) -> list[DaySnapshot]:
    """Like `read_snapshots`, as deltas in which nothing has changed: what a day costs does not grow with its leases."""
    return [each._replace(base_seq=each.seq) for each in _snapshots(connection, list(agent_days), lambda _: [])]


def read_changes(connection: sa.Connection, since: Mapping[AgentDay, int]) -> list[DaySnapshot]:
    """Return deltas: what changed in each day after the seq given. Whole for a counter that is `NOT_OPEN`."""
    unopened = [where for where, seq in since.items() if seq == NOT_OPEN]
    changed = {where: seq for where, seq in since.items() if seq != NOT_OPEN}
    deltas = _snapshots(connection, list(changed), lambda batch: _changed(batch, changed))
    return [
        *read_snapshots(connection, unopened),
        *(each._replace(base_seq=changed[each.agent, each.day]) for each in deltas),
    ]


def read_repairs(connection: sa.Connection, seen: Mapping[AgentDay, Container[str]]) -> list[DaySnapshot]:
    """Return whole snapshots for open counters, given the ids of the leases that each has."""
    return [
        each._replace(repairs=True, folded=tuple(lease for lease in each.folded if lease in seen[each.agent, each.day]))
        for each in _snapshots(connection, list(seen), lambda batch: [_one_of(leases, batch)])
    ]


def _unfolded(batch: list[AgentDay]) -> Iterable[sa.ColumnElement[bool]]:
    return [sa.and_(_one_of(leases, batch), leases.c.folded == 0)]


def _changed(batch: list[AgentDay], since: Mapping[AgentDay, int]) -> Iterable[sa.ColumnElement[bool]]:
    for agent, day in batch:
        yield sa.and_(
            leases.c.spending_date == day,
            leases.c.agent_account_id == agent,
            leases.c.changed_seq > since[agent, day],
        )


def _snapshots(
    connection: sa.Connection,
    wanted: list[AgentDay],
    which_leases: Callable[[list[AgentDay]], Iterable[sa.ColumnElement[bool]]],
) -> list[DaySnapshot]:
    """Return the days with those of their leases that one of the conditions selects."""
    batches = [wanted[start : start + _AT_ONCE] for start in range(0, len(wanted), _AT_ONCE)]
    return [snapshot for batch in batches for snapshot in _read(connection, batch, which_leases(batch))]


def _read(
    connection: sa.Connection, wanted: list[AgentDay], which_leases: Iterable[sa.ColumnElement[bool]]
) -> list[DaySnapshot]:
    of_agents = accounts.c.agent_account_id.in_({agent for agent, _ in wanted})
    account_of = {row.agent_account_id: row for row in connection.execute(_ACCOUNTS.where(of_agents))}
    day_of = {
        (row.agent_account_id, row.spending_date): row for row in connection.execute(_DAYS.where(_one_of(days, wanted)))
    }
    totals_of: dict[AgentDay, list[LeaseTotals]] = {}
    folded_of: dict[AgentDay, list[str]] = {}
    for condition in which_leases:
        for agent, day, folded, *totals in connection.execute(_LEASES.where(condition)):
            if folded:
                folded_of.setdefault((agent, day), []).append(totals[0])
            else:
                totals_of.setdefault((agent, day), []).append(LeaseTotals(*totals))
    snapshots = []
    for where in wanted:
        account, of_day = account_of.get(where[0]), day_of.get(where)
        if account is None:
            snapshots.append(DaySnapshot(*where, 0, UNKNOWN, 0, 0))
            continue
        seq, cap, spent, drawn = of_day[2:] if of_day else (0, account.daily_cap_micros, 0, 0)
        drawn = min(drawn, MAX_MICROS)
        changed, folded = tuple(totals_of.get(where, ())), tuple(folded_of.get(where, ()))
        snapshots.append(DaySnapshot(*where, seq, account.status, cap, spent, drawn, changed, folded=folded))
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
