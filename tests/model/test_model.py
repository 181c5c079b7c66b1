"""The model: small worlds hold every promise in every order of steps, and each guard is needed."""

from __future__ import annotations

import pytest

from tests.model.configurations import BASE, IN_CI, MUTANTS, NOT_NEEDED, Mutant
from tests.model.explore import explore
from tests.model.protocol import Config

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("config", [config for config in BASE if config.name in IN_CI], ids=lambda config: config.name)
def test_no_order_of_steps_breaks_a_promise(config: Config) -> None:
    result = explore(config)

    assert result.broken == "", "\n".join((result.broken, *result.trace))
    assert result.complete


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.guard)
def test_without_the_guard_a_promise_breaks(mutant: Mutant) -> None:
    result = explore(mutant.config)

    assert result.broken.startswith(mutant.breaks), result.broken or "nothing breaks"
    assert len(result.trace) == result.depth > 0


@pytest.mark.parametrize("mutant", NOT_NEEDED, ids=lambda mutant: mutant.guard)
def test_without_what_is_not_needed_nothing_breaks(mutant: Mutant) -> None:
    """Each was needed as long as the counter lent by spent alone."""
    result = explore(mutant.config)

    assert (result.broken, result.complete) == ("", True)


def test_the_configurations_of_ci_are_there() -> None:
    assert {config.name for config in BASE} >= IN_CI
