"""A child that is forked at any moment of its parent's work can reserve and send."""

from __future__ import annotations

from tests.integration.processes.programs.children import CALLS, COST
from tests.integration.processes.session import run
from tests.spine import Spine

M = 1_000_000
RUNS = 20
SPENDERS = 4
"""Two threads of the parent, and two children."""


def test_fork_during_the_first_send(spine: Spine) -> None:
    agent = spine.add("agent-7", 5_000 * M)

    given = {**spine.environment, "DAYCAP_REDIS_TIMEOUT_SECONDS": "2"}  # Many are at work at once.
    _, failed, said = run("forks", str(RUNS), "1", environment=given, timeout_s=110)

    assert (failed.strip(), said) == ("0", "")

    calls = RUNS * SPENDERS * CALLS
    assert spine.settled_once(agent) == (calls, calls * COST)
