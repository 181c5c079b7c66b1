"""Groups agents' days for the ledger's statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from daycap.protocol.counter import AgentDay

AT_ONCE = 500
"""Agents per statement, below every database's parameter limit."""


def by_day(agent_days: Iterable[AgentDay]) -> Iterator[tuple[str, list[str]]]:
    """Yield each day with its agents, at most `AT_ONCE` per item, sorted: all workers take locks in this order."""
    agents_of: dict[str, list[str]] = {}
    for agent, day in sorted(set(agent_days)):
        agents_of.setdefault(day, []).append(agent)
    for day in sorted(agents_of):
        agents = agents_of[day]
        yield from ((day, agents[start : start + AT_ONCE]) for start in range(0, len(agents), AT_ONCE))
