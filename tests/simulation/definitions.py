"""What a world's budgets and groups are, by an own reckoning: nothing here is taken from the code under test."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from daycap.protocol.labels import Labels

RULES: tuple[dict[str, Any], ...] = (
    {"period": "hour"},
    {"period": "hour", "zone": "Asia/Kolkata"},
    {"period": "day", "zone": "Europe/Zurich"},
    {"period": "day", "hour": 23},
    {"period": "week", "weekday": 7},
    {"period": "month", "zone": "Europe/Zurich"},
    {"period": "month"},
    {"period": "once"},
)
"""Some end where the agents' days do, some an hour or two before, some half an hour after."""

SCOPES: tuple[dict[str, list[str]], ...] = ({}, {}, {}, {"tool": ["search"]}, {"model": ["small*"]})
CALLS: tuple[Labels, ...] = ((), (), (("model", "small-1"),), (("model", "small-1"), ("tool", "search")))


@dataclass(frozen=True)
class Known:
    """A budget. `id` is what the code must call it."""

    id: str
    agent: str | None
    group: str | None
    cap: int
    rule: Mapping[str, Any]
    labels: Mapping[str, list[str]]
    mode: str

    def facts(self) -> dict[str, Any]:
        """What an operator would say."""
        scope = {"agent": self.agent} if self.agent is not None else {"group": self.group}
        return {**scope, "cap_micros": self.cap, "period": self.rule, "labels": self.labels, "mode": self.mode}

    def covers(self, labels: Labels) -> bool:
        """Whether calls with these labels count in it."""
        given = dict(labels)
        return all(
            any(_matches(given[key], value) for value in values) if key in given else False
            for key, values in self.labels.items()
        )


def _matches(given: str, value: str) -> bool:
    return given == value or (value.endswith("*") and given.startswith(value[:-1]))


@dataclass
class Definitions:
    """Who is in which group, and which budgets there are. `outer` contains the group `inner`, or does not."""

    members: dict[str, set[str]]
    nested: bool
    budgets: dict[str, Known] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Definitions:
        """Return what it is now, which later changes do not touch."""
        members = {group: set(agents) for group, agents in self.members.items()}
        return Definitions(members, self.nested, dict(self.budgets), dict(self.numbers))

    def groups_of(self, agent: str) -> set[str]:
        """Return the groups that the agent is in, itself or through another."""
        groups = {group for group, agents in self.members.items() if agent in agents}
        return groups | ({"outer"} if self.nested and "inner" in groups else set())

    def of_call(self, agent: str, labels: Labels) -> dict[str, str]:
        """Return the mode of each budget that such a call counts in, by id."""
        groups = self.groups_of(agent)
        return {
            each.id: each.mode
            for each in self.budgets.values()
            if (each.agent == agent or each.group in groups) and each.covers(labels)
        }

    def put(self, name: str, known: Known) -> Known:
        """Add the budget, or another one of the same name, with its next number. Returns it."""
        self.numbers[name] = self.numbers.get(name, 0) + 1
        self.budgets[name] = replace(known, id=f"{name}/{self.numbers[name]}")
        return self.budgets[name]


def some_budget(rng: random.Random, agents: Mapping[str, int]) -> Known:
    """Return a budget of an agent or a group. Mostly it is full before the agents' own caps are."""
    agent = rng.choice(sorted(agents)) if rng.random() < 0.2 else None
    group = None if agent is not None else rng.choice(["inner", "outer"])
    cap = rng.choice([1, 2, 3, 4, 8]) * max(agents.values()) // 4
    return Known("", agent, group, cap, rng.choice(RULES), rng.choice(SCOPES), rng.choice(["enforce"] * 5 + ["watch"]))
