"""Budgets: add, change and remove them, find them with their figures. Every change is recorded in `budget_changes`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.errors import BudgetExists, InvalidInput, UnknownAgent, UnknownBudget
from daycap.ledger.definitions import create, current, defined, definition_of, end, get, replace, scope_of
from daycap.ledger.engine import Ledger
from daycap.ledger.groups import check_exist
from daycap.ledger.membership import Containers, batches, name_of
from daycap.ledger.plans import changing
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.tables import agent_accounts, budget_changes, budget_periods, budgets
from daycap.protocol.wire import agent_id

_MOST_AT_ONCE = 1000


class Budget(NamedTuple):
    """A budget and its current period. Amounts are micros, times UTC milliseconds since 1970.

    `cap_micros` applies to each period, `period_cap_micros` to the current one. `period` is the rule of the periods.
    """

    name: str
    budget: str
    agent: str | None
    group: str | None
    cap_micros: int
    period: dict[str, object]
    labels: dict[str, list[str]]
    mode: str
    period_id: str
    start_ms: int
    end_ms: int
    period_cap_micros: int
    spent_micros: int
    uncovered_micros: int
    settled_count: int
    carry_over_micros: int


def add(
    ledger: Ledger,
    publisher: CounterPublisher,
    name: str,
    facts: Mapping[str, Any],
    changed_by: str,
    reason: str | None = None,
) -> Budget:
    """Add a budget. `facts`: see `defined`.

    Raises `BudgetExists`, `UnknownAgent`, `UnknownGroup`, `InvalidAmount`, and `InvalidInput`, also if a call could
    then count in too many budgets.
    """
    wanted = defined(name, facts)
    with changing(ledger, publisher, changed_by, reason) as change:
        change.lock(**scope_of(wanted))
        if wanted.name in current(change.connection, [wanted.name]):
            raise BudgetExists(f"{name}: {BudgetExists.__doc__}")
        create(change, wanted)
    return find(ledger, publisher, [name])[0]


def alter(
    ledger: Ledger,
    publisher: CounterPublisher,
    name: str,
    facts: Mapping[str, Any],
    changed_by: str,
    reason: str | None = None,
) -> Budget:
    """Change the facts that are given: see `defined`. A cap applies from the current period on.

    With another scope, labels or periods it is a new budget of the same name, in which nothing has been spent. Raises
    `UnknownBudget`, and otherwise what `add` raises.
    """
    with changing(ledger, publisher, changed_by, reason) as change:
        budget_id, old = get(change.connection, name)
        kept = old.to_json()
        if facts.get("agent") is not None or facts.get("group") is not None:
            kept = {fact: value for fact, value in kept.items() if fact not in ("agent", "group")}
        wanted = defined(name, {**kept, **facts})
        change.lock(**scope_of(*(() if wanted.plans_as(old) else (old, wanted))), budget_ids=[budget_id])
        replace(change, budget_id, old, wanted)
    return find(ledger, publisher, [name])[0]


def remove(ledger: Ledger, publisher: CounterPublisher, name: str, changed_by: str, reason: str | None = None) -> None:
    """Remove a budget: new calls no longer count in it. What was spent stays on record. Raises `UnknownBudget`."""
    with changing(ledger, publisher, changed_by, reason) as change:
        budget_id, old = get(change.connection, name)
        change.lock(**scope_of(old), budget_ids=[budget_id])
        end(change, budget_id, old)


def find(
    ledger: Ledger,
    publisher: CounterPublisher,
    names: list[str] | None = None,
    after: str = "",
    limit: int = _MOST_AT_ONCE,
    agent: str | None = None,
    group: str | None = None,
) -> list[Budget]:
    """Return budgets with the figures of their current period, by name: those named, or the next `limit` after `after`.

    `agent`: only those that apply to the agent, directly or through groups. `group`: only those of this very group.
    Raises `UnknownBudget`, `UnknownAgent` and `UnknownGroup`.
    """
    if not 1 <= limit <= _MOST_AT_ONCE:
        raise InvalidInput(f"limit must be from 1 to {_MOST_AT_ONCE}")
    now_ms = publisher.authoritative_ms()
    of_budgets = budgets.c
    statement = sa.select(budgets).where(of_budgets.removed_at.is_(None)).order_by(of_budgets.name)
    if names is None:
        is_a_run = sa.and_(of_budgets.agent_account_id.is_(None), of_budgets.group_id.is_(None))
        statement = statement.where(of_budgets.name > after, ~is_a_run).limit(limit)
    else:
        statement = statement.where(of_budgets.name.in_(names))
    with ledger.reading() as connection:
        if group is not None:
            check_exist(connection, [name_of(group, "group")])
            statement = statement.where(of_budgets.group_id == group)
        if agent is not None:
            statement = statement.where(_applies_to(connection, agent))
        rows = connection.execute(statement).all()
        figures = _figures(connection, [row.budget_id for row in rows], now_ms)
    found = [_budget(row, figures, now_ms) for row in rows]
    if missing := sorted(set(names or ()) - {each.name for each in found}):
        raise UnknownBudget(f"{missing[0]}: {UnknownBudget.__doc__}")
    return found


class Recorded(NamedTuple):
    """A change of a budget or of a group, whose facts are its members: those who left and those who joined.

    The first change has no old facts, a removal no new ones. The time is the counter's, in UTC.
    """

    name: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    reason: str | None
    changed_by: str
    changed_at_ms: int


def changes(ledger: Ledger, kind: str, name: str, limit: int = _MOST_AT_ONCE) -> list[Recorded]:
    """Return the last changes, oldest first, of the budget or group (`kind`) of this name, also if it was removed."""
    if not 1 <= limit <= _MOST_AT_ONCE:
        raise InvalidInput(f"limit must be from 1 to {_MOST_AT_ONCE}")
    columns = budget_changes.c
    these = sa.and_(columns.kind == kind, columns.name == name)
    last = sa.select(budget_changes).where(these).order_by(columns.budget_change_id.desc()).limit(limit)
    with ledger.reading() as connection:
        rows = connection.execute(last).all()
    return [
        Recorded(
            row.name,
            row.old and json.loads(row.old),
            row.new and json.loads(row.new),
            row.reason,
            row.changed_by,
            row.changed_at,
        )
        for row in reversed(rows)
    ]


def _applies_to(connection: sa.Connection, agent: str) -> sa.ColumnElement[bool]:
    account = sa.select(agent_accounts.c.agent_account_id).where(agent_accounts.c.agent_account_id == agent_id(agent))
    if connection.scalar(account) is None:
        raise UnknownAgent(agent)
    containing = Containers(connection).of_agents([agent])[agent]
    return sa.or_(budgets.c.agent_account_id == agent, budgets.c.group_id.in_(sorted(containing)))


def _figures(connection: sa.Connection, budget_ids: list[str], now_ms: int) -> dict[tuple[str, str], Any]:
    """Return the rows of the budgets' periods at this time, by id of budget and period."""
    columns = budget_periods.c
    now = sa.and_(columns.start_ms <= now_ms, columns.end_ms > now_ms)
    return {
        (row.budget_id, row.period_id): row
        for batch in batches(budget_ids)
        for row in connection.execute(sa.select(budget_periods).where(columns.budget_id.in_(batch), now))
    }


def _budget(row: Any, figures: Mapping[tuple[str, str], Any], now_ms: int) -> Budget:
    definition = definition_of(row)
    facts, period = definition.to_json(), definition.rule.at(now_ms)
    counted = figures.get((row.budget_id, period.id))
    return Budget(
        row.name,
        row.budget_id,
        definition.agent,
        definition.group,
        row.cap_micros,
        facts["period"],
        facts["labels"],
        row.mode,
        period.id,
        period.start_ms,
        period.end_ms,
        row.cap_micros if counted is None else counted.cap_micros,
        counted.spent_micros if counted else 0,
        counted.uncovered_micros if counted else 0,
        counted.settled_count if counted else 0,
        row.carry_over_micros,
    )
