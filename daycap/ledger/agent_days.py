"""Groups agents' days for the ledger's statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

AgentDay = tuple[str, str]

SOME = 500
"""Agents per statement, below every database's limit of parameters."""


def by_day(agent_days: Iterable[AgentDay]) -> Iterator[tuple[str, list[str]]]:
    """Yield each day with its agents, at most `SOME` at once, sorted: all workers take their locks in this order."""
    agents_of: dict[str, list[str]] = {}
    for agent, day in sorted(set(agent_days)):
        agents_of.setdefault(day, []).append(agent)
    for day in sorted(agents_of):
        agents = agents_of[day]
        yield from ((day, agents[start : start + SOME]) for start in range(0, len(agents), SOME))
