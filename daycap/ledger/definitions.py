"""What a budget is, and how it gets into the ledger: in a transaction of `plans.changing`, in which it is recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.errors import InvalidAmount, InvalidInput, UnknownBudget
from daycap.formats import shown
from daycap.ledger.budget_rows import ENDS_AFTER_MS, patterns_of, rule_of
from daycap.ledger.caps import CARRY, insert_raise, period_cap
from daycap.ledger.groups import check_exist
from daycap.ledger.membership import batches, name_of
from daycap.ledger.plans import Change
from daycap.ledger.tables import BUDGETS, budget_changes, budget_leases, budget_periods, budgets
from daycap.money import micros
from daycap.periods import PeriodRule
from daycap.protocol.counter import AgentDay
from daycap.protocol.labels import Patterns, scope_patterns
from daycap.protocol.plan import ENFORCE, WATCH
from daycap.protocol.runs import is_run
from daycap.protocol.wire import agent_id


class Definition(NamedTuple):
    """What a budget is: a scope, either an agent or a group, its cap per period, and how it is kept."""

    name: str
    agent: str | None
    group: str | None
    cap_micros: int
    rule: PeriodRule
    patterns: Patterns
    mode: str
    carry_over_micros: int = 0
    """How much of what a period leaves is added to the cap of the next one, at most."""

    def to_json(self) -> dict[str, Any]:
        """Return the facts as `defined` takes them, except the name."""
        return {
            **({"agent": self.agent} if self.agent is not None else {"group": self.group}),
            "cap_micros": self.cap_micros,
            "period": self.rule.to_json(),
            "labels": {key: list(values) for key, values in self.patterns},
            "mode": self.mode,
            **({"carry_over_micros": self.carry_over_micros} if self.carry_over_micros else {}),
        }

    def plans_as(self, other: Definition) -> bool:
        """Return whether plans are the same with either: only amounts differ, if anything."""
        return self.counts_as(other) and self.mode == other.mode

    def counts_as(self, other: Definition) -> bool:
        """Return whether the same calls count in the same periods."""
        return self._counted() == other._counted()

    def _counted(self) -> Definition:
        return self._replace(cap_micros=0, mode=ENFORCE, carry_over_micros=0)


def defined(name: object, facts: Mapping[str, Any]) -> Definition:
    """Return the definition of a budget with these facts: those of `Definition.to_json`, some with a default.

    Raises `InvalidInput` and `InvalidAmount`.
    """
    name = name_of(name, "budget")
    if is_run(f"{name}/1"):
        raise InvalidInput(f"budget {name}: this is the id of a run")
    try:
        return _defined(name, facts)
    except (InvalidInput, InvalidAmount) as error:
        raise type(error)(f"budget {name}: {error}") from None


def _defined(name: str, facts: Mapping[str, Any]) -> Definition:
    known = {"agent", "group", "cap_micros", "period", "labels", "mode", "carry_over_micros"}
    if unknown := sorted(facts.keys() - known):
        raise InvalidInput(f"there is no {shown(unknown[0], 80)}, only {', '.join(sorted(known))}")
    agent, group = facts.get("agent"), facts.get("group")
    if (agent is None) == (group is None):
        raise InvalidInput("it needs either an agent or a group")
    if "cap_micros" not in facts:
        raise InvalidInput("it needs a cap")
    mode = facts.get("mode", ENFORCE)
    if mode not in (ENFORCE, WATCH):
        raise InvalidInput(f"mode is {ENFORCE} or {WATCH}, not {shown(mode, 40)}")
    rule = PeriodRule.from_json(facts.get("period", {"period": "day"}))
    carry_over = micros(facts.get("carry_over_micros", 0))
    if carry_over and rule.kind == "once":
        raise InvalidInput("nothing is carried over from a period that never ends")
    return Definition(
        name,
        None if agent is None else agent_id(agent),
        None if group is None else name_of(group, "group"),
        micros(facts["cap_micros"]),
        rule,
        scope_patterns(facts.get("labels", {})),
        mode,
        carry_over,
    )


def scope_of(*definitions: Definition) -> dict[str, Any]:
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
        _remove(change, budget_id)
        _insert(change, wanted)
    else:
        amounts = {"cap_micros": wanted.cap_micros, "carry_over_micros": wanted.carry_over_micros}
        _update(change, budget_id, mode=wanted.mode, **amounts)
        if wanted.carry_over_micros and not old.carry_over_micros:  # Nothing of the period before was for this one.
            insert_raise(change, (budget_id, wanted.rule.at(change.now_ms).id), CARRY, 0)
        if wanted.mode == ENFORCE and not _has_enforced(change, budget_id, old.name):
            change.begun.append((budget_id, wanted.rule.at(change.now_ms).id))
            change.unlent += _periods(change, budget_id)
        # While a budget only watches, the counter hears nothing of it.
        _change_periods(change, budget_id, cap_micros=period_cap(BUDGETS, wanted.cap_micros))
    change.record("budget", wanted.name, old.to_json(), wanted.to_json())


def end(change: Change, budget_id: str, old: Definition) -> None:
    """Remove a locked budget."""
    _remove(change, budget_id)
    change.record("budget", old.name, old.to_json(), None)


def _remove(change: Change, budget_id: str) -> None:
    _update(change, budget_id, removed_at=change.now_ms)
    start_ms, end_ms, now_ms = budget_periods.c.start_ms, budget_periods.c.end_ms, change.now_ms
    last_ms = sa.case((start_ms > now_ms, start_ms), else_=now_ms) + ENDS_AFTER_MS
    _change_periods(change, budget_id, end_ms=sa.case((end_ms < last_ms, end_ms), else_=last_ms))
    of_leases = budget_leases.c
    period = sa.and_(budget_periods.c.budget_id == budget_id, budget_periods.c.period_id == of_leases.period_id)
    ends_ms = sa.select(end_ms).where(period).scalar_subquery()
    these = sa.and_(of_leases.budget_id == budget_id, of_leases.end_ms > now_ms)
    change.connection.execute(sa.update(budget_leases).where(these).values(end_ms=ends_ms))


def _insert(change: Change, wanted: Definition) -> None:
    if wanted.group is not None:
        check_exist(change.connection, [wanted.group])
    ids = change.connection.scalars(sa.select(budgets.c.budget_id).where(budgets.c.name == wanted.name))
    number = 1 + max((int(each.rpartition("/")[2]) for each in ids), default=0)
    budget_id = f"{wanted.name}/{number}"
    change.connection.execute(
        sa.insert(budgets),
        {
            "budget_id": budget_id,
            "name": wanted.name,
            "agent_account_id": wanted.agent,
            "group_id": wanted.group,
            "labels": json.dumps(dict(wanted.patterns)),
            "period": json.dumps(wanted.rule.to_json()),
            "mode": wanted.mode,
            "cap_micros": wanted.cap_micros,
            "carry_over_micros": wanted.carry_over_micros,
            "created_at": change.now_ms,
            "updated_at": change.now_ms,
        },
    )
    change.begun.append((budget_id, wanted.rule.at(change.now_ms).id))


def _update(change: Change, budget_id: str, **values: Any) -> None:
    these = budgets.c.budget_id == budget_id
    change.connection.execute(sa.update(budgets).where(these).values(**values, updated_at=change.now_ms))


def _change_periods(change: Change, budget_id: str, **values: Any) -> None:
    """Change the periods that have not ended, and publish them. Those that have ended stay as they are."""
    columns = budget_periods.c
    statement = (
        sa.update(budget_periods)
        .where(columns.budget_id == budget_id, columns.end_ms > change.now_ms)
        .values(**values, seq=columns.seq + 1, updated_at=change.now_ms)
        .returning(columns.period_id)
    )
    change.periods += [(budget_id, period) for period in change.connection.scalars(statement)]


def _periods(change: Change, budget_id: str) -> list[AgentDay]:
    """Return the periods that have not ended."""
    columns = budget_periods.c
    these = sa.and_(columns.budget_id == budget_id, columns.end_ms > change.now_ms)
    return [(budget_id, period) for period in change.connection.scalars(sa.select(columns.period_id).where(these))]


def _has_enforced(change: Change, budget_id: str, name: str) -> bool:
    """Return whether the budget has ever been in a plan that makes runners lease from it."""
    since = sa.select(budgets.c.created_at).where(budgets.c.budget_id == budget_id).scalar_subquery()
    columns = budget_changes.c
    these = sa.and_(columns.kind == "budget", columns.name == name, columns.changed_at >= since)
    facts = change.connection.scalars(sa.select(columns.new).where(these, columns.new.is_not(None)))
    return any(json.loads(text)["mode"] == ENFORCE for text in facts)


def current(connection: sa.Connection, names: Iterable[str] | None = None) -> dict[str, tuple[str, Definition]]:
    """Return, by name, the id and the definition of the budgets that exist: all, or those named."""
    statement = sa.select(budgets).where(budgets.c.removed_at.is_(None))
    each = [statement] if names is None else [statement.where(budgets.c.name.in_(batch)) for batch in batches(names)]
    return {row.name: (row.budget_id, definition_of(row)) for some in each for row in connection.execute(some)}


def get(connection: sa.Connection, name: str) -> tuple[str, Definition]:
    """Return the id and the definition of one budget. Raises `UnknownBudget`."""
    found = current(connection, [name_of(name, "budget")])
    if name not in found:
        raise UnknownBudget(f"{name}: {UnknownBudget.__doc__}")
    return found[name]


def definition_of(row: Any) -> Definition:
    """Return the definition that a row of `budgets` has."""
    return Definition(
        row.name,
        row.agent_account_id,
        row.group_id,
        row.cap_micros,
        rule_of(row.period),
        patterns_of(row.labels),
        row.mode,
        row.carry_over_micros,
    )
