"""A worker, a counter and a ledger on a RabbitMQ, and the wallets that a test makes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from celery import Celery

from daycap import Settings, Wallet
from daycap.delivery.queues import own_queue
from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE, OPEN_QUEUE
from demo.local_server import LocalServer
from tests.processes import LocalWorker, run_daycap
from tests.rabbitmq import RabbitMq

QUEUES = (FINALIZE_QUEUE, OPEN_QUEUE, CONTROL_QUEUE)


class AmqpSpine:
    """What a test asks of the running whole."""

    def __init__(self, rabbit: RabbitMq, directory: Path, environment: dict[str, str], counter: LocalServer) -> None:
        self.rabbit = rabbit
        self.environment = environment
        self.counter = counter
        self.workers: list[LocalWorker] = []
        self._directory = directory
        self._wallets: list[Wallet] = []

    @property
    def worker(self) -> LocalWorker:
        return self.workers[0]

    @property
    def ledger(self) -> Path:
        return Path(self.environment["DAYCAP_LEDGER_URL"].removeprefix("sqlite:///"))

    def make_worker(self) -> LocalWorker:
        """One that need not be ready."""
        worker = LocalWorker(self._directory, self.environment, f"--hostname=amqp{len(self.workers)}@%h")
        self.workers.append(worker)
        return worker

    def start_worker(self) -> LocalWorker:
        worker = self.make_worker()
        worker.ready()
        return worker

    def wallet(self, face: Callable[[Settings], Any] = Wallet.from_settings, **changes: str) -> Any:
        wallet = face(Settings.from_env({**self.environment, **changes}))
        self._wallets.append(wallet)
        return wallet

    def daycap(self, *words: str) -> Any:
        """What the command says, in JSON."""
        return json.loads(run_daycap(*words, "--json", environment=self.environment))

    def ask(self, task: str, **kwargs: Any) -> Any:
        """The worker's answer to a task of the control queue."""
        app = Celery(broker=self.rabbit.url, backend="rpc://", set_as_current=False)
        try:
            answer = app.send_task(task, kwargs=kwargs, queue=own_queue(CONTROL_QUEUE)).get(timeout=20)
        finally:
            app.backend.result_consumer.stop()
            app.close()
        assert "error" not in answer, answer
        return answer["result"]

    def add(self, *agents: str) -> None:
        self.ask("daycap.add_agents", caps=dict.fromkeys(agents, 5_000_000), changed_by="test")

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.ledger)) as connection:
            return connection.execute(statement, parameters).fetchall()

    def settled(self, agent: str) -> int:
        """How many of the agent's events are settled; each once, by the table's key."""
        ((count,),) = self.rows("SELECT count(*) FROM settlements WHERE agent_account_id = ?", agent)
        return int(count)

    def said(self, words: str) -> int:
        """How often the workers' logs have these words."""
        return sum(worker.logs().count(words) for worker in self.workers)

    def all_acknowledged(self, timeout_s: float = 20) -> None:
        """Nothing is ready, and nothing is with a worker."""

        end_s = time.monotonic() + timeout_s
        while left := {name: some for name, some in self.rabbit.messages().items() if name in QUEUES and any(some)}:
            assert time.monotonic() < end_s, f"left in the queues, ready and unacknowledged: {left}"
            time.sleep(0.05)

    def close(self) -> None:
        for wallet in self._wallets:
            wallet.close(timeout=1)
        for worker in self.workers:
            worker.teardown()
        self.counter.stop()
