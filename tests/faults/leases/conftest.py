"""Leases that live for a second or two, so that what takes a minute elsewhere takes a moment here.

One worker and one broker for all tests. Each test has a counter's server of its own, behind a proxy: to worker and
runners its address stays the same whatever becomes of it.
"""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import pytest
from celery import Celery
from pytest_celery import CeleryTestSetup, RedisTestBackend

from daycap.counters.redis import counter_key
from daycap.protocol.counter import DayReading
from daycap.protocol.wire import CONTROL_QUEUE
from demo.local_server import free_port
from tests.faults.proxy import Proxy
from tests.in_loop import FACES
from tests.processes import LocalRedis, LocalWorker, SharedBroker, SharedWorker, run_daycap
from tests.runner import Runner
from tests.spine import Spine, environment, make_empty

TTL_S, GRACE_S, TIMEOUT_S = 1.5, 0.5, 0.1


class CounterLease(NamedTuple):
    """A lease as the counter has it."""

    granted: int
    returned: int
    drawn: int
    events: int
    last_event: int
    deadline_ms: int


class LeaseSpine(Spine):
    """The spine, and what tests of leases ask of it."""

    def __init__(self, setup: CeleryTestSetup, environment: dict[str, str], directory: Path) -> None:
        super().__init__(setup, environment)
        self._directory = directory
        self._runners: list[Runner] = []
        self._given_up_before = self._metric("daycap_given_up_micros_total")

    def runner(self, **settings: object) -> Runner:
        """A runner's process. It leases exactly what it needs, unless `slice_seconds` says otherwise.

        Every second one is of an event loop; whether the first is one depends on the test.
        """
        changes = {f"DAYCAP_{name.upper()}": str(value) for name, value in ({"slice_seconds": 0} | settings).items()}
        log = self._directory / f"runner-{len(self._runners)}.log"
        face = sorted(FACES)[(crc32(self._directory.name.encode()) + len(self._runners)) % len(FACES)]
        self._runners.append(Runner({**self.environment, **changes}, log, face))
        return self._runners[-1]

    def expire(self) -> int:
        """As beat sends it; how much was given up."""
        return self._housekeep("daycap.expire").get("given_up_micros", 0)

    def reconcile(self) -> int:
        """As beat sends it; how many days differed."""
        return self._housekeep("daycap.reconcile")["drift"]

    def _housekeep(self, task: str) -> dict[str, int]:
        return self.app.send_task(task, queue=CONTROL_QUEUE, ignore_result=False).get(timeout=20)

    @property
    def given_up(self) -> int:
        """What the worker has given up in this test, over every life of the counter."""
        return self._metric("daycap_given_up_micros_total") - self._given_up_before

    @property
    def drift(self) -> int:
        return self._metric("daycap_drift_total")

    def _metric(self, name: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.metrics_port}/metrics", timeout=20) as page:
            (line,) = [line for line in page.read().decode().splitlines() if line.startswith(f"{name} ")]
        return int(float(line.split()[1]))

    def status(self, agent: str) -> dict[str, Any]:
        """What `daycap status` shows."""
        (row,) = json.loads(run_daycap("status", agent, "--json", environment=self.environment))
        return row

    def key(self, agent: str) -> str:
        return counter_key(agent, self.today)

    def reading(self, agent: str) -> DayReading:
        (reading,) = self.counter.read([(agent, self.today)])
        assert reading is not None, "not open"
        return reading

    def is_open(self, agent: str) -> bool:
        return self.counter.read([(agent, self.today)]) != [None]

    def leased(self, agent: str) -> int:
        return self.reading(agent).leased_micros

    def lease(self, agent: str, hold: str) -> CounterLease:
        """The lease of a hold."""
        fields = self.redis.hget(self.key(agent), f"lease:{hold.rpartition('-')[0]}")
        return CounterLease(*map(int, (fields or "0 0 0 0 0 0").split()))

    def settled(self, agent: str, spent: int) -> None:
        """Wait until that much is spent, by ledger and counter."""
        self.wait_for(lambda: self.day_row(agent)["spent_micros"] == spent == self.reading(agent).spent_micros)

    def check_all_ended(self, *agents: str) -> None:
        """P3, P5: with every runner ended, nothing differs and nothing stays leased."""
        for runner in self._runners:
            if runner.process.poll() is None:
                assert runner.close() == []
        self.wait_for(lambda: self.expire() == 0 and not any(self.leased(agent) for agent in agents))
        self.reconcile()
        assert self.ask("daycap.audit")["differences"] == []
        assert self.reconcile() == 0

    def close(self) -> None:
        for runner in self._runners:
            runner.kill()
        super().close()


@pytest.fixture(scope="session")
def lease_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    server = LocalRedis(tmp_path_factory.mktemp("lease-broker"))
    server.ready()
    yield server
    server.teardown()


@pytest.fixture(scope="session")
def lease_proxy() -> Iterator[Proxy]:
    proxy = Proxy(free_port())
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def lease_environment(
    lease_broker: LocalRedis, lease_proxy: Proxy, empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    ledger = shutil.copy(empty_ledger, tmp_path_factory.mktemp("lease-ledger") / "ledger.sqlite3")
    return {
        **environment(lease_broker.url.rpartition("/")[0], ledger),
        "DAYCAP_REDIS_URL": f"redis://127.0.0.1:{lease_proxy.port}/0",
        "DAYCAP_LEASE_TTL_SECONDS": str(TTL_S),
        "DAYCAP_GRACE_SECONDS": str(GRACE_S),
        "DAYCAP_REDIS_TIMEOUT_SECONDS": str(TIMEOUT_S),
        "DAYCAP_METRICS_PORT": str(free_port()),
    }


@pytest.fixture(scope="session")
def lease_worker(lease_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorker]:
    worker = LocalWorker(tmp_path_factory.mktemp("lease-worker"), lease_environment)
    worker.ready()
    yield worker
    worker.teardown()


@pytest.fixture
def celery_broker(lease_broker: LocalRedis) -> SharedBroker:
    return SharedBroker(lease_broker)


@pytest.fixture
def celery_backend(lease_broker: LocalRedis) -> RedisTestBackend:
    return RedisTestBackend(lease_broker)


@pytest.fixture
def proxy(lease_proxy: Proxy, counter_server: LocalRedis) -> Proxy:
    """Before the counter's server, which is new."""
    lease_proxy.heal()
    lease_proxy.redirect(counter_server.port)
    return lease_proxy


@pytest.fixture
def celery_worker(
    lease_worker: LocalWorker, lease_environment: dict[str, str], proxy: Proxy, celery_setup_app: Celery
) -> SharedWorker:
    make_empty(lease_environment)
    return SharedWorker(lease_worker, app=celery_setup_app)


@pytest.fixture
def spine(celery_setup: CeleryTestSetup, lease_environment: dict[str, str], tmp_path: Path) -> Iterator[LeaseSpine]:
    spine = LeaseSpine(celery_setup, lease_environment, tmp_path)
    yield spine
    spine.close()
