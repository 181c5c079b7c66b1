"""A host that other programs use too: their settings for Celery and Flower move nothing of daycap's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from daycap.delivery.celery import CeleryTransport
from daycap.protocol.wire import FinalizeEvent
from demo.local_server import LocalServer, free_port
from tests.in_loop import FACES
from tests.integration.test_command_line import run
from tests.processes import ROOT, LocalBeat, LocalProcess, LocalWorker
from tests.runner import Runner
from tests.spine import environment, wait_for


class Elsewhere:
    """The broker of another program."""

    def __init__(self) -> None:
        self.server = LocalServer().start()
        self._client = redis.Redis(port=self.server.port)
        self._before = self._connections()

    def _connections(self) -> int:
        return int(self._client.info()["total_connections_received"])

    @property
    def untouched(self) -> bool:
        """Whether nobody else ever connected."""
        return self._connections() == self._before

    def close(self) -> None:
        self._client.close()
        self.server.stop()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    elsewhere = Elsewhere()
    yield elsewhere
    elsewhere.close()


@pytest.fixture(scope="module")
def of_others(elsewhere: Elsewhere) -> dict[str, str]:
    """What a host of Django and Airflow projects, in Kubernetes, may have in its environment."""
    urls = dict.fromkeys(
        (
            *("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"),
            *("CELERY_BROKER", "BROKER_URL", "REDIS_URL", "TEST_BROKER"),
        ),
        elsewhere.server.url(),
    )
    return urls | {
        "CELERY_CONFIG_MODULE": "no_such_settings",
        "CELERY_CONFIG": "no_such_settings",
        "CELERY_LOADER": "no_such_loader:Loader",
        "CELERY_APP": "another.app",
        "CELERY_WORKER_QUEUES": "another",
        "CELERY_WORKER_POOL": "prefork",
        "CELERY_BEAT_SCHEDULER": "another:Scheduler",
        "FLOWER_PORT": "tcp://10.0.0.7:5555",
        "FLOWER_ADDRESS": "10.0.0.7",
        "FLOWER_BROKER_API": "http://10.0.0.7:15672/api/",
        "FLOWER_CONF": "/another/flowerconfig.py",
        "DAYCAP_METRICS_PORT": "tcp://10.0.0.7:9100",
        "DAYCAP_METRICS_SERVICE_HOST": "10.0.0.7",
        "DAYCAP_PORT_6379_TCP_ADDR": "10.0.0.7",
    }


@pytest.fixture(scope="module")
def given(
    of_others: dict[str, str], empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Theirs and ours."""
    server = LocalServer().start()
    ledger = shutil.copy(empty_ledger, tmp_path_factory.mktemp("ledger") / "ledger.sqlite3")
    yield of_others | environment(server.url().rpartition("/")[0], ledger)
    server.stop()


@pytest.fixture(scope="module")
def worker(given: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalWorker]:
    worker = LocalWorker(tmp_path_factory.mktemp("worker"), given)
    worker.ready()
    yield worker
    worker.teardown()


@pytest.mark.parametrize("face", FACES)
def test_money_is_spent_at_our_own_broker(
    face: str, worker: LocalWorker, given: dict[str, str], elsewhere: Elsewhere, tmp_path: Path
) -> None:
    run("agent", "add", f"agent-{face}", "--cap", "5", environment=given)
    runner = Runner(given, tmp_path / "runner.log", face)
    runner.finalize(runner.reserve(f"agent-{face}", 50_000), 31_200)

    assert runner.close() == []
    assert "$0.0312" in run("status", environment=given)
    assert "Traceback" not in worker.logs()
    assert elsewhere.untouched


def test_a_runners_transport_keeps_to_its_broker(
    of_others: dict[str, str], redis_url: str, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in of_others.items():
        monkeypatch.setenv(name, value)
    transport = CeleryTransport(redis_url)
    transport.send([FinalizeEvent("a" * 26, 1, 1, "agent-7", "2026-11-24", 50_000, 31_200, 1)])
    assert transport.backlog() == 1
    transport.close()
    assert elsewhere.untouched


def test_beat_sends_to_our_own_broker(
    worker: LocalWorker, given: dict[str, str], elsewhere: Elsewhere, tmp_path: Path
) -> None:
    said = len(worker.logs())
    beat = LocalBeat(tmp_path, given | {"DAYCAP_LEASE_TTL_SECONDS": "3", "DAYCAP_GRACE_SECONDS": "0"})
    beat.ready()
    wait_for(lambda: "daycap.expire" in worker.logs()[said:])
    beat.teardown()
    assert elsewhere.untouched


class LocalFlower(LocalProcess):
    """Flower as docs/how-to/deploy.md starts it."""

    ready_prompt = "Visit me at"

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        super().__init__([sys.executable, "-m", "celery", "-A", "worker", "flower"], directory, environment)


def test_flower_shows_our_own_worker(
    worker: LocalWorker, given: dict[str, str], elsewhere: Elsewhere, tmp_path: Path
) -> None:
    port = free_port()
    flower = LocalFlower(tmp_path, given | {"DAYCAP_FLOWER_PORT": str(port), "FLOWER_UNAUTHENTICATED_API": "true"})
    try:
        flower.ready()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/workers?refresh=1", timeout=20) as answer:
            assert "daycap.finalize" in answer.read().decode()
    finally:
        flower.teardown()
    assert elsewhere.untouched


@pytest.mark.parametrize("option", ["--broker=redis://127.0.0.1:1/0", "--result-backend=rpc://", "--config=another"])
def test_another_broker_by_an_option_is_refused(option: str, given: dict[str, str]) -> None:
    done = ended(["-m", "celery", "-A", "worker", option, "worker"], given)
    assert done.returncode == 1
    assert f"daycap: celery's {option.partition('=')[0]} is not supported" in done.stderr


COMMANDS = {
    "worker": ["-m", "celery", "-A", "worker", "worker"],
    "beat": ["-m", "celery", "-A", "worker", "beat"],
    "flower": ["-m", "celery", "-A", "worker", "flower"],
    "migrations": ["-m", "alembic", "upgrade", "head"],
    "status": ["-m", "daycap", "status"],
    "doctor": ["-m", "daycap", "doctor"],
    "runner": ["-c", "import daycap; daycap.Wallet.from_env()"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_process_says_the_same_sentence(command: str, given: dict[str, str]) -> None:
    done = ended(COMMANDS[command], given | {"DAYCAP_BROKER_URL": "redis://a/0;redis://b/0"})
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode in (1, 255)
    assert "DAYCAP_BROKER_URL: name one broker: several in one URL are not supported" in said
    assert ("Traceback" in said) == (command == "runner"), "a program of the user's own sees InvalidSetting"


def ended(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
