"""Groups of agents and of other groups. Every change is recorded in `budget_changes`: who left, and who joined."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import sqlalchemy as sa

from daycap.errors import GroupExists, InvalidInput, UnknownGroup
from daycap.formats import shown
from daycap.ledger.engine import Ledger, insert
from daycap.ledger.membership import AGENT, GROUP, batches, check_levels, name_of
from daycap.ledger.plans import Change, changing
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.tables import budgets, group_members, groups
from daycap.protocol.wire import agent_id

_MOST_AT_ONCE = 1000


class Group(NamedTuple):
    """A group, its members and the names of its own budgets, each sorted."""

    group: str
    agents: list[str]
    groups: list[str]
    budgets: list[str]


class Members(NamedTuple):
    """Agents and groups, as members of a group. Create it with `members_of`."""

    agents: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    def __sub__(self, other: Members) -> Members:
        return Members(self.agents - other.agents, self.groups - other.groups)

    def to_json(self) -> dict[str, list[str]]:
        """Return the names of each kind that there is."""
        kinds = {"agents": sorted(self.agents), "groups": sorted(self.groups)}
        return {kind: names for kind, names in kinds.items() if names}


def members_of(agents: Iterable[object], member_groups: Iterable[object]) -> Members:
    """Return the members, checked. Raises `InvalidInput`."""
    for names in (agents, member_groups):
        if isinstance(names, str):
            raise InvalidInput(f"members are a list of names, not {shown(names, 160)}")
    return Members(
        frozenset(agent_id(agent) for agent in agents), frozenset(name_of(group, "group") for group in member_groups)
    )


def add(
    ledger: Ledger,
    publisher: CounterPublisher,
    group: str,
    agents: Collection[str],
    member_groups: Collection[str],
    changed_by: str,
    reason: str | None = None,
) -> Group:
    """Add a group with its members. Raises `GroupExists`, and what `join` raises."""
    group, members = name_of(group, "group"), members_of(agents, member_groups)
    with changing(ledger, publisher, changed_by, reason) as change:
        change.lock(agents=members.agents, groups=members.groups)
        create(change, group)
        enter(change, group, members)
    return find(ledger, [group])[0]


def join(
    ledger: Ledger,
    publisher: CounterPublisher,
    group: str,
    agents: Collection[str],
    member_groups: Collection[str],
    changed_by: str,
    reason: str | None = None,
) -> Group:
    """Add members to a group; those that belong to it already stay.

    Raises `UnknownGroup`, `UnknownAgent`, and `InvalidInput` for a cycle, for too many levels of groups, and if a call
    could count in too many budgets.
    """
    group, members = name_of(group, "group"), members_of(agents, member_groups)
    with changing(ledger, publisher, changed_by, reason) as change:
        change.lock(agents=members.agents, groups=members.groups)
        check_exist(change.connection, [group])
        enter(change, group, members)
    return find(ledger, [group])[0]


def leave(
    ledger: Ledger,
    publisher: CounterPublisher,
    group: str,
    agents: Collection[str],
    member_groups: Collection[str],
    changed_by: str,
    reason: str | None = None,
) -> Group:
    """Remove members from a group. Raises `UnknownGroup`, and `InvalidInput` for what is not a member of it."""
    group, members = name_of(group, "group"), members_of(agents, member_groups)
    with changing(ledger, publisher, changed_by, reason) as change:
        check_exist(change.connection, [group])
        if missing := (members - current(change.connection, [group])[group]).to_json():
            kind, names = next(iter(missing.items()))
            raise InvalidInput(f"{kind.removesuffix('s')} {names[0]} is not a member of group {group}")
        change.lock(agents=members.agents, groups=members.groups)
        part(change, group, members)
    return find(ledger, [group])[0]


def remove(ledger: Ledger, publisher: CounterPublisher, group: str, changed_by: str, reason: str | None = None) -> None:
    """Remove a group. Raises `UnknownGroup`, and `InvalidInput` if it has members or a budget, or is a member."""
    with changing(ledger, publisher, changed_by, reason) as change:
        check_exist(change.connection, [name_of(group, "group")])
        end(change, group)


def find(ledger: Ledger, names: list[str] | None = None, after: str = "", limit: int = _MOST_AT_ONCE) -> list[Group]:
    """Return groups by name: those named, or the next `limit` after `after`. Raises `UnknownGroup`."""
    if not 1 <= limit <= _MOST_AT_ONCE:
        raise InvalidInput(f"limit must be from 1 to {_MOST_AT_ONCE}")
    statement = sa.select(groups.c.group_id).where(groups.c.removed_at.is_(None)).order_by(groups.c.group_id)
    with ledger.reading() as connection:
        if names is None:
            found = list(connection.scalars(statement.where(groups.c.group_id > after).limit(limit)))
        else:
            check_exist(connection, names)
            found = sorted(set(names))
        members, own = current(connection, found), _budgets_of(connection, found)
    return [
        Group(name, sorted(members[name].agents), sorted(members[name].groups), sorted(own[name])) for name in found
    ]


def create(change: Change, group: str) -> None:
    """Add an empty group. Raises `GroupExists`."""
    row = {"group_id": group, "created_at": change.now_ms, "removed_at": None}
    statement = insert(change.connection.dialect.name, groups).values(**row)
    again = statement.on_conflict_do_update(
        index_elements=["group_id"], set_=row, where=groups.c.removed_at.is_not(None)
    )
    if change.connection.execute(again.returning(groups.c.group_id)).one_or_none() is None:
        raise GroupExists(f"{group}: {GroupExists.__doc__}")
    change.record("group", group, None, {})


def enter(change: Change, group: str, members: Members) -> None:
    """Add members whose agents are locked. Raises `UnknownGroup` and `InvalidInput`."""
    check_exist(change.connection, members.groups)
    new = members - current(change.connection, [group])[group]
    rows = [
        {"group_id": group, "member_kind": kind, "member_id": name}
        for kind, names in ((AGENT, new.agents), (GROUP, new.groups))
        for name in sorted(names)
    ]
    if not rows:
        return
    change.connection.execute(sa.insert(group_members), rows)
    if new.groups:
        check_levels(change.connection, group)
    change.record("group", group, {}, new.to_json())


def part(change: Change, group: str, members: Members) -> None:
    """Remove members whose agents are locked."""
    of_members = group_members.c
    for kind, names in ((AGENT, members.agents), (GROUP, members.groups)):
        for batch in batches(names):
            these = sa.and_(
                of_members.group_id == group, of_members.member_kind == kind, of_members.member_id.in_(batch)
            )
            change.connection.execute(sa.delete(group_members).where(these))
    if left := members.to_json():
        change.record("group", group, left, {})


def end(change: Change, group: str) -> None:
    """Remove a group. Raises `InvalidInput` if it has members or a budget, or is a member."""
    if members := current(change.connection, [group])[group].to_json():
        kind, names = next(iter(members.items()))
        raise InvalidInput(f"group {group} has members, such as {kind.removesuffix('s')} {names[0]}: remove them first")
    if own := _budgets_of(change.connection, [group])[group]:
        raise InvalidInput(f"group {group} has a budget, {own[0]}: remove it first")
    of_members = group_members.c
    above = sa.select(of_members.group_id).where(of_members.member_kind == GROUP, of_members.member_id == group)
    if parent := change.connection.scalar(above.order_by(of_members.group_id).limit(1)):
        raise InvalidInput(f"group {group} is a member of group {parent}: remove it there first")
    change.connection.execute(sa.update(groups).where(groups.c.group_id == group).values(removed_at=change.now_ms))
    change.record("group", group, {}, None)


def check_exist(connection: sa.Connection, names: Iterable[str]) -> None:
    """Raise `UnknownGroup` unless all of these groups exist."""
    wanted = set(names)
    for batch in batches(wanted):
        these = sa.and_(groups.c.group_id.in_(batch), groups.c.removed_at.is_(None))
        wanted.difference_update(connection.scalars(sa.select(groups.c.group_id).where(these)))
    if wanted:
        raise UnknownGroup(f"{min(wanted)}: {UnknownGroup.__doc__}")


def current(connection: sa.Connection, names: Iterable[str]) -> dict[str, Members]:
    """Return the members of each of these groups."""
    of_members = group_members.c
    found: dict[str, dict[str, set[str]]] = {name: {AGENT: set(), GROUP: set()} for name in names}
    for batch in batches(found):
        these = of_members.group_id.in_(batch)
        columns = sa.select(of_members.group_id, of_members.member_kind, of_members.member_id)
        for group, kind, name in connection.execute(columns.where(these)):
            found[group][kind].add(name)
    return {name: Members(frozenset(kinds[AGENT]), frozenset(kinds[GROUP])) for name, kinds in found.items()}


def _budgets_of(connection: sa.Connection, names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in names}
    for batch in batches(found):
        these = sa.and_(budgets.c.group_id.in_(batch), budgets.c.removed_at.is_(None))
        for group, budget in connection.execute(sa.select(budgets.c.group_id, budgets.c.name).where(these)):
            found[group].append(budget)
    return found
