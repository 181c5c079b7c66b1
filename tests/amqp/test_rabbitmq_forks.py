"""Forked children, and those of multiprocessing, send to RabbitMQ as they do to Redis."""

from __future__ import annotations

import json

import pytest

from tests.amqp.spine import AmqpSpine
from tests.integration.processes.programs.children import AGENTS, CALLS, CHILDREN
from tests.integration.processes.session import run

RUNS = 10
SPENDERS = 4
"""Two threads of the parent, and two children."""


@pytest.mark.usefixtures("agents")
def test_fork_during_the_first_send(shared: AmqpSpine) -> None:

    _, failed, said = run("forks", str(RUNS), "1", environment=shared.environment, timeout_s=100)

    assert (failed.strip(), said) == ("0", "")
    assert shared.settled("agent-7") == RUNS * SPENDERS * CALLS


@pytest.fixture(scope="module")
def agents(shared: AmqpSpine) -> None:
    shared.add("agent-7", *AGENTS)


@pytest.mark.usefixtures("agents")
@pytest.mark.parametrize("face", ["threads", "loop"])
def test_children_book_all(shared: AmqpSpine, face: str) -> None:
    before = {agent: shared.settled(agent) for agent in AGENTS}

    status, written, said = run("children", "fork", face, "redis", environment=shared.environment)

    assert (status, said) == (0, "")
    kinds = json.loads(written)
    assert {kind: shared.settled(kind) - before[kind] for kind in kinds} == dict.fromkeys(kinds, CHILDREN * CALLS)
