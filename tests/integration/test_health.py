"""Probes of a real worker and a real beat while ledger, broker or the process itself are in trouble."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from celery import Celery

from daycap.protocol.wire import FINALIZE_QUEUE, FINALIZE_TASK
from demo.local_server import free_port
from tests.events import event
from tests.faults.ledger import LockedLedger
from tests.probed import ALIVE, Probed
from tests.processes import LocalBeat, LocalRedis, LocalWorker
from tests.spine import environment, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    server = LocalRedis(tmp_path_factory.mktemp("redis"))
    server.ready()
    yield server
    server.teardown()


@pytest.fixture(scope="module")
def env(server: LocalRedis, empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    ledger = shutil.copy(empty_ledger, tmp_path_factory.mktemp("ledger") / "ledger.sqlite3")
    ports = {"DAYCAP_METRICS_PORT": str(free_port()), "DAYCAP_BEAT_PORT": str(free_port())}
    short = {"DAYCAP_LEASE_TTL_SECONDS": "3", "DAYCAP_GRACE_SECONDS": "1"}  # So beat sends a task each second.
    return environment(server.url.rpartition("/")[0], ledger) | ports | short


@pytest.fixture(scope="module")
def process(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorker]:
    worker = LocalWorker(tmp_path_factory.mktemp("worker"), env)
    worker.ready()
    yield worker
    worker.teardown()


@pytest.fixture
def worker(process: LocalWorker, env: dict[str, str]) -> Probed:
    probed = Probed(int(env["DAYCAP_METRICS_PORT"]))
    probed.becomes_ready()
    return probed


@pytest.fixture(scope="module")
def beat(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probed]:
    beat = LocalBeat(tmp_path_factory.mktemp("beat"), env)
    beat.ready()
    try:
        probed = Probed(int(env["DAYCAP_BEAT_PORT"]))
        probed.becomes_ready()
        yield probed
    finally:
        beat.teardown()


def test_metrics_are_at_the_same_port(worker: Probed) -> None:
    assert "daycap_dead_letters 0.0" in worker.get("/metrics")[1]


def test_an_idle_worker_makes_progress(worker: Probed) -> None:
    first_s = worker.silent_s()
    wait_for(lambda: worker.silent_s() < first_s, 4)


def test_beat_serves_no_metrics(beat: Probed) -> None:
    assert beat.get("/metrics")[0] == 404


def test_a_locked_ledger_is_named(worker: Probed, env: dict[str, str]) -> None:
    with LockedLedger(env["DAYCAP_LEDGER_URL"].removeprefix("sqlite:///")):
        send(env)
        wait_for(lambda: worker.silent_s() > 3)  # The loop itself waits.
        worker.becomes_unready("settling: the ledger refused events: OperationalError")
    worker.becomes_ready()


def test_a_schema_that_does_not_fit_is_named(worker: Probed, env: dict[str, str]) -> None:
    with closing(sqlite3.connect(env["DAYCAP_LEDGER_URL"].removeprefix("sqlite:///"), isolation_level=None)) as ledger:
        ((revision,),) = ledger.execute("SELECT version_num FROM alembic_version")
        ledger.execute("UPDATE alembic_version SET version_num = '9999_since_9999'")
        worker.becomes_unready("ledger: ")
        ledger.execute("UPDATE alembic_version SET version_num = ?", [revision])
    worker.becomes_ready()


def test_a_lost_broker_is_named(worker: Probed, beat: Probed, server: LocalRedis) -> None:
    server.kill()
    worker.becomes_unready("broker: ConnectionError")
    beat.becomes_unready("broker: ")
    worker.waits_for(4)
    server.start()
    server.ready()
    worker.becomes_ready()
    beat.becomes_ready()


def test_a_broker_that_refuses_is_named(worker: Probed, server: LocalRedis) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-brpop")
        worker.becomes_unready("broker: NoPermissionError")
        worker.waits_for(6)
        client.execute_command("ACL", "SETUSER", "default", "+brpop")
    worker.becomes_ready()


def test_a_stopped_worker_does_not_answer(worker: Probed, process: LocalWorker) -> None:
    process.kill("SIGSTOP")
    with pytest.raises(TimeoutError):
        worker.get("/healthz", timeout_s=0.5)
    process.kill("SIGCONT")
    worker.becomes_ready()
    assert worker.get("/healthz") == ALIVE


def test_a_port_in_use_ends_beat(beat: Probed, env: dict[str, str], tmp_path: Path) -> None:
    second = LocalBeat(tmp_path, env)
    try:
        assert second.process.wait(20) == 1
    finally:
        second.teardown()
    assert f"DAYCAP_BEAT_PORT={env['DAYCAP_BEAT_PORT']}: " in second.logs()


def send(env: dict[str, str]) -> None:
    """Send an event as a runner in another language would."""
    with Celery(broker=env["DAYCAP_BROKER_URL"]) as app:
        kwargs = {"events": [event("agent-7", "2026-11-28")]}
        app.send_task(FINALIZE_TASK, kwargs=kwargs, queue=FINALIZE_QUEUE, ignore_result=True)
