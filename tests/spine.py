"""The whole spine, real: redis-server, worker, ledger, and the wallets that a test makes."""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

import redis
import sqlalchemy as sa
from celery import Celery
from pytest_celery import CeleryTestSetup, CeleryTestWorker, RedisTestBroker

from daycap import Settings, Wallet
from daycap.clock import day_of
from daycap.counters.redis import RedisCounter
from daycap.ledger.reader import LedgerReader
from daycap.ledger.tables import metadata
from daycap.protocol.counter import NOT_OPEN, DaySnapshot
from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK, OPEN_QUEUE

T = TypeVar("T")


def environment(server: str, ledger: object) -> dict[str, str]:
    """What worker and runners read: one server, two databases, so that each can be flushed alone."""
    return {
        "DAYCAP_REDIS_URL": f"{server}/1",
        "DAYCAP_BROKER_URL": f"{server}/0",
        "DAYCAP_LEDGER_URL": f"sqlite:///{ledger}",
    }


def wait_for(condition: Callable[[], object], timeout_s: float = 20) -> Any:
    """Until another process has done something that it has no way to announce. Returns what `condition` said."""
    end = time.monotonic() + timeout_s
    while not (said := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return said


def make_empty(env: dict[str, str]) -> None:
    """As on the first day; but the broker keeps the queues' bindings, which the worker made when it started."""
    with redis.Redis.from_url(env["DAYCAP_BROKER_URL"]) as broker:
        # What a worker is about to publish would come after the end of all else.
        queues = (FINALIZE_QUEUE, OPEN_QUEUE, CONTROL_QUEUE)
        wait_for(lambda: not any(map(broker.llen, queues)) and not broker.hlen("unacked"))
    with redis.Redis.from_url(env["DAYCAP_REDIS_URL"]) as counter:
        counter.flushdb()
    with redis.Redis.from_url(env["DAYCAP_BROKER_URL"]) as broker:
        leftovers = [key for key in broker.scan_iter() if not key.startswith(b"_kombu.binding.")]
        if leftovers:
            broker.delete(*leftovers)
    connection = sqlite3.connect(env["DAYCAP_LEDGER_URL"].removeprefix("sqlite:///"))
    with connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(f"DELETE FROM {table.name}")
    connection.close()


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
        self._ledger = sa.create_engine(self.settings.ledger_url, poolclass=sa.NullPool)
        self.face: Callable[[Settings], Any] = Wallet.from_settings
        """Which of the two faces of a wallet its runners have."""
        self._wallets: list[Wallet] = []

    def wallet(self, **changes: Any) -> Wallet:
        """A runner's wallet in this process."""
        wallet: Wallet = self.face(dataclasses.replace(self.settings, **changes))
        self._wallets.append(wallet)
        return wallet

    def ask(self, task: str, **kwargs: Any) -> Any:
        """The worker's answer to a task of the control queue."""
        answer = self.app.send_task(task, kwargs=kwargs, queue=CONTROL_QUEUE).get(timeout=20)
        assert "error" not in answer, answer
        return answer["result"]

    def beat(self) -> None:
        """Send what beat sends; the worker has it before whatever is asked next."""
        for task, every_s in (("adjust_caps", 10), ("rollover", 600), ("expire", 10), ("reconcile", 300)):
            self.app.send_task(f"daycap.{task}", kwargs={"every_s": every_s}, queue=CONTROL_QUEUE, ignore_result=True)

    def add(self, agent: str, cap_micros: int) -> str:
        """Add an agent; returns its id."""
        self.ask("daycap.add_agents", caps={agent: cap_micros}, changed_by="test")
        return agent

    def deliver(self, *events: Any, **message: Any) -> dict[str, int]:
        """Send events as they are, as one message, and wait for what the worker made of it."""
        kwargs = message or {"events": list(events)}
        return self.app.send_task(FINALIZE_TASK, kwargs=kwargs, queue=FINALIZE_QUEUE, ignore_result=False).get(20)

    def end_worker(self, timeout_s: float = 20) -> int:
        """The status of the worker, told to end by SIGTERM."""
        process = self.worker.container.process
        process.terminate()
        return int(process.wait(timeout_s))

    def rows(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        """Rows of the ledger, read around daycap."""
        with self._ledger.connect() as connection:
            if connection.dialect.name == "postgresql":
                statement = statement.replace("?", "%s")
            return [dict(row._mapping) for row in connection.exec_driver_sql(statement, parameters)]

    def execute(self, statement: str) -> None:
        """Change the ledger behind daycap's back."""
        with self._ledger.begin() as connection:
            connection.exec_driver_sql(statement)

    def day_row(self, agent: str) -> dict[str, Any]:
        (row,) = self.rows(
            "SELECT * FROM daily_agent_spending WHERE agent_account_id = ? AND spending_date = ?", agent, self.today
        )
        return row

    def settled_once(self, agent: str) -> tuple[int, int]:
        """How many of the agent's events of today are settled and what was charged; each once, says the ledger."""
        (found,) = self.rows(
            "SELECT settled_count, spent_micros, count(reservation_id) AS n, count(DISTINCT reservation_id) AS ids,"
            " coalesce(sum(charged_micros), 0) AS charged_micros FROM daily_agent_spending"
            " LEFT JOIN settlements USING (agent_account_id, spending_date)"
            " WHERE agent_account_id = ? AND spending_date = ? GROUP BY settled_count, spent_micros",
            agent,
            self.today,
        )
        assert (found["n"], found["charged_micros"]) == (found["settled_count"], found["spent_micros"])
        assert found["ids"] == found["n"]
        return found["settled_count"], found["spent_micros"]

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 20) -> Any:
        """See `wait_for`."""
        return wait_for(condition, timeout_s)

    @property
    def today(self) -> str:
        return day_of(self.counter.now_ms())

    def snapshots(self, agent: str) -> list[DaySnapshot]:
        """The ledger's, of the agent's day today, as a worker would publish it."""
        with closing(LedgerReader(self.settings.ledger_url)) as reader:
            return reader.changes({(agent, self.today): NOT_OPEN})

    def close(self) -> None:
        for wallet in self._wallets:
            wallet.close(timeout=1)
        self.counter.close()
        self.redis.close()
