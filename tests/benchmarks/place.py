"""What benchmarks run in: a server, a ledger with agents, a worker as the Procfile starts it."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import redis
import sqlalchemy as sa

from daycap import Settings
from daycap.clock import day_of, wall_ms
from daycap.counters.redis import RedisCounter
from daycap.ledger.engine import Ledger
from daycap.ledger.opening import rollover
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import all_of
from daycap.ledger.tables import agent_accounts, daily_agent_spending
from daycap.protocol.wire import FinalizeEvent, new_lease_id
from demo.local_server import LocalServer
from tests.migrated import migrated_sqlite
from tests.processes import LocalWorker
from tests.spine import environment

CAP_MICROS = 10**12
_AGENTS_A_MESSAGE = 100


class Place:
    """Server and ledger in a directory of their own, with agents whose caps nobody reaches; `worker` starts one."""

    def __init__(self, directory: Path, agents: int, cap_micros: int, settings: Mapping[str, str]) -> None:
        self._directory = directory
        self._server = LocalServer(directory=directory / "server").start()
        self.ledger_path = migrated_sqlite(directory / "ledger.sqlite3")
        self.environment = {**environment(self._server.url().rsplit("/", 1)[0], self.ledger_path), **settings}
        self.settings = Settings.from_env(self.environment)
        self.ledger = Ledger(self.settings.ledger_url)
        self.counter = RedisCounter(self.settings.redis_url, 5)
        self.publisher = CounterPublisher(self.counter, self.settings.terms)
        self.broker = redis.Redis.from_url(self.settings.broker_url)
        self.agents = [f"agent-{number:07d}" for number in range(agents)]
        row = {"daily_cap_micros": cap_micros, "status": "active", "created_at": 1, "updated_at": 1}
        with self.ledger.writing() as connection:
            connection.execute(sa.insert(agent_accounts), [{"agent_account_id": each, **row} for each in self.agents])

    def open_days(self) -> None:
        """Open today for every agent, as the rollover does."""
        all_of(lambda where: rollover(self.ledger, self.publisher, 0, where))

    @contextmanager
    def worker(self, *options: str) -> Iterator[LocalWorker]:
        """A worker, from its start to its end."""
        worker = LocalWorker(self._directory, self.environment, *options)
        try:
            yield worker
        finally:
            worker.teardown()

    def settled(self) -> int:
        """Events in the ledger."""
        with self.ledger.reading() as connection:
            return int(connection.scalar(sa.select(sa.func.sum(daily_agent_spending.c.settled_count))) or 0)

    def forget_days(self) -> None:
        """As before today was opened."""
        with self.ledger.writing() as connection:
            connection.execute(sa.delete(daily_agent_spending))
        with redis.Redis.from_url(self.settings.redis_url) as counter:
            counter.flushdb()

    def ledger_bytes(self) -> int:
        """The size of the ledger's file, with all that was committed in it."""
        connection = sqlite3.connect(self.ledger_path)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return self.ledger_path.stat().st_size

    @property
    def today(self) -> str:
        return day_of(self.counter.now_ms())

    def close(self) -> None:
        self.broker.close()
        self.publisher.close()
        self.ledger.close()
        self._server.stop()


@contextmanager
def place(
    agents: int = 100, cap_micros: int = CAP_MICROS, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Place]:
    """A place of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="daycap-bench-", ignore_cleanup_errors=True) as directory:
        made = Place(Path(directory), agents, cap_micros, settings)
        try:
            yield made
        finally:
            made.close()


def batches(agents: Sequence[str], events: int, each: int) -> list[list[FinalizeEvent]]:
    """Events of new leases, one lease an agent, in messages of `each`; messages have 100 agents, each in its turn."""
    now_ms = wall_ms()
    day = day_of(now_ms)
    leases = {agent: new_lease_id(agent, day, os.urandom(16)) for agent in agents}
    numbers = dict.fromkeys(agents, 0)
    made = []
    for start in range(0, events, each):
        first = start // each * _AGENTS_A_MESSAGE
        some = [agents[nth % len(agents)] for nth in range(first, first + _AGENTS_A_MESSAGE)]
        message = []
        for nth in range(start, start + each):
            agent = some[nth % _AGENTS_A_MESSAGE]
            numbers[agent] += 1
            number = numbers[agent]
            message.append(FinalizeEvent(leases[agent], number, number, agent, day, 100, 90, now_ms))
        made.append(message)
    return made


def rate(progress: Callable[[], int], total: int, timeout_s: float = 120) -> float:
    """How many a second from the first that was seen to the last. `progress` counts up to `total`."""
    end = time.monotonic() + timeout_s
    first_at = first = None
    while True:
        done, now = progress(), time.monotonic()
        if first is None and done > 0:
            first_at, first = now, done
        if done >= total:
            if first_at is None or first is None or now == first_at:
                raise RuntimeError("it was done before it could be seen: take more")
            return (done - first) / (now - first_at)
        if now > end:
            raise RuntimeError(f"only {done} of {total} were done in {timeout_s:.0f} s")
        time.sleep(0.02)
