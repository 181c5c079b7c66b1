"""Apply a whole file of groups and budgets: find out what differs from it, and change that in one transaction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.errors import InvalidInput
from daycap.formats import shown as shortened
from daycap.ledger import definitions, groups
from daycap.ledger.definitions import Definition
from daycap.ledger.engine import Ledger
from daycap.ledger.groups import Members
from daycap.ledger.membership import name_of
from daycap.ledger.plans import Change, changing
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.tables import groups as groups_table

ADD, CHANGE, REMOVE = "add", "change", "remove"


class Wanted(NamedTuple):
    """What a file says, by name. Create it with `wanted`."""

    groups: dict[str, Members]
    budgets: dict[str, Definition]


class Step(NamedTuple):
    """One difference. `kind` is `group` or `budget`; a group's facts are its members.

    `restarts`: the budget gets another scope or other periods, so that nothing has been spent in it.
    """

    action: str
    kind: str
    name: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    restarts: bool = False


class Applied(NamedTuple):
    """The steps, whether they were taken, and the names of budgets and groups that exist but are not in the file.

    `digest` identifies the steps.
    """

    steps: list[dict[str, Any]]
    done: bool
    left: list[str]
    digest: str


class _Rehearsed(Exception):
    """Ends the transaction of a dry run"""


def wanted(groups_wanted: Mapping[str, Any], budgets_wanted: Mapping[str, Any]) -> Wanted:
    """Return the file's groups, each with `agents` and `groups`, and its budgets, as `definitions.defined` takes them.

    Raises `InvalidInput` and `InvalidAmount`.
    """
    of_groups = {}
    for name, members in groups_wanted.items():
        if unknown := sorted(members.keys() - {"agents", "groups"}):
            raise InvalidInput(f"group {name} has no {shortened(unknown[0], 80)}, only agents, groups")
        of_groups[name_of(name, "group")] = groups.members_of(members.get("agents", ()), members.get("groups", ()))
    return Wanted(of_groups, {name: definitions.defined(name, facts) for name, facts in budgets_wanted.items()})


def apply(
    ledger: Ledger,
    publisher: CounterPublisher,
    wanted: Wanted,
    changed_by: str,
    reason: str | None = None,
    *,
    prune: bool = False,
    dry_run: bool = False,
    shown: str | None = None,
) -> Applied:
    """Make groups and budgets what the file says: all or nothing. Others stay, unless `prune` removes them.

    `dry_run` finds the steps, and the errors that they would raise. `shown` is the digest of the steps that somebody
    has agreed to. Raises `InvalidInput` if these are no longer the steps, and what the functions of `budgets` and
    `groups` raise.
    """
    try:
        with changing(ledger, publisher, changed_by, reason) as change:
            work = _Difference(change.connection, wanted, prune)
            if shown is not None and shown != work.digest:
                raise InvalidInput("groups or budgets have changed since these steps were shown; look at them again")
            work.take(change)
            if dry_run:
                change.replan()
                raise _Rehearsed
    except _Rehearsed:
        pass
    steps = [step._asdict() for step in work.steps]
    return Applied(steps, not dry_run and bool(steps), work.left, work.digest)


class _Difference:
    """What differs between the ledger and a file."""

    def __init__(self, connection: sa.Connection, wanted: Wanted, prune: bool) -> None:
        is_there = groups_table.c.removed_at.is_(None)
        old_groups = groups.current(
            connection, list(connection.scalars(sa.select(groups_table.c.group_id).where(is_there)))
        )
        old_budgets = definitions.current(connection)
        other_groups = sorted(old_groups.keys() - wanted.groups.keys())
        other_budgets = sorted(old_budgets.keys() - wanted.budgets.keys())
        others = [*(f"group {name}" for name in other_groups), *(f"budget {name}" for name in other_budgets)]
        self.left = [] if prune else others
        self._old_groups, self._groups = old_groups, {**wanted.groups}
        self._ended_groups = other_groups if prune else []
        self._ended = {name: old_budgets[name] for name in other_budgets if prune}
        self._new = {name: each for name, each in sorted(wanted.budgets.items()) if name not in old_budgets}
        self._changed = {
            name: (*old_budgets[name], each)
            for name, each in sorted(wanted.budgets.items())
            if name in old_budgets and old_budgets[name][1] != each
        }
        self.steps = [*self._group_steps(), *self._budget_steps()]
        steps = json.dumps(self.steps, sort_keys=True)
        self.digest = hashlib.sha256(steps.encode()).hexdigest()

    def _group_steps(self) -> Iterator[Step]:
        for name, members in sorted(self._groups.items()):
            old = self._old_groups.get(name)
            if old is None:
                yield Step(ADD, "group", name, None, members.to_json())
            elif old != members:
                yield Step(CHANGE, "group", name, (old - members).to_json(), (members - old).to_json())
        for name in self._ended_groups:
            yield Step(REMOVE, "group", name, self._old_groups[name].to_json(), None)

    def _budget_steps(self) -> Iterator[Step]:
        for name, new in self._new.items():
            yield Step(ADD, "budget", name, None, new.to_json())
        for name, (_, old, new) in self._changed.items():
            yield Step(CHANGE, "budget", name, old.to_json(), new.to_json(), not new.counts_as(old))
        for name, (_, old) in self._ended.items():
            yield Step(REMOVE, "budget", name, old.to_json(), None)

    def take(self, change: Change) -> None:
        """Take the steps: members leave before others join, and budgets end before their groups do."""
        nobody = Members()
        touched = self._groups.keys() | set(self._ended_groups)
        leaving = {
            name: self._old_groups.get(name, nobody) - self._groups.get(name, nobody) for name in sorted(touched)
        }
        joining = {name: self._groups[name] - self._old_groups.get(name, nobody) for name in sorted(self._groups)}
        self._lock(change, [*leaving.values(), *joining.values()])
        for budget_id, old in self._ended.values():
            definitions.end(change, budget_id, old)
        for name in sorted(self._groups.keys() - self._old_groups.keys()):
            groups.create(change, name)
        for name, members in leaving.items():
            groups.part(change, name, members)
        for name, members in joining.items():
            groups.enter(change, name, members)
        for budget_id, old, new in self._changed.values():
            definitions.replace(change, budget_id, old, new)
        for new in self._new.values():
            definitions.create(change, new)
        for name in self._ended_groups:
            groups.end(change, name)

    def _lock(self, change: Change, members: list[Members]) -> None:
        replanned = [(old, new) for _, old, new in self._changed.values() if not new.plans_as(old)]
        changed = [definition for both in replanned for definition in both]
        scope = definitions.scope_of(*self._new.values(), *changed, *(old for _, old in self._ended.values()))
        change.lock(
            agents=scope["agents"].union(*(each.agents for each in members)),
            groups=scope["groups"].union(*(each.groups for each in members)),
            budget_ids=[
                *(budget_id for budget_id, _ in self._ended.values()),
                *(budget_id for budget_id, _, _ in self._changed.values()),
            ],
        )
