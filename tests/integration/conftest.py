"""One broker, one worker, one ledger for all tests here; emptied before each. Tests that break them: faults/."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from pytest_celery import CeleryTestSetup, RedisTestBackend

from tests.processes import LocalRedis, LocalWorker, SharedBroker, SharedWorker
from tests.provider import Provider
from tests.spine import Spine, environment, make_empty


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    server = LocalRedis(tmp_path_factory.mktemp("redis"))
    server.ready()
    yield server
    server.teardown()


@pytest.fixture(scope="session")
def shared_environment(
    shared_redis: LocalRedis, empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    ledger = shutil.copy(empty_ledger, tmp_path_factory.mktemp("shared") / "ledger.sqlite3")
    return environment(shared_redis.url.rpartition("/")[0], ledger)


@pytest.fixture(scope="session")
def shared_worker(
    shared_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalWorker]:
    worker = LocalWorker(tmp_path_factory.mktemp("worker"), shared_environment)
    worker.ready()
    yield worker
    worker.teardown()


@pytest.fixture
def celery_broker(shared_redis: LocalRedis) -> SharedBroker:
    return SharedBroker(shared_redis)


@pytest.fixture
def celery_backend(shared_redis: LocalRedis) -> RedisTestBackend:
    return RedisTestBackend(shared_redis)


@pytest.fixture
def celery_worker(
    shared_worker: LocalWorker, shared_environment: dict[str, str], celery_setup_app: Celery
) -> SharedWorker:
    make_empty(shared_environment)
    return SharedWorker(shared_worker, app=celery_setup_app)


@pytest.fixture
def spine(celery_setup: CeleryTestSetup, shared_environment: dict[str, str]) -> Iterator[Spine]:
    spine = Spine(celery_setup, shared_environment)
    yield spine
    spine.close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()
