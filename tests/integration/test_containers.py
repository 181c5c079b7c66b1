"""The same spine with counter and broker in pytest-celery's own containers, where an engine answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from pytest_celery import CeleryTestSetup, CeleryTestWorker, RedisTestBackend, RedisTestBroker

from tests.processes import LocalWorker, engine_answers
from tests.spine import Spine, environment

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not engine_answers(), reason="no container engine answers here"),
]


@pytest.fixture
def celery_broker(request: pytest.FixtureRequest) -> Iterator[RedisTestBroker]:
    node = RedisTestBroker(request.getfixturevalue("default_redis_broker"))
    node.ready()
    yield node
    node.teardown()


@pytest.fixture
def celery_backend(celery_broker: RedisTestBroker) -> RedisTestBackend:
    return RedisTestBackend(celery_broker.container)


@pytest.fixture
def own_environment(celery_broker: RedisTestBroker, empty_ledger: Path, tmp_path: Path) -> dict[str, str]:
    ledger = shutil.copy(empty_ledger, tmp_path / "ledger.sqlite3")
    return environment(celery_broker.config()["host_url"].rpartition("/")[0], ledger)


@pytest.fixture
def celery_worker(
    own_environment: dict[str, str], tmp_path: Path, celery_setup_app: Celery
) -> Iterator[CeleryTestWorker]:
    worker = CeleryTestWorker(LocalWorker(tmp_path, own_environment), app=celery_setup_app)
    worker.ready()
    yield worker
    worker.teardown()


def test_round_trip_with_containers(celery_setup: CeleryTestSetup, own_environment: dict[str, str]) -> None:
    spine = Spine(celery_setup, own_environment)
    agent, wallet = spine.add("agent-7", 5_000_000), spine.wallet()

    wallet.reserve(agent, 50_000).finalize(31_200)

    assert wallet.flush(timeout=20) == ()
    assert spine.day_row(agent)["spent_micros"] == 31_200
    spine.close()
