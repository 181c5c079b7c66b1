"""Agents' days, grouped as the ledger's statements want them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

AgentDay = tuple[str, str]

SOME = 500
"""Agents a statement, below every database's limit of parameters."""


def by_day(agent_days: Iterable[AgentDay]) -> Iterator[tuple[str, list[str]]]:
    """Each day with its agents, at most `SOME` at once, in order, so that two workers take their locks in the same."""
    agents_of: dict[str, list[str]] = {}
    for agent, day in sorted(set(agent_days)):
        agents_of.setdefault(day, []).append(agent)
    for day in sorted(agents_of):
        agents = agents_of[day]
        yield from ((day, agents[start : start + SOME]) for start in range(0, len(agents), SOME))
