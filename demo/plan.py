"""The plan: which agents there are, their caps, and which runner makes which call when."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from demo.prices import CHEAP, DEAR, Model, cost_micros
from demo.trace import Call

MAX_OUTPUT_TOKENS = 600
"""The limit that estimates are made with. About one answer in a hundred of the public trace is longer."""

TOKENS_PER_SECOND = 5_000
"""How fast a model writes: a hundred times faster than life."""

_CAP_PERCENT = (50, 105, 500, 80, 150)
"""The agents' caps, in turn, as a share of what their calls would cost: two of five run into it, one comes close."""

_FAILED, _NOT_SENT = 0.01, 0.02
"""Which share of the calls fails after it was sent, and before."""


class Outcome(StrEnum):
    """What becomes of a call: answered, failed after it was sent, or never sent."""

    ANSWERED = "answered"
    FAILED = "failed"
    NOT_SENT = "not_sent"


class PlannedCall(NamedTuple):
    """One call: seconds after the start, whose, its most and its actual cost in micros, how long it takes."""

    at_s: float
    agent: str
    estimate_micros: int
    actual_micros: int
    duration_s: float
    outcome: Outcome

    @property
    def cost_micros(self) -> int:
        """What the call is charged with, if it is made."""
        charges = {Outcome.ANSWERED: self.actual_micros, Outcome.FAILED: self.estimate_micros, Outcome.NOT_SENT: 0}
        return charges[self.outcome]


class PlannedAgent(NamedTuple):
    """An agent, its cap in micros and how many calls are planned for it."""

    agent: str
    cap_micros: int
    calls: int


class Plan(NamedTuple):
    """Agents, busiest first, and each runner's calls in order of time."""

    agents: tuple[PlannedAgent, ...]
    runners: tuple[tuple[PlannedCall, ...], ...]

    @property
    def calls(self) -> int:
        """How many calls all runners are to make."""
        return sum(len(calls) for calls in self.runners)


def make_plan(calls: Sequence[Call], *, prefix: str, agents: int, runners: int, seconds: float, seed: int) -> Plan:
    """Share the calls, squeezed into `seconds`, among agents `prefix`-01, -02, ... and runners.

    The same calls and the same seed give the same plan, but for the agents' names.
    """
    rng = random.Random(f"plan {seed}")  # noqa: S311  (not for secrets)
    digits = max(2, len(str(agents)))
    names = [f"{prefix}-{number:0{digits}d}" for number in range(1, agents + 1)]
    model_of = dict(zip(names, (CHEAP if rng.random() < 0.5 else DEAR for _ in names), strict=True))
    callers = rng.choices(names, [1 / (rank + 5) for rank in range(agents)], k=len(calls))
    speed = seconds / max(calls[-1].at_s - calls[0].at_s, 1e-9)
    planned = [
        _planned(call, agent, model_of[agent], (call.at_s - calls[0].at_s) * speed, rng.random())
        for call, agent in zip(calls, callers, strict=True)
    ]
    shares: list[list[PlannedCall]] = [[] for _ in range(runners)]
    for each in planned:
        rng.choice(shares).append(each)
    return Plan(_with_caps(names, planned), tuple(map(tuple, shares)))


def write_calls(path: Path, calls: Iterable[PlannedCall]) -> None:
    """One runner's calls as a file, a JSON array a line."""
    path.write_text("".join(f"{json.dumps(call)}\n" for call in calls), "utf-8")


def read_calls(path: Path) -> list[PlannedCall]:
    """What `write_calls` wrote."""
    with path.open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [PlannedCall._make([*row[:-1], Outcome(row[-1])]) for row in rows]


def _planned(call: Call, agent: str, model: Model, at_s: float, chance: float) -> PlannedCall:
    outcome = Outcome.ANSWERED
    if chance < _FAILED + _NOT_SENT:
        outcome = Outcome.FAILED if chance < _FAILED else Outcome.NOT_SENT
    return PlannedCall(
        round(at_s, 4),
        agent,
        cost_micros(model, call.input_tokens, MAX_OUTPUT_TOKENS),
        cost_micros(model, call.input_tokens, call.output_tokens),
        round(call.output_tokens / TOKENS_PER_SECOND, 4),
        outcome,
    )


def _with_caps(names: Sequence[str], planned: Iterable[PlannedCall]) -> tuple[PlannedAgent, ...]:
    costs, counts = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for call in planned:
        costs[call.agent] += call.cost_micros
        counts[call.agent] += 1
    return tuple(
        PlannedAgent(name, max(1, costs[name] * _CAP_PERCENT[rank % len(_CAP_PERCENT)] // 100), counts[name])
        for rank, name in enumerate(names)
    )
