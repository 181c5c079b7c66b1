"""Reads agents' days and budgets' periods from the ledger, to publish them to the counter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.ledger.budget_rows import span_in
from daycap.ledger.tables import AGENTS, BUDGETS, Books, agent_accounts, books_of, budget_periods, budgets, plans
from daycap.money import MAX_MICROS
from daycap.protocol.counter import ACTIVE, NOT_OPEN, PAUSED, UNKNOWN, AgentDay, DaySnapshot, LeaseTotals, Span

_AT_ONCE = 300
"""Agent-days per statement: up to two parameters each, below every database's parameter limit."""


def read_snapshots(connection: sa.Connection, agent_days: Iterable[AgentDay]) -> list[DaySnapshot]:
    """Return a snapshot of each (agent, day) or (budget, period), in the given order, in the connection's transaction.

    One without a row has its owner's cap and nothing spent. An owner that does not exist has status `unknown`, and a
    removed budget is paused.
    """
    return _snapshots(connection, list(agent_days), _unfolded)


def read_rows(connection: sa.Connection, agent_days: Iterable[AgentDay]) -> list[DaySnapshot]:
    """Like `read_snapshots`, as deltas in which nothing has changed: what a day costs does not grow with its leases."""
    return [each._replace(base_seq=each.seq) for each in _snapshots(connection, list(agent_days), lambda *_: [])]


def read_changes(connection: sa.Connection, since: Mapping[AgentDay, int]) -> list[DaySnapshot]:
    """Return deltas: what changed in each day after the seq given. Whole for a counter that is `NOT_OPEN`."""
    unopened = [where for where, seq in since.items() if seq == NOT_OPEN]
    changed = {where: seq for where, seq in since.items() if seq != NOT_OPEN}
    deltas = _snapshots(connection, list(changed), lambda books, batch: _changed(books, batch, changed))
    return [
        *read_snapshots(connection, unopened),
        *(each._replace(base_seq=changed[each.agent, each.day]) for each in deltas),
    ]


def read_repairs(connection: sa.Connection, seen: Mapping[AgentDay, Container[str]]) -> list[DaySnapshot]:
    """Return whole snapshots for open counters, given the ids of the leases that each has."""
    return [
        each._replace(repairs=True, folded=tuple(lease for lease in each.folded if lease in seen[each.agent, each.day]))
        for each in _snapshots(connection, list(seen), lambda books, batch: [books.these(books.leases, batch)])
    ]


def _unfolded(books: Books, batch: list[AgentDay]) -> Iterable[sa.ColumnElement[bool]]:
    return [sa.and_(books.these(books.leases, batch), books.leases.c.folded == 0)]


def _changed(books: Books, batch: list[AgentDay], since: Mapping[AgentDay, int]) -> Iterable[sa.ColumnElement[bool]]:
    leases = books.leases.c
    for owner, period in batch:
        yield sa.and_(
            leases[books.period] == period, leases[books.owner] == owner, leases.changed_seq > since[owner, period]
        )


def _snapshots(
    connection: sa.Connection,
    wanted: list[AgentDay],
    which_leases: Callable[[Books, list[AgentDay]], Iterable[sa.ColumnElement[bool]]],
) -> list[DaySnapshot]:
    """Return the days with those of their leases that one of the conditions selects."""
    found: dict[AgentDay, DaySnapshot] = {}
    for books in (AGENTS, BUDGETS):
        theirs = [where for where in wanted if books_of(where[0]) is books]
        for start in range(0, len(theirs), _AT_ONCE):
            batch = theirs[start : start + _AT_ONCE]
            found |= _read(connection, books, batch, which_leases(books, batch))
    return [found[where] for where in wanted]


class _Row(NamedTuple):
    """What the ledger has of a day but its leases."""

    seq: int
    cap_micros: int
    spent_micros: int
    drawn_micros: int
    span: Span | None = None


class _Owner(NamedTuple):
    """What the ledger has of an agent or a budget."""

    status: str
    cap_micros: int
    plan: int = 0
    plan_text: str | None = None
    period: str = ""
    removed_at: int | None = None


def _read(
    connection: sa.Connection, books: Books, wanted: list[AgentDay], which_leases: Iterable[sa.ColumnElement[bool]]
) -> dict[AgentDay, DaySnapshot]:
    owners = (_agents if books is AGENTS else _budgets)(connection, {owner for owner, _ in wanted})
    rows = _rows(connection, books, wanted)
    totals_of: dict[AgentDay, list[LeaseTotals]] = {}
    folded_of: dict[AgentDay, list[str]] = {}
    for condition in which_leases:
        for owner, period, folded, *totals in connection.execute(_leases(books).where(condition)):
            if folded:
                folded_of.setdefault((owner, period), []).append(totals[0])
            else:
                totals_of.setdefault((owner, period), []).append(LeaseTotals(*totals))
    snapshots = {}
    for where in wanted:
        owner = owners.get(where[0])
        if owner is None:
            snapshots[where] = DaySnapshot(*where, 0, UNKNOWN, 0, 0)
            continue
        row = rows.get(where) or _Row(0, owner.cap_micros, 0, 0, _span(owner, where[1]))
        snapshots[where] = DaySnapshot(
            *where,
            row.seq,
            owner.status,
            row.cap_micros,
            row.spent_micros,
            min(row.drawn_micros, MAX_MICROS),
            tuple(totals_of.get(where, ())),
            folded=tuple(folded_of.get(where, ())),
            plan=owner.plan,
            plan_text=owner.plan_text,
            span=row.span,
        )
    return snapshots


def _agents(connection: sa.Connection, agents: Iterable[str]) -> dict[str, _Owner]:
    accounts = agent_accounts.c
    statement = (
        sa.select(
            accounts.agent_account_id, accounts.status, accounts.daily_cap_micros, accounts.plan_id, plans.c.rules
        )
        .join_from(agent_accounts, plans, accounts.plan_id == plans.c.plan_id, isouter=True)
        .where(accounts.agent_account_id.in_(agents))
    )
    return {agent: _Owner(*rest) for agent, *rest in connection.execute(statement)}


def _budgets(connection: sa.Connection, ids: Iterable[str]) -> dict[str, _Owner]:
    columns = budgets.c
    statement = sa.select(columns.budget_id, columns.cap_micros, columns.removed_at, columns.period)
    return {
        budget: _Owner(ACTIVE if removed_at is None else PAUSED, cap, period=period, removed_at=removed_at)
        for budget, cap, removed_at, period in connection.execute(statement.where(columns.budget_id.in_(ids)))
    }


def _rows(connection: sa.Connection, books: Books, wanted: list[AgentDay]) -> dict[AgentDay, _Row]:
    columns = books.rows.c
    bounds = () if books is AGENTS else (budget_periods.c.start_ms, budget_periods.c.end_ms)
    statement = sa.select(
        columns[books.owner],
        columns[books.period],
        columns.seq,
        columns.cap_micros,
        columns.spent_micros,
        books.drawn,
        *bounds,
    ).where(books.these(books.rows, wanted))
    return {
        (owner, period): _Row(seq, cap, spent, drawn, (span[0], span[1]) if span else None)
        for owner, period, seq, cap, spent, drawn, *span in connection.execute(statement)
    }


@functools.cache
def _leases(books: Books) -> sa.Select[Any]:
    columns = books.leases.c
    counts = (columns.events, columns.last_event) if books is AGENTS else (sa.literal(0), sa.literal(0))
    return sa.select(
        columns[books.owner],
        columns[books.period],
        columns.folded,
        columns.lease_id,
        columns.drawn_micros,
        *counts,
    )


def _span(owner: _Owner, period: str) -> Span | None:
    return span_in(owner.period, period, owner.removed_at) if owner.period else None
