"""The plan: the agents, their caps, and which runner makes which call when."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from daycap.periods import PeriodRule
from demo.prices import cost_micros
from demo.roles import Role, agent_name, role_of
from demo.trace import Call

MAX_OUTPUT_TOKENS = 600
"""The output limit of each estimate, times the role's factor. About one answer in a hundred is longer."""

TOKENS_PER_SECOND = 5_000
"""How fast a model writes: a hundred times faster than in reality."""

_CAP_PERCENT = (50, 105, 500, 80, 150)
"""The agents' caps, in turn, as a fraction of their calls' cost: two of five reach it, one comes close."""

_FAILED, _NOT_SENT = 0.01, 0.02
"""The fractions of calls that fail after they were sent, and before."""


class Outcome(StrEnum):
    """The fate of a call: answered, failed after it was sent, or never sent."""

    ANSWERED = "answered"
    FAILED = "failed"
    NOT_SENT = "not_sent"


class PlannedCall(NamedTuple):
    """One call: seconds after the start, agent, estimated and actual cost in micros, duration."""

    at_s: float
    agent: str
    estimate_micros: int
    actual_micros: int
    duration_s: float
    outcome: Outcome

    @property
    def cost_micros(self) -> int:
        """The amount that the call is charged if it is made."""
        charges = {Outcome.ANSWERED: self.actual_micros, Outcome.FAILED: self.estimate_micros, Outcome.NOT_SENT: 0}
        return charges[self.outcome]


TEAM_PERIOD = PeriodRule("month")
"""The period of the budget that all agents of a demo share."""


class PlannedAgent(NamedTuple):
    """An agent, its cap in micros, the number of its planned calls, and its model."""

    agent: str
    cap_micros: int
    calls: int
    model: str = ""


class Plan(NamedTuple):
    """The agents, busiest first, and each runner's calls in chronological order."""

    agents: tuple[PlannedAgent, ...]
    runners: tuple[tuple[PlannedCall, ...], ...]

    @property
    def calls(self) -> int:
        """The number of calls of all runners."""
        return sum(len(calls) for calls in self.runners)

    @property
    def caps(self) -> dict[str, int]:
        """Each agent's cap in micros."""
        return {agent.agent: agent.cap_micros for agent in self.agents}


def make_plan(
    calls: Sequence[Call], *, agents: int, runners: int, seconds: float, seed: int, chats: bool = True, suffix: str = ""
) -> Plan:
    """Distribute the calls, compressed into `seconds`, among agents (researcher, coder, ...) and runners.

    With `chats` the calls have the tokens of chat messages, which each role multiplies by what it reads and writes.
    `suffix` ends each agent's name. The same calls and the same seed give the same plan.
    """
    rng = random.Random(f"plan {seed}")  # noqa: S311  (not for secrets)
    callers = rng.choices(range(agents), [1 / (rank + 5) for rank in range(agents)], k=len(calls))
    first_s = calls[0].at_s
    speed = seconds / max(calls[-1].at_s - first_s, 1e-9)
    names = [agent_name(rank, suffix) for rank in range(agents)]
    shares: list[list[PlannedCall]] = [[] for _ in range(runners)]
    planned = []
    for call, rank in zip(calls, callers, strict=True):
        role = role_of(rank) if chats else role_of(rank)._replace(reads=1, writes=1)
        each = _planned(call, names[rank], role, (call.at_s - first_s) * speed, rng.random())
        planned.append(each)
        rng.choice(shares).append(each)
    return Plan(_with_caps(names, planned), tuple(map(tuple, shares)))


def write_calls(path: Path, calls: Iterable[PlannedCall]) -> None:
    """Write one runner's calls to a file, one JSON array per line."""
    path.write_text("".join(f"{json.dumps(call)}\n" for call in calls), "utf-8")


def read_calls(path: Path) -> list[PlannedCall]:
    """Read the calls that `write_calls` wrote."""
    with path.open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [PlannedCall._make([*row[:-1], Outcome(row[-1])]) for row in rows]


def _planned(call: Call, agent: str, role: Role, at_s: float, chance: float) -> PlannedCall:
    outcome = Outcome.ANSWERED
    if chance < _FAILED + _NOT_SENT:
        outcome = Outcome.FAILED if chance < _FAILED else Outcome.NOT_SENT
    reads, writes = call.input_tokens * role.reads, call.output_tokens * role.writes
    return PlannedCall(
        round(at_s, 4),
        agent,
        cost_micros(role.model, reads, MAX_OUTPUT_TOKENS * role.writes),
        cost_micros(role.model, reads, writes),
        round(writes / TOKENS_PER_SECOND, 4),
        outcome,
    )


def _with_caps(names: Sequence[str], planned: Iterable[PlannedCall]) -> tuple[PlannedAgent, ...]:
    costs, counts = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for call in planned:
        costs[call.agent] += call.cost_micros
        counts[call.agent] += 1
    return tuple(
        PlannedAgent(
            name,
            _rounded(costs[name] * _CAP_PERCENT[rank % len(_CAP_PERCENT)] // 100),
            counts[name],
            role_of(rank).model.name,
        )
        for rank, name in enumerate(names)
    )


def _rounded(amount_micros: int) -> int:
    """Round to whole dollars, or to ten cents below ten dollars, as people choose caps. At least a cent."""
    step = 1_000_000 if amount_micros >= 10_000_000 else 100_000 if amount_micros >= 1_000_000 else 10_000
    return max(10_000, round(amount_micros / step) * step)
