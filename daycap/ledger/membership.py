"""Who belongs to which group: agents and groups, at most `MOST_LEVELS` groups above one another, without a cycle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import sqlalchemy as sa

from daycap.errors import InvalidInput
from daycap.formats import shown
from daycap.ledger.tables import group_members as members
from daycap.protocol.wire import agent_id

AGENT, GROUP = "agent", "group"
"""The kinds of a group's members."""

MOST_LEVELS = 8
"""How many groups may contain one another, the outermost and the innermost included."""

_AT_ONCE = 500
"""Names per statement, below every database's parameter limit."""


def name_of(value: object, what: str) -> str:
    """Return `value` if it is a name: what an agent's id may be. Raises `InvalidInput`."""
    try:
        return agent_id(value)
    except InvalidInput:
        raise InvalidInput(
            f"not the name of a {what} (1..128 characters of A-Z a-z 0-9 . _ : @ -): {shown(value, 160)}"
        ) from None


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield the names in the order of their bytes, a limited number at a time."""
    ordered = sorted(set(names))
    yield from (ordered[start : start + _AT_ONCE] for start in range(0, len(ordered), _AT_ONCE))


def agents_of(connection: sa.Connection, groups: Iterable[str]) -> set[str]:
    """Return the agents that belong to these groups, directly or through other groups."""
    below = set().union(*levels_below(connection, groups))
    return {agent for batch in batches(below) for agent in connection.scalars(_members(batch, AGENT))}


def levels_below(connection: sa.Connection, groups: Iterable[str]) -> list[set[str]]:
    """Return the groups, their members that are groups, the members of those, and so on. In a cycle it stops."""
    return _levels(groups, lambda batch: connection.scalars(_members(batch, GROUP)))


def levels_above(connection: sa.Connection, groups: Iterable[str]) -> list[set[str]]:
    """Return the groups, the groups that contain them, those that contain these, and so on. In a cycle it stops."""
    return _levels(groups, lambda batch: connection.scalars(_containing(batch)))


def check_levels(connection: sa.Connection, group: str) -> None:
    """Raise `InvalidInput` if `group`, whose members have changed, contains itself or there are too many levels."""
    below, above = levels_below(connection, [group]), levels_above(connection, [group])
    if any(group in level for level in below[1:]):
        raise InvalidInput(f"group {group} would contain itself, directly or through another group")
    if len(above) + len(below) - 1 > MOST_LEVELS:
        raise InvalidInput(f"group {group} would be part of more than {MOST_LEVELS} levels of groups")


class Containers:
    """Which groups contain what, in one transaction that does not change them meanwhile. Reads what it is asked for."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._parents: dict[str, set[str]] = {}

    def of_agents(self, agents: Collection[str]) -> dict[str, frozenset[str]]:
        """Return, for each agent, all groups that it belongs to, directly or through other groups."""
        direct: dict[str, set[str]] = {agent: set() for agent in agents}
        for batch in batches(agents):
            for group, agent in self._connection.execute(_parents(batch, AGENT)):
                direct[agent].add(group)
        self._load(set().union(*direct.values()))
        return {agent: self._all_above(groups) for agent, groups in direct.items()}

    def _load(self, groups: set[str]) -> None:
        while unknown := groups - self._parents.keys():
            self._parents |= {group: set() for group in unknown}
            for batch in batches(unknown):
                for parent, group in self._connection.execute(_parents(batch, GROUP)):
                    self._parents[group].add(parent)
            groups = set().union(*(self._parents[group] for group in unknown))

    def _all_above(self, groups: set[str]) -> frozenset[str]:
        found: set[str] = set()
        while groups := groups - found:
            found |= groups
            groups = set().union(*(self._parents[group] for group in groups))
        return frozenset(found)


def _levels(groups: Iterable[str], following: Callable[[list[str]], Iterable[str]]) -> list[set[str]]:
    levels = [set(groups)]
    while levels[-1] and len(levels) <= MOST_LEVELS + 1:  # One more than allowed, so that the caller sees it.
        levels.append({name for batch in batches(levels[-1]) for name in following(batch)})
    return [level for level in levels if level]


def _members(groups: list[str], kind: str) -> sa.Select[str]:
    return sa.select(members.c.member_id).where(members.c.group_id.in_(groups), members.c.member_kind == kind)


def _containing(groups: list[str]) -> sa.Select[str]:
    return sa.select(members.c.group_id).where(members.c.member_id.in_(groups), members.c.member_kind == GROUP)


def _parents(names: list[str], kind: str) -> sa.Select[str, str]:
    return sa.select(members.c.group_id, members.c.member_id).where(
        members.c.member_id.in_(names), members.c.member_kind == kind
    )
