"""A real Flower on a RabbitMQ with its management."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from daycap.protocol.wire import FINALIZE_QUEUE
from tests.amqp.conftest import made_spine
from tests.processes import LocalFlower
from tests.rabbitmq import RabbitMq, rabbitmq_program
from tests.spine import wait_for


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[RabbitMq]:
    program = rabbitmq_program()
    if program is None:
        pytest.skip("no rabbitmq-server on PATH")
    (tmp_path / "managed").mkdir()
    rabbit = RabbitMq(tmp_path / "managed", program, management=True).start()
    yield rabbit
    rabbit.stop()


def test_the_brokers_queues_are_shown(managed: RabbitMq, empty_ledger: Path, tmp_path: Path) -> None:
    spine = made_spine(managed, tmp_path, empty_ledger)
    spine.start_worker()
    api = f"--broker-api=http://guest:guest@127.0.0.1:{managed.management_port}/api/"
    flower = LocalFlower(tmp_path, spine.environment, api)
    try:
        wait_for(lambda: json.loads(flower.get("/api/workers?refresh=1") or "{}"))
        page = wait_for(lambda: (page := flower.get("/broker")) and FINALIZE_QUEUE in page and page)
        assert "amqp://" in page
        assert "worker.broker" not in page
    finally:
        flower.teardown()
        spine.close()
