"""The whole spine, real: redis-server, worker, ledger, wallets. Function-scoped, so that tests may break it."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from pytest_celery import CeleryTestSetup, CeleryTestWorker, RedisTestBackend, RedisTestBroker

from daycap import Settings, Wallet
from daycap.clock import day_of
from daycap.redis_counter import RedisCounter
from daycap.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK
from tests.migrated import migrated_sqlite
from tests.processes import LocalRedis, LocalWorker, engine_answers


@pytest.fixture
def celery_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisTestBroker]:
    container = request.getfixturevalue("default_redis_broker") if engine_answers() else LocalRedis(tmp_path)
    node = RedisTestBroker(container)
    node.ready()
    yield node
    node.teardown()


@pytest.fixture
def celery_backend(celery_broker: RedisTestBroker) -> RedisTestBackend:
    return RedisTestBackend(celery_broker.container)


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite ledger with nothing in it, to be copied."""
    return migrated_sqlite(tmp_path_factory.mktemp("ledger") / "empty.sqlite3")


@pytest.fixture
def environment(celery_broker: RedisTestBroker, empty_ledger: Path, tmp_path: Path) -> dict[str, str]:
    """What worker and runners read: the broker's server is the counter's as well, in another database."""
    ledger = tmp_path / "ledger.sqlite3"
    shutil.copy(empty_ledger, ledger)
    broker = celery_broker.config()["host_url"]
    return {
        "DAYCAP_REDIS_URL": f"{broker.rpartition('/')[0]}/1",
        "DAYCAP_BROKER_URL": broker,
        "DAYCAP_LEDGER_URL": f"sqlite:///{ledger}",
    }


@pytest.fixture
def celery_worker(environment: dict[str, str], tmp_path: Path, celery_setup_app: Celery) -> Iterator[CeleryTestWorker]:
    worker = CeleryTestWorker(LocalWorker(tmp_path, environment), app=celery_setup_app)
    worker.ready()
    yield worker
    worker.teardown()


class Spine:
    """What a test asks of the running whole."""

    def __init__(self, setup: CeleryTestSetup, environment: dict[str, str]) -> None:
        self.app: Celery = setup.app
        self.worker: CeleryTestWorker = setup.worker
        self.broker: RedisTestBroker = setup.broker
        self.environment = environment
        self.settings = Settings.from_env(environment)
        self.counter = RedisCounter(self.settings.redis_url, timeout_s=2)
        self.redis = redis.Redis.from_url(self.settings.redis_url, decode_responses=True)
        self._wallets: list[Wallet] = []

    def wallet(self, **changes: Any) -> Wallet:
        """A runner's wallet in this process."""
        wallet = Wallet.from_settings(dataclasses.replace(self.settings, **changes))
        self._wallets.append(wallet)
        return wallet

    def ask(self, task: str, **kwargs: Any) -> Any:
        """The worker's answer to a task of the control queue."""
        answer = self.app.send_task(task, kwargs=kwargs, queue=CONTROL_QUEUE).get(timeout=20)
        assert "error" not in answer, answer
        return answer["result"]

    def add(self, agent: str, cap_micros: int) -> str:
        """Add an agent; returns its id."""
        self.ask("daycap.add_agents", caps={agent: cap_micros}, changed_by="test")
        return agent

    def deliver(self, *events: Any, **message: Any) -> dict[str, int]:
        """Send events as they are, as one message, and wait for what the worker made of it."""
        kwargs = message or {"events": list(events)}
        return self.app.send_task(FINALIZE_TASK, kwargs=kwargs, queue=FINALIZE_QUEUE, ignore_result=False).get(20)

    def rows(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        """Rows of the ledger, read around daycap."""
        path = self.settings.ledger_url.removeprefix("sqlite:///")
        connection = sqlite3.connect(path)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(statement, parameters)]
        finally:
            connection.close()

    def execute(self, statement: str) -> None:
        """Change the ledger behind daycap's back."""
        with sqlite3.connect(self.settings.ledger_url.removeprefix("sqlite:///")) as connection:
            connection.execute(statement)
        connection.close()

    def day_row(self, agent: str) -> dict[str, Any]:
        (row,) = self.rows(
            "SELECT * FROM daily_agent_spending WHERE agent_account_id = ? AND spending_date = ?", agent, self.today
        )
        return row

    @property
    def today(self) -> str:
        return day_of(self.counter.now_ms())

    def close(self) -> None:
        for wallet in self._wallets:
            wallet.close(timeout=1)
        self.counter.close()
        self.redis.close()


@pytest.fixture
def spine(celery_setup: CeleryTestSetup, environment: dict[str, str]) -> Iterator[Spine]:
    spine = Spine(celery_setup, environment)
    yield spine
    spine.close()
