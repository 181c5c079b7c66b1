"""The rows of agents' days and budgets' periods: inserted when missing, locked while they are charged.

All transactions take locks in one order, so that none deadlock: accounts, by the agents' bytes; missing days, existing
days, each by day and then by the agents' bytes; then budgets, missing periods, existing periods, in the same way; then
leases, settlements and dead letters. A transaction that has locked an existing day locks no account and inserts no day.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.errors import InvalidInput
from daycap.ledger.agent_days import AT_ONCE, by_day
from daycap.ledger.budget_rows import span_in
from daycap.ledger.engine import Ledger, in_byte_order, insert
from daycap.ledger.tables import AGENTS, BUDGETS, Books, books_of, budget_periods, budgets
from daycap.ledger.tables import agent_accounts as accounts
from daycap.ledger.tables import daily_agent_spending as days
from daycap.periods import END_MS
from daycap.protocol.counter import AgentDay, Span
from daycap.protocol.plan import ENFORCE
from daycap.protocol.runs import LONGEST_MS, ONCE, Run, is_run, read_run


def present(connection: sa.Connection, agent_days: Iterable[AgentDay]) -> set[AgentDay]:
    """Return those that have a row."""
    return {
        (owner, day)
        for books, day, owners in by_day(agent_days)
        for owner in connection.scalars(_statements(books, "").present, {"day": day, "owners": owners})
    }


def insert_missing(
    connection: sa.Connection, agent_days: Iterable[AgentDay], now_ms: int, *, during: Span = (0, END_MS)
) -> set[AgentDay]:
    """Insert the missing rows with their owner's cap. Returns the agent-days that this call inserted.

    `now_ms` is the counter's time. An agent without an account gets no row, and neither does a period that its budget
    does not have, or no part of which is in `during`.
    """
    missing: dict[Books, list[tuple[str, list[str]]]] = {AGENTS: [], BUDGETS: []}
    for books, day, owners in by_day(agent_days):
        here = {"day": day, "owners": owners}
        absent = set(owners).difference(connection.scalars(_statements(books, "").present, here))
        missing[books] += [(day, sorted(absent))] if absent else []
    inserted: set[AgentDay] = set()
    for books, add in ((AGENTS, _insert), (BUDGETS, functools.partial(_insert_periods, during=during))):
        if len(missing[books]) > 1:  # Each day locks its owners, and those of the next one may come before them.
            _lock_owners(connection, books, {owner for _, owners in missing[books] for owner in owners})
        for day, owners in missing[books]:
            inserted |= add(connection, day, owners, now_ms)
    return inserted


def _lock_owners(connection: sa.Connection, books: Books, owners: set[str]) -> None:
    in_order, column = sorted(owners), accounts.c.agent_account_id if books is AGENTS else budgets.c.budget_id
    statement = sa.select(column).order_by(in_byte_order(connection.dialect.name, column)).with_for_update(read=True)
    for start in range(0, len(in_order), AT_ONCE):
        connection.execute(statement.where(column.in_(in_order[start : start + AT_ONCE])))


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


def _insert_periods(
    connection: sa.Connection, period: str, missing: list[str], now_ms: int, *, during: Span
) -> set[AgentDay]:
    columns = budgets.c
    if period == ONCE and (runs := [read_run(budget) for budget in missing if is_run(budget)]):
        _define_runs(connection, runs, now_ms)
    statement = (
        sa.select(columns.budget_id, columns.period, columns.removed_at)
        .where(columns.budget_id.in_(missing))
        .order_by(in_byte_order(connection.dialect.name, columns.budget_id))
        .with_for_update(read=True)  # Waits for a cap change under way; otherwise the row would miss it.
    )
    budgets_with: dict[tuple[str, int | None], list[str]] = {}
    for budget, *facts in connection.execute(statement):
        budgets_with.setdefault((facts[0], facts[1]), []).append(budget)
    inserted: set[str] = set()
    for (rule, removed_at), ids in sorted(budgets_with.items(), key=lambda each: each[1]):
        with suppress(InvalidInput):
            start_ms, end_ms = span_in(rule, period, removed_at)
            if end_ms <= during[0] or during[1] <= start_ms:
                continue
            row = {"period": period, "start_ms": start_ms, "end_ms": end_ms, "now_ms": now_ms, "budgets": ids}
            inserted.update(connection.scalars(_add_periods(connection.dialect.name), row))
    return {(budget, period) for budget in inserted}


def _define_runs(connection: sa.Connection, runs: list[Run], now_ms: int) -> None:
    """Insert the budgets of runs that the ledger has not heard of."""
    rows = [
        {
            "budget_id": run.id,
            "name": run.id.removesuffix("/1"),
            "labels": "{}",
            "period": json.dumps(run.rule.to_json()),
            "mode": ENFORCE,
            "cap_micros": run.cap_micros,
            "created_at": now_ms,
            "updated_at": now_ms,
        }
        for run in runs
        if run.end_ms <= now_ms + LONGEST_MS
    ]
    if rows:
        connection.execute(insert(connection.dialect.name, budgets).on_conflict_do_nothing(), rows)


@functools.cache
def _add_periods(dialect: str) -> Any:
    """Return the INSERT of a period of several budgets, with their caps."""
    zero: Any = sa.literal_column("0")
    number, names = budget_periods.c.end_ms.type, budget_periods.c
    new = sa.select(
        budgets.c.budget_id,
        sa.bindparam("period", type_=names.period_id.type),
        sa.bindparam("start_ms", type_=number),
        sa.bindparam("end_ms", type_=number),
        budgets.c.cap_micros,
        zero.label("spent_micros"),
        zero.label("uncovered_micros"),
        zero.label("settled_count"),
        sa.literal_column("1").label("seq"),
        sa.bindparam("now_ms", type_=number),
        zero.label("drawn_micros"),
    ).where(budgets.c.budget_id.in_(sa.bindparam("budgets")))
    return (
        insert(dialect, budget_periods)
        .from_select([column.name for column in names], new.order_by(in_byte_order(dialect, budgets.c.budget_id)))
        .on_conflict_do_nothing()
        .returning(names.budget_id)
    )


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
    dialect = connection.dialect.name
    return {
        (owner, day): Numbers(*numbers)
        for books, day, owners in by_day(agent_days)
        for owner, *numbers in connection.execute(_statements(books, dialect).locked, {"day": day, "owners": owners})
    }


def set_seq(connection: sa.Connection, where: AgentDay, seq: int) -> None:
    """Set the seq of a row, which is locked."""
    books = books_of(where[0])
    connection.execute(sa.update(books.rows).where(books.these(books.rows, [where])).values(**books.with_seq(seq)))


class _Statements(NamedTuple):
    """The statements about the rows of one day, whose parameters are `day` and `owners`."""

    present: sa.Select[Any]
    locked: sa.Select[Any]


@functools.cache
def _statements(books: Books, dialect: str) -> _Statements:
    columns = books.rows.c
    owner = columns[books.owner]
    these = sa.and_(columns[books.period] == sa.bindparam("day"), owner.in_(sa.bindparam("owners")))
    numbers = (
        columns.cap_micros,
        columns.spent_micros,
        columns.uncovered_micros,
        books.drawn,
        columns.settled_count,
        columns.seq,
    )
    return _Statements(
        sa.select(owner).where(these),
        sa.select(owner, *numbers).where(these).order_by(in_byte_order(dialect, owner)).with_for_update(),
    )
