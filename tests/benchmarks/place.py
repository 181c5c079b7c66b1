"""What benchmarks run in: a server, a ledger with agents, a worker as the Procfile starts it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis
import sqlalchemy as sa

from daycap import Settings
from daycap.clock import day_of, wall_ms
from daycap.redis_counter import RedisCounter
from daycap.wire import FINALIZE_QUEUE, FinalizeEvent, new_lease_id
from tests.migrated import migrated_sqlite
from tests.processes import LocalWorker
from tests.spine import environment
from worker.ledger import Ledger
from worker.local_server import LocalServer
from worker.publish import CounterPublisher
from worker.schema import agent_accounts, daily_agent_spending

CAP_MICROS = 10**12


class Place:
    """Server and ledger in a directory of their own; `worker` starts one."""

    def __init__(self, directory: Path, agents: int) -> None:
        self.directory = directory
        self.server = LocalServer(directory=directory / "server").start()
        self.ledger_path = migrated_sqlite(directory / "ledger.sqlite3")
        self.environment = environment(self.server.url().rsplit("/", 1)[0], self.ledger_path)
        self.settings = Settings.from_env(self.environment)
        self.ledger = Ledger(self.settings.ledger_url)
        self.agents = [f"agent-{number:06d}" for number in range(agents)]
        self.add_accounts(self.agents)
        self.broker = redis.Redis.from_url(self.settings.broker_url)
        self.counter = redis.Redis.from_url(self.settings.redis_url)

    def add_accounts(self, agents: Sequence[str], cap_micros: int = CAP_MICROS) -> None:
        row = {"daily_cap_micros": cap_micros, "status": "active", "created_at": 1, "updated_at": 1}
        with self.ledger.writing() as connection:
            connection.execute(sa.insert(agent_accounts), [{"agent_account_id": agent, **row} for agent in agents])

    def publisher(self) -> CounterPublisher:
        """A worker's way to the counter."""
        return CounterPublisher(RedisCounter(self.settings.redis_url, 5), self.settings.terms)

    @contextmanager
    def worker(self, *options: str) -> Iterator[LocalWorker]:
        """A worker, from its start to its end."""
        worker = LocalWorker(self.directory, self.environment, *options)
        try:
            yield worker
        finally:
            worker.teardown()

    def settled(self) -> int:
        """Events in the ledger."""
        with self.ledger.reading() as connection:
            return int(connection.scalar(sa.select(sa.func.sum(daily_agent_spending.c.settled_count))) or 0)

    def waiting(self) -> int:
        """Messages in the queue and those that a worker has."""
        return int(self.broker.llen(FINALIZE_QUEUE)) + int(self.broker.hlen("unacked"))

    def close(self) -> None:
        self.broker.close()
        self.counter.close()
        self.ledger.close()
        self.server.stop()


@contextmanager
def place(agents: int = 100) -> Iterator[Place]:
    """A place of its own, gone afterwards."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    with tempfile.TemporaryDirectory(prefix="daycap-bench-", ignore_cleanup_errors=True) as directory:
        made = Place(Path(directory), agents)
        try:
            yield made
        finally:
            made.close()


def batches(agents: Sequence[str], events: int, each: int) -> list[list[FinalizeEvent]]:
    """Events of new leases, one lease an agent, in messages of `each`."""
    day = day_of(wall_ms())
    leases = {agent: new_lease_id(agent, day, os.urandom(16)) for agent in agents}
    made = []
    for number in range(events):
        agent = agents[number % len(agents)]
        lease, nth = leases[agent], number // len(agents) + 1
        made.append(FinalizeEvent(lease, nth, nth, agent, day, 100, 90, wall_ms()))
    return [made[start : start + each] for start in range(0, events, each)]


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
