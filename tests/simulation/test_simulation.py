"""A bounded number of seeds, the same on each run; `make soak` runs as many as one likes."""

from __future__ import annotations

import pytest

from tests.simulation.seeds import SCENARIOS, Seeds


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.timeout(300)
def test_no_promise_is_broken(scenario: str) -> None:
    with Seeds() as seeds:
        for seed in range(3 if "budgets" in SCENARIOS[scenario] else 20):
            seeds.run(scenario, seed)
