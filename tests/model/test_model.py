"""The model keeps every promise in every state, and breaks one as soon as a guard is left out."""

from __future__ import annotations

import pytest

from tests.model.configurations import FIRST_STATES, MUTANTS, SMALL, TWO, Mutant
from tests.model.explore import Exploration, explore
from tests.model.state import Config


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.name)
def test_no_promise_is_broken(config: Config) -> None:
    """Breadth first: every short history, and in the smaller worlds every one."""
    result = explore(config, most_states=FIRST_STATES)

    print(f"{result.states:,} states, depth {result.depth}, {result.seconds:.1f} s")
    assert not result.broken, "\n".join((result.broken, *result.trace))
    assert result.complete or result.states >= FIRST_STATES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.guards)
def test_a_promise_is_broken_without(mutant: Mutant) -> None:
    result = explore(mutant.config, mutant.breaks)

    print("\n".join((f"{result.broken} ({result.states:,} states)", *result.trace)))
    assert result.broken.startswith(mutant.breaks)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "config",
    [
        Config("two runners", TWO, (1,), cap=1, faults=("lost publish",)),
        Config("two runners, short memory", TWO, (1,), cap=1, faults=("late sync", "lost publish"), memory=0),
        Config("one runner", tries=(1,), faults=("crash", "worker killed", "failover"), publishes=2, most_faults=1),
    ],
    ids=lambda config: config.name,
)
def test_partial_order_reduction_loses_no_outcome(config: Config) -> None:
    ends = []
    for reduced in (True, False):
        exploration = Exploration(config._replace(reduced=reduced))
        assert exploration.run().complete
        ends.append(exploration.states_at_rest())

    assert ends[0] == ends[1]
