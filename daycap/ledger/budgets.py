"""Budgets: add, change and remove them, find them with their figures. Every change is recorded in `budget_changes`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.errors import BudgetExists, InvalidInput, UnknownAgent, UnknownBudget
from daycap.formats import shown
from daycap.ledger.engine import Ledger
from daycap.ledger.groups import check_exist
from daycap.ledger.membership import Containers, batches, name_of
from daycap.ledger.plans import Change, changing, patterns_of, rule_of
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.tables import agent_accounts, budget_periods, budgets
from daycap.money import micros
from daycap.periods import PeriodRule
from daycap.protocol.labels import Patterns, scope_patterns
from daycap.protocol.plan import ENFORCE, WATCH
from daycap.protocol.wire import agent_id

_MOST_AT_ONCE = 1000


class Definition(NamedTuple):
    """What a budget is: a scope, either an agent or a group, its cap per period, and how it is kept."""

    name: str
    agent: str | None
    group: str | None
    cap_micros: int
    rule: PeriodRule
    patterns: Patterns
    mode: str

    def to_json(self) -> dict[str, Any]:
        """Return the facts as `defined` takes them, except the name."""
        return {
            **({"agent": self.agent} if self.agent is not None else {"group": self.group}),
            "cap_micros": self.cap_micros,
            "period": self.rule.to_json(),
            "labels": {key: list(values) for key, values in self.patterns},
            "mode": self.mode,
        }

    def counts_as(self, other: Definition) -> bool:
        """Return whether the same calls count in the same periods."""
        return self._replace(cap_micros=0, mode=ENFORCE) == other._replace(cap_micros=0, mode=ENFORCE)


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


def defined(name: object, facts: Mapping[str, Any]) -> Definition:
    """Return the definition of a budget with these facts: those of `Definition.to_json`, some with a default.

    Raises `InvalidInput` and `InvalidAmount`.
    """
    name = name_of(name, "budget")
    known = {"agent", "group", "cap_micros", "period", "labels", "mode"}
    if unknown := sorted(facts.keys() - known):
        raise InvalidInput(f"budget {name} has no {shown(unknown[0], 80)}, only {', '.join(sorted(known))}")
    agent, group = facts.get("agent"), facts.get("group")
    if (agent is None) == (group is None):
        raise InvalidInput(f"budget {name} needs either an agent or a group")
    if "cap_micros" not in facts:
        raise InvalidInput(f"budget {name} needs a cap")
    mode = facts.get("mode", ENFORCE)
    if mode not in (ENFORCE, WATCH):
        raise InvalidInput(f"mode is {ENFORCE} or {WATCH}, not {shown(mode, 40)}")
    return Definition(
        name,
        None if agent is None else agent_id(agent),
        None if group is None else name_of(group, "group"),
        micros(facts["cap_micros"]),
        PeriodRule.from_json(facts.get("period", {"period": "day"})),
        scope_patterns(facts.get("labels", {})),
        mode,
    )


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
        change.lock(**scope_of(old, wanted), budget_ids=[budget_id])
        replace(change, budget_id, old, wanted)
    return find(ledger, publisher, [name])[0]


def remove(ledger: Ledger, publisher: CounterPublisher, name: str, changed_by: str, reason: str | None = None) -> None:
    """Remove a budget: new calls no longer count in it. What was spent stays on record. Raises `UnknownBudget`."""
    with changing(ledger, publisher, changed_by, reason) as change:
        budget_id, old = get(change.connection, name)
        change.lock(**scope_of(old), budget_ids=[budget_id])
        end(change, budget_id, old)


def scope_of(*definitions: Definition) -> dict[str, set[str]]:
    """Return the agents and groups of the scopes, as `Change.lock` takes them."""
    return {
        "agents": {each.agent for each in definitions if each.agent is not None},
        "groups": {each.group for each in definitions if each.group is not None},
    }


def create(change: Change, wanted: Definition) -> None:
    """Add a budget, by its definition, to the scope, which is locked. Raises `UnknownGroup`."""
    _insert(change, wanted)
    change.record("budget", wanted.name, None, wanted.to_json())


def replace(change: Change, budget_id: str, old: Definition, wanted: Definition) -> None:
    """Change a locked budget. Raises `UnknownGroup`."""
    if wanted == old:
        return
    if not wanted.counts_as(old):
        _update(change, budget_id, removed_at=change.now_ms)
        _insert(change, wanted)
    else:
        _update(change, budget_id, cap_micros=wanted.cap_micros, mode=wanted.mode)
        if wanted.cap_micros != old.cap_micros:
            _set_cap(change, budget_id, wanted.cap_micros)
    change.record("budget", wanted.name, old.to_json(), wanted.to_json())


def end(change: Change, budget_id: str, old: Definition) -> None:
    """Remove a locked budget."""
    _update(change, budget_id, removed_at=change.now_ms)
    change.record("budget", old.name, old.to_json(), None)


def _insert(change: Change, wanted: Definition) -> None:
    if wanted.group is not None:
        check_exist(change.connection, [wanted.group])
    ids = change.connection.scalars(sa.select(budgets.c.budget_id).where(budgets.c.name == wanted.name))
    number = 1 + max((int(each.rpartition("/")[2]) for each in ids), default=0)
    change.connection.execute(
        sa.insert(budgets),
        {
            "budget_id": f"{wanted.name}/{number}",
            "name": wanted.name,
            "agent_account_id": wanted.agent,
            "group_id": wanted.group,
            "labels": json.dumps(dict(wanted.patterns)),
            "period": json.dumps(wanted.rule.to_json()),
            "mode": wanted.mode,
            "cap_micros": wanted.cap_micros,
            "created_at": change.now_ms,
            "updated_at": change.now_ms,
        },
    )


def _update(change: Change, budget_id: str, **values: Any) -> None:
    these = budgets.c.budget_id == budget_id
    change.connection.execute(sa.update(budgets).where(these).values(**values, updated_at=change.now_ms))


def _set_cap(change: Change, budget_id: str, cap_micros: int) -> None:
    """Set the cap of the periods that have not ended, and publish them. Those that have ended keep their cap."""
    columns = budget_periods.c
    statement = (
        sa.update(budget_periods)
        .where(columns.budget_id == budget_id, columns.end_ms > change.now_ms)
        .values(cap_micros=cap_micros, seq=columns.seq + 1, updated_at=change.now_ms)
        .returning(columns.period_id)
    )
    change.periods += [(budget_id, period) for period in change.connection.scalars(statement)]


def current(connection: sa.Connection, names: Iterable[str] | None = None) -> dict[str, tuple[str, Definition]]:
    """Return, by name, the id and the definition of the budgets that exist: all, or those named."""
    statement = sa.select(budgets).where(budgets.c.removed_at.is_(None))
    each = [statement] if names is None else [statement.where(budgets.c.name.in_(batch)) for batch in batches(names)]
    return {row.name: (row.budget_id, _definition(row)) for some in each for row in connection.execute(some)}


def get(connection: sa.Connection, name: str) -> tuple[str, Definition]:
    """Return the id and the definition of one budget. Raises `UnknownBudget`."""
    found = current(connection, [name_of(name, "budget")])
    if name not in found:
        raise UnknownBudget(f"{name}: {UnknownBudget.__doc__}")
    return found[name]


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
        statement = statement.where(of_budgets.name > after).limit(limit)
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


def _applies_to(connection: sa.Connection, agent: str) -> sa.ColumnElement[bool]:
    account = sa.select(agent_accounts.c.agent_account_id).where(agent_accounts.c.agent_account_id == agent_id(agent))
    if connection.scalar(account) is None:
        raise UnknownAgent(agent)
    containing = Containers(connection).of_agents([agent])[agent]
    return sa.or_(budgets.c.agent_account_id == agent, budgets.c.group_id.in_(sorted(containing)))


def _definition(row: Any) -> Definition:
    return Definition(
        row.name,
        row.agent_account_id,
        row.group_id,
        row.cap_micros,
        rule_of(row.period),
        patterns_of(row.labels),
        row.mode,
    )


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
    definition = _definition(row)
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
    )
