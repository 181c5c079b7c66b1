"""A real Flower, asked over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from daycap.protocol.wire import FINALIZE_QUEUE
from tests.processes import LocalFlower
from tests.spine import Spine


@pytest.fixture
def flower(spine: Spine, tmp_path: Path) -> Iterator[LocalFlower]:
    flower = LocalFlower(tmp_path, spine.environment)
    flower.ready()
    yield flower
    flower.teardown()


def test_the_broker_and_what_agents_spent_are_shown(spine: Spine, flower: LocalFlower) -> None:
    spine.add("agent-7", 5_000_000)
    spine.add("agent-8", 5_000_000)
    wallet = spine.wallet()
    spine.wait_for(
        lambda: "worker" in json.loads(flower.get("/api/workers") or "{}") or flower.get("/api/workers?refresh=1")
    )

    broker = spine.wait_for(lambda: (page := flower.get("/broker")) and FINALIZE_QUEUE in page and page)
    assert "redis://" in broker

    with wallet.reserve("agent-7", 20_000) as hold:
        hold.finalize(12_000)
    assert wallet.flush(20) == ()

    def shown() -> tuple[str, str] | None:
        tasks = json.loads(flower.get("/api/tasks?taskname=daycap.finalize") or "{}").values()
        done = [task for task in tasks if task["state"] == "SUCCESS"]
        return (done[0]["kwargs"], done[0]["result"]) if done else None

    kwargs, result = spine.wait_for(shown)
    assert kwargs == "agent-7 $0.012"
    assert re.fullmatch(r"agent-7 \$0\.012 \(messages 1, settled 1, .*\)", result)
