"""Agents' plans: which budgets apply to each agent. What changes them runs in `changing`, one at a time.

A plan is computed from `budgets` and `group_members`, stored once in `plans`, and named in the agent's account. It has
no caps: a change of a cap changes no plan.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.errors import InvalidInput, UnknownAgent
from daycap.ledger import days
from daycap.ledger.budget_rows import patterns_of, rule_of
from daycap.ledger.engine import Ledger, in_byte_order
from daycap.ledger.membership import Containers, agents_of, batches
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.snapshots import read_rows, read_snapshots
from daycap.ledger.tables import agent_accounts as accounts
from daycap.ledger.tables import budget_changes, budget_periods, budgets, daily_agent_spending, plans, with_seq
from daycap.protocol.counter import KEPT_DAYS, AgentDay
from daycap.protocol.labels import Patterns, covers
from daycap.protocol.plan import MOST_BUDGETS, PlannedBudget, plan_text

_MUTEX = 4_919_137_230_158_114_602
"""The key of the advisory lock of whoever changes plans on PostgreSQL. On SQLite the write lock is enough."""

_PUBLISHED_AT_ONCE = 500


@contextmanager
def changing(
    ledger: Ledger, publisher: CounterPublisher, changed_by: str, reason: str | None = None
) -> Iterator[Change]:
    """Begin a transaction that changes budgets, groups or members. On exit it computes the plans and publishes them.

    Changes all or nothing. Raises `InvalidInput` if `changed_by` is empty, and if a call could then count in too many
    budgets.
    """
    if not changed_by.strip():
        raise InvalidInput("say who changes budgets: changed_by is empty")
    opened_at_ms = publisher.now_ms()
    now_ms = publisher.last_heard_ms() if opened_at_ms is None else opened_at_ms
    with ledger.writing() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MUTEX)))
        change = Change(connection, now_ms, changed_by[:200], reason[:1000] if reason else None)
        yield change
        # Before any call can count in it: the first one that settles would otherwise have it opened behind a fence.
        first = [] if opened_at_ms is None else sorted(days.insert_missing(connection, change.begun, now_ms))
        snapshots = read_rows(connection, [*change.replan(), *change.periods])
        begun = read_snapshots(connection, first + (change.unlent if opened_at_ms is not None else []))
    for start in range(0, len(begun), _PUBLISHED_AT_ONCE):
        publisher.publish(ledger, begun[start : start + _PUBLISHED_AT_ONCE], opened_at_ms=opened_at_ms)
    for start in range(0, len(snapshots), _PUBLISHED_AT_ONCE):
        batch = snapshots[start : start + _PUBLISHED_AT_ONCE]
        publisher.publish(ledger, [each._replace(base_seq=each.seq - 1) for each in batch])


class Changed(NamedTuple):
    """Which agents and budget periods changes of budgets and groups have touched. `last`: the last change's number."""

    last: int
    agents: set[str]
    periods: list[AgentDay]


def changed_since(ledger: Ledger, change: int) -> Changed:
    """Return what has changed after change number `change`, and perhaps more that was changed at that time."""
    columns = budget_changes.c
    with ledger.reading() as connection:
        last, since_ms = connection.execute(
            sa.select(sa.func.max(columns.budget_change_id), sa.func.min(columns.changed_at)).where(
                columns.budget_change_id > change
            )
        ).one()
        if last is None:
            return Changed(change, set(), [])
        touched = sa.select(accounts.c.agent_account_id).where(accounts.c.updated_at >= since_ms)
        of_periods = budget_periods.c
        periods = sa.select(of_periods.budget_id, of_periods.period_id).where(of_periods.updated_at >= since_ms)
        return Changed(
            last, set(connection.scalars(touched)), [(each[0], each[1]) for each in connection.execute(periods)]
        )


@dataclass
class Change:
    """A transaction of `changing`. `now_ms` is the counter's time."""

    connection: sa.Connection
    now_ms: int
    changed_by: str
    reason: str | None
    periods: list[AgentDay] = field(default_factory=list)
    """The budget periods whose rows were changed, to be published."""
    unlent: list[AgentDay] = field(default_factory=list)
    """Periods of a budget that refuses calls for the first time: nobody can have leased from them."""
    begun: list[AgentDay] = field(default_factory=list)
    """The current periods of new budgets, to be opened."""
    _plan_of: dict[str, int] = field(default_factory=dict)
    _days: list[AgentDay] = field(default_factory=list)

    def lock(
        self,
        *,
        groups: Iterable[str] = (),
        agents: Iterable[str] = (),
        budget_ids: Iterable[str] = (),
        ended: Iterable[AgentDay] = (),
    ) -> None:
        """Lock all rows that the change may touch, in the order of all transactions. Call it once, before any change.

        That is the agents whose plans it may change: those named and those in `groups`, as they are before it. Raises
        `UnknownAgent` for a name without an account. `ended`: periods of the budgets that are over.
        """
        self._lock_accounts(set(agents), agents_of(self.connection, groups))
        # The counter may have these days.
        on = _days_from(self.connection, day_of(self.now_ms - KEPT_DAYS * DAY_MS))
        self._days = list(days.lock(self.connection, [(agent, day) for day in on for agent in self._plan_of]))
        self._lock_budgets(set(budget_ids), ended)

    def _lock_accounts(self, named: set[str], others: set[str]) -> None:
        for batch in batches(named | others):
            rows = self.connection.execute(self._in_order(accounts, accounts.c.agent_account_id, batch))
            self._plan_of |= {row.agent_account_id: row.plan_id for row in rows}
        if unknown := sorted(named - self._plan_of.keys()):
            raise UnknownAgent(unknown[0])

    def _in_order(self, table: sa.Table, key: sa.Column[Any], names: list[str]) -> sa.Select[Any]:
        in_order = sa.select(table).where(key.in_(names)).order_by(in_byte_order(self.connection.dialect.name, key))
        return in_order.with_for_update(key_share=True)  # Its key does not change: rows that refer to it may be added.

    def _lock_budgets(self, budget_ids: set[str], ended: Iterable[AgentDay]) -> None:
        columns, periods = budget_periods.c, list(ended)
        for batch in batches(budget_ids):
            self.connection.execute(self._in_order(budgets, budgets.c.budget_id, batch))
            these = sa.and_(columns.budget_id.in_(batch), columns.end_ms > self.now_ms)
            found = self.connection.execute(sa.select(columns.budget_id, columns.period_id).where(these))
            periods += [(budget, period) for budget, period in found]
        days.lock(self.connection, periods)

    def record(self, kind: str, name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
        """Record what was changed."""
        texts = [None if facts is None else json.dumps(facts, sort_keys=True) for facts in (old, new)]
        who = {"reason": self.reason, "changed_by": self.changed_by, "changed_at": self.now_ms}
        row = {"kind": kind, "name": name, "old": texts[0], "new": texts[1], **who}
        self.connection.execute(sa.insert(budget_changes), row)

    def replan(self) -> list[AgentDay]:
        """Compute the plans of the locked agents. Returns the days, with a new seq, of those whose plan has changed."""
        planner = Planner(self.connection)
        changed: set[str] = set()
        for batch in batches(self._plan_of):
            agents_with: dict[int, list[str]] = {}
            for agent, planned in planner.plans(batch).items():
                plan_id = planner.plan_id(agent, planned)
                if plan_id != self._plan_of[agent]:
                    agents_with.setdefault(plan_id, []).append(agent)
            for plan_id, agents in agents_with.items():
                changed.update(agents)
                values = {"plan_id": plan_id, "updated_at": self.now_ms}
                of_agents = accounts.c.agent_account_id.in_(agents)
                self.connection.execute(sa.update(accounts).where(of_agents).values(**values))
        return self._raise_days([where for where in self._days if where[0] in changed])

    def _raise_days(self, agent_days: list[AgentDay]) -> list[AgentDay]:
        """Raise the seq of these rows: no older publish can undo the plan in the counter."""
        columns = daily_agent_spending.c
        values = {**with_seq(columns.seq + 1), "updated_at": self.now_ms}
        for day in sorted({day for _, day in agent_days}):
            for batch in batches(agent for agent, on in agent_days if on == day):
                these = sa.and_(columns.spending_date == day, columns.agent_account_id.in_(batch))
                self.connection.execute(sa.update(daily_agent_spending).where(these).values(**values))
        return agent_days


class Planner:
    """Computes agents' plans from budgets and groups, in a transaction that does not change them meanwhile."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._containers = Containers(connection)
        self._of_group: dict[str, list[PlannedBudget]] = {}
        self._ids: dict[frozenset[PlannedBudget], int] = {frozenset(): 0}

    def plans(self, agents: Collection[str]) -> dict[str, frozenset[PlannedBudget]]:
        """Return the budgets that apply to each agent, directly or through groups."""
        groups_of = self._containers.of_agents(agents)
        unknown = set().union(*groups_of.values()) - self._of_group.keys()
        self._of_group |= self._read(budgets.c.group_id, unknown)
        own = self._read(budgets.c.agent_account_id, agents)
        return {
            agent: frozenset([*own[agent], *(each for group in groups for each in self._of_group[group])])
            for agent, groups in groups_of.items()
        }

    def plan_id(self, agent: str, planned: frozenset[PlannedBudget]) -> int:
        """Return the number of a plan, 0 if it has no budgets. Stores a new one, which becomes that of `agent`.

        Raises `InvalidInput` if a call could count in too many budgets.
        """
        if planned not in self._ids:
            self._ids[planned] = self._stored(agent, planned)
        return self._ids[planned]

    def _stored(self, agent: str, planned: frozenset[PlannedBudget]) -> int:
        text = plan_text(planned)
        digest = hashlib.sha256(text.encode()).hexdigest()
        known = self._connection.scalar(sa.select(plans.c.plan_id).where(plans.c.digest == digest))
        if known is not None:
            return int(known)
        if may_match([each.patterns for each in planned], MOST_BUDGETS):
            raise InvalidInput(
                f"a call of agent {agent} could count in more than {MOST_BUDGETS} budgets, its daily cap included"
            )
        row = {"digest": digest, "rules": text}
        return int(self._connection.scalar(sa.insert(plans).returning(plans.c.plan_id), row))

    def _read(self, column: sa.Column[Any], names: Collection[str]) -> dict[str, list[PlannedBudget]]:
        found: dict[str, list[PlannedBudget]] = {name: [] for name in names}
        of_budgets = budgets.c
        for batch in batches(names):
            statement = sa.select(
                column, of_budgets.budget_id, of_budgets.period, of_budgets.labels, of_budgets.mode
            ).where(column.in_(batch), of_budgets.removed_at.is_(None))
            for name, budget, period, labels, mode in self._connection.execute(statement):
                found[name].append(PlannedBudget(budget, rule_of(period), patterns_of(labels), mode))
        return found


_MOST_STEPS = 10_000


def may_match(scopes: Collection[Patterns], least: int) -> bool:
    """Return whether one call could be in `least` of these scopes at once.

    Patterns with `*` for one key are taken to match together. So are scopes that are too many to try.
    """
    steps = iter(range(_MOST_STEPS))
    return _may_match([dict(scope) for scope in scopes], least, steps)


def _may_match(scopes: list[dict[str, tuple[str, ...]]], least: int, steps: Iterator[int]) -> bool:
    if len(scopes) < least:
        return False
    keys = Counter(key for scope in scopes for key in scope)
    if not keys or next(steps, None) is None:
        return True
    free = sum(not scope for scope in scopes)
    # Each scope counts for one of its keys: no call is in more of them than this.
    first: dict[str, list[dict[str, tuple[str, ...]]]] = {}
    for scope in scopes:
        if scope:
            first.setdefault(min(scope), []).append(scope)
    if free + sum(len(_largest(each, key)[0]) for key, each in first.items()) < least:
        return False
    key = keys.most_common(1)[0][0]
    without = [scope for scope in scopes if key not in scope]
    return any(
        _may_match(
            [*without, *({k: v for k, v in scope.items() if k != key} for scope in matching)],
            least,
            steps,
        )
        for matching in _largest([scope for scope in scopes if key in scope], key)
    )


def _largest(scopes: list[dict[str, tuple[str, ...]]], key: str) -> list[list[dict[str, tuple[str, ...]]]]:
    """Return the scopes that match together by this key, for each value that makes a difference; most first."""
    exact = {value for scope in scopes for value in scope[key] if "*" not in value}
    together = [[scope for scope in scopes if covers(((key, scope[key]),), {key: value})] for value in sorted(exact)]
    together.append([scope for scope in scopes if any("*" in value for value in scope[key])])
    return sorted(together, key=len, reverse=True)


def _days_from(connection: sa.Connection, first: str) -> Iterator[str]:
    """Yield the days from `first` on that any agent has a row for. One index lookup each."""
    column = daily_agent_spending.c.spending_date
    day = connection.scalar(sa.select(sa.func.min(column)).where(column >= first))
    while day is not None:
        yield day
        day = connection.scalar(sa.select(sa.func.min(column)).where(column > day))
