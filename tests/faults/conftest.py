"""A broker, a counter, a worker and a ledger of each test's own: here they are killed, stopped and starved."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from pytest_celery import CeleryTestSetup, CeleryTestWorker, RedisTestBackend, RedisTestBroker

from tests.faults.ledger import LockedLedger
from tests.processes import LocalRedis, LocalWorker
from tests.spine import Spine, environment


@pytest.fixture
def celery_broker(tmp_path: Path) -> Iterator[RedisTestBroker]:
    node = RedisTestBroker(LocalRedis(made(tmp_path / "broker")))
    node.ready()
    yield node
    node.teardown()


@pytest.fixture
def celery_backend(celery_broker: RedisTestBroker) -> RedisTestBackend:
    return RedisTestBackend(celery_broker.container)


@pytest.fixture
def counter_server(tmp_path: Path) -> Iterator[LocalRedis]:
    """The counter's server, another than the broker's: each can be lost alone."""
    server = LocalRedis(made(tmp_path / "counter"))
    server.ready()
    yield server
    server.teardown()


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.fixture
def own_settings() -> dict[str, str]:
    """Variables of the environment that a test module sets for its worker and runners; overridden there."""
    return {}


@pytest.fixture
def own_environment(
    celery_broker: RedisTestBroker,
    counter_server: LocalRedis,
    empty_ledger: Path,
    tmp_path: Path,
    own_settings: dict[str, str],
) -> dict[str, str]:
    ledger = shutil.copy(empty_ledger, tmp_path / "ledger.sqlite3")
    server = celery_broker.config()["host_url"].rpartition("/")[0]
    return {**environment(server, ledger), "DAYCAP_REDIS_URL": counter_server.url, **own_settings}


@pytest.fixture
def worker_options() -> list[str]:
    """Options of `celery worker` beyond the Procfile's; overridden by tests."""
    return []


@pytest.fixture
def celery_worker(
    own_environment: dict[str, str], worker_options: list[str], tmp_path: Path, celery_setup_app: Celery
) -> Iterator[CeleryTestWorker]:
    worker = CeleryTestWorker(LocalWorker(tmp_path, own_environment, *worker_options), app=celery_setup_app)
    worker.ready()
    yield worker
    worker.teardown()


@pytest.fixture
def locked_ledger(own_environment: dict[str, str]) -> LockedLedger:
    """Locks the SQLite ledger as long as a `with` block runs."""
    return LockedLedger(own_environment["DAYCAP_LEDGER_URL"].removeprefix("sqlite:///"))


@pytest.fixture
def spine(celery_setup: CeleryTestSetup, own_environment: dict[str, str]) -> Iterator[Spine]:
    spine = Spine(celery_setup, own_environment)
    yield spine
    spine.close()


@pytest.fixture
def second_worker(spine: Spine, tmp_path: Path) -> Iterator[LocalWorker]:
    """Another worker on the same broker and ledger."""
    worker = LocalWorker(made(tmp_path / "second"), spine.environment, "--hostname=second@%h")
    worker.ready()
    yield worker
    worker.teardown()


@pytest.fixture
def broker(spine: Spine) -> Iterator[redis.Redis]:
    """The broker, as someone with redis-cli has it."""
    with redis.Redis.from_url(spine.settings.broker_url) as client:
        yield client
