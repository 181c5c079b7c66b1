"""A rolling upgrade: worker and runner of the former release go on beside those of this one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from pytest_celery import CeleryTestWorker

from tests.faults.conftest import made
from tests.faults.load import ACTUAL, spend, spending
from tests.postgresql import LocalPostgreSQL
from tests.processes import ROOT, LocalWorker
from tests.spine import Spine

M = 1_000_000
FORMER = "97b79e4a74dbe6670bce77267535655c74ee1ec3"
"""The last commit of the release before this one. Whoever releases sets it to the release that comes out."""

_SPEND = """
import daycap
assert daycap.__file__.startswith({source!r}), daycap.__file__
with daycap.Wallet.from_env() as wallet:
    for _ in range(20):
        wallet.reserve("agent-8", 1_000).finalize(700)
    assert wallet.flush(timeout=30) == ()
"""


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the former release."""
    found = subprocess.run(["git", "archive", FORMER], cwd=ROOT, capture_output=True, check=False)
    if found.returncode:
        # A test that skips itself where the history is cut off would never be missed.
        (pytest.fail if (ROOT / ".git").exists() else pytest.skip)(
            f"needs the history with {FORMER}: git fetch --unshallow"
        )
    directory = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.fixture(params=["sqlite", "postgresql"])
def own_settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """An empty ledger."""
    url = f"sqlite:///{tmp_path / 'upgraded.sqlite3'}"
    if request.param == "postgresql":
        server: LocalPostgreSQL = request.getfixturevalue("postgresql")
        url = server.new_database()
    return {"DAYCAP_LEDGER_URL": url}


@pytest.fixture
def former_worker(own_environment: dict[str, str], former: Path, tmp_path: Path) -> Iterator[LocalWorker]:
    """A worker of the former release, on a ledger that was migrated by it and then, under it, by this one."""

    class FormerWorker(LocalWorker):
        source = former

    environment = {**own_environment, "PYTHONPATH": str(former)}
    migrate = [sys.executable, "-m", "alembic", "upgrade", "head"]
    subprocess.run(migrate, cwd=former, env={**os.environ, **environment}, check=True)
    worker = FormerWorker(made(tmp_path / "former"), environment, "--hostname=former@%h")
    worker.ready()
    subprocess.run(migrate, cwd=ROOT, env={**os.environ, **own_environment}, check=True)
    yield worker
    worker.teardown()


@pytest.fixture
def celery_worker(
    former_worker: LocalWorker, own_environment: dict[str, str], tmp_path: Path, celery_setup_app: Celery
) -> Iterator[CeleryTestWorker]:
    """A worker of this release, started after the other."""
    worker = CeleryTestWorker(LocalWorker(tmp_path, own_environment), app=celery_setup_app)
    worker.ready()
    yield worker
    worker.teardown()


def test_the_former_worker_settles_beside_this_one(spine: Spine, former: Path, former_worker: LocalWorker) -> None:
    agent, other = spine.add("agent-7", 50 * M), spine.add("agent-8", 50 * M)
    wallet, worker = spine.wallet(), spine.worker.container
    with spending(wallet, agent, pause_s=0.01) as load:
        environment = {**os.environ, **spine.environment, "PYTHONPATH": str(former)}
        command = [sys.executable, "-c", _SPEND.format(source=str(former))]
        subprocess.run(command, cwd=former, env=environment, check=True, timeout=60)
        spine.wait_for(lambda: all("settled 1" in each.logs() for each in (worker, former_worker)))

    assert wallet.flush(timeout=30) == ()
    assert spine.settled_once(agent) == (load.calls, load.calls * ACTUAL)
    assert spine.settled_once(other) == (20, 20 * ACTUAL)
    assert spine.ask("daycap.audit")["differences"] == []
    assert "not settled" not in worker.logs() + former_worker.logs()

    # And either settles alone what is sent while the other is away.
    for away, here in ((worker, former_worker), (former_worker, worker)):
        away.kill()
        spend(wallet, agent, 3)
        assert wallet.flush(timeout=40) == ()
        assert here.status == "running"
        away.start()
        away.ready()


def test_the_former_worker_keeps_what_it_does_not_know(spine: Spine, former_worker: LocalWorker) -> None:
    """Labels and budgets make version 2 of an event: a dead letter, until a worker of this release replays it."""
    agent, worker = spine.add("agent-7", 50 * M), spine.worker.container
    worker.kill()
    wallet = spine.wallet()
    wallet.reserve(agent, 1_000, labels={"tool": "search"}).finalize(700)
    (letter,) = spine.wait_for(lambda: spine.rows("SELECT * FROM dead_letters"))
    assert (letter["kind"], letter["reason"]) == ("malformed", "unknown version: 2")

    former_worker.kill()
    worker.start()
    worker.ready()
    spine.ask("daycap.replay_dead_letters", prefixes=[letter["dead_letter_id"]], replayed_by="test")
    assert wallet.flush(timeout=30) == ()
    assert spine.settled_once(agent) == (1, 700)
    assert spine.rows("SELECT * FROM dead_letters") == []
