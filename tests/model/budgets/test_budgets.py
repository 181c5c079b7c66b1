"""Several budgets keep every promise in every state, and break one as soon as a guard is left out."""

from __future__ import annotations

import pytest

from tests.model.budgets.configurations import MUTANTS, PAIR, RULES, SHARED, SMALL
from tests.model.budgets.state import Config
from tests.model.configurations import FIRST_STATES, Mutant
from tests.model.explore import Exploration, explore


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.name)
def test_no_promise_is_broken(config: Config) -> None:
    result = explore(config, rules=RULES, most_states=FIRST_STATES)

    print(f"{result.states:,} states, depth {result.depth}, {result.seconds:.1f} s")
    assert not result.broken, "\n".join((result.broken, *result.trace))
    assert result.complete or result.states >= FIRST_STATES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.guards)
def test_a_promise_is_broken_without(mutant: Mutant) -> None:
    result = explore(mutant.config, mutant.breaks, RULES)

    print("\n".join((f"{result.broken} ({result.states:,} states)", *result.trace)))
    assert result.broken.startswith(mutant.breaks)


@pytest.mark.parametrize(
    "config",
    [
        Config("two runners", (1, 2, 1), PAIR, (1,), ticks=False),
        Config("two agents of a process", (1, 1, 2), SHARED, (1,), ticks=False),
    ],
    ids=lambda config: config.name,
)
def test_calls_that_fit_can_always_be_held(config: Config) -> None:
    """Nobody has for good what another one lacks."""
    exploration = Exploration(config, rules=RULES)
    states = exploration.run().states

    assert exploration.can_reach(lambda s: len(s.holds) + len(s.events) == 2) == states
