"""Which worlds there are, and how a seed is run in one. The same scenario and seed take the same steps, always."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from daycap.ledger.tables import metadata
from tests.migrated import quiet_ledger
from tests.simulation.budgets import BudgetsWorld
from tests.simulation.world import World

SCENARIOS: dict[str, dict[str, Any]] = {
    "one runner, no faults": {"faults": 0.0, "runners": 1, "agents": 1, "steps": 200},
    "three runners, no faults": {"faults": 0.0, "runners": 3, "agents": 2, "steps": 200},
    "two runners, some faults": {"faults": 0.3, "runners": 2, "agents": 1, "steps": 250},
    "three runners, many faults": {"faults": 1.0, "runners": 3, "agents": 2, "steps": 250},
    "one runner, budgets, no faults": {"faults": 0.0, "runners": 1, "agents": 3, "steps": 200, "budgets": 3},
    "three runners, budgets, no faults": {"faults": 0.0, "runners": 3, "agents": 3, "steps": 200, "budgets": 3},
    "two runners, budgets, some faults": {"faults": 0.3, "runners": 2, "agents": 2, "steps": 250, "budgets": 3},
    "three runners, budgets, many faults": {"faults": 1.0, "runners": 3, "agents": 3, "steps": 250, "budgets": 3},
}


class BrokenPromise(AssertionError):
    """A seed that broke a promise, with the last of its steps."""


class Seeds:
    """Runs seeds on a ledger of its own, in memory where that can be had."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Seeds:
        _, self._ledger = self._stack.enter_context(quiet_ledger())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, scenario: str, seed: int) -> World:
        """Raises `BrokenPromise`."""
        with self._ledger.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        options = SCENARIOS[scenario]
        kind = BudgetsWorld if "budgets" in options else World
        world = kind(self._ledger, seed, **options)
        try:
            world.run()
        except Exception as error:
            last = "\n".join(world.trace[-40:])
            raise BrokenPromise(f"{scenario}, seed {seed}: {error!r}\n{last}") from error
        return world
