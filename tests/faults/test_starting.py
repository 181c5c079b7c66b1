"""A worker that starts before what it needs is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import made
from tests.faults.load import ACTUAL, spend
from tests.migrated import migrated_sqlite
from tests.processes import LocalWorker
from tests.spine import Spine

M = 1_000_000


def ended(worker: LocalWorker) -> str:
    """What it said; it must have ended by itself, and not well."""
    assert worker.process.wait(20) == 1
    return worker.logs()


def test_a_worker_waits_for_its_broker(spine: Spine) -> None:
    agent, wallet, worker = spine.add("agent-7", 5 * M), spine.wallet(), spine.worker.container
    worker.kill()
    spine.broker.container.kill()
    spend(wallet, agent, 5)
    said = len(worker.logs())

    worker.start()
    spine.wait_for(lambda: "Cannot connect" in worker.logs()[said:])
    spine.broker.container.restart()

    assert wallet.flush(timeout=30) == ()
    assert spine.settled_once(agent) == (5, 5 * ACTUAL)


def test_worker_refuses_an_unmigrated_ledger(spine: Spine, tmp_path: Path) -> None:
    environment = {**spine.environment, "DAYCAP_LEDGER_URL": f"sqlite:///{tmp_path / 'new.sqlite3'}"}

    said = ended(LocalWorker(made(tmp_path / "worker"), environment))

    assert "daycap worker: the ledger is empty" in said
    assert "alembic upgrade head" in said
    assert "Traceback" not in said


def test_under_honcho_a_worker_waits_for_release(spine: Spine, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.sqlite3'}"
    worker = LocalWorker(
        made(tmp_path / "worker"),
        {**spine.environment, "DAYCAP_LEDGER_URL": url, "HONCHO_PROCESS_NAME": "worker.1"},
    )
    spine.wait_for(lambda: "waiting up to 60 s for the Procfile's release: the ledger is empty" in worker.logs())

    migrated_sqlite(tmp_path / "new.sqlite3")

    worker.ready()
    worker.teardown()


def test_a_worker_stops_before_a_ledger_that_is_not_there_and_says_so(spine: Spine, tmp_path: Path) -> None:
    for url, why in (
        (f"sqlite:///{tmp_path / 'nowhere' / 'ledger.sqlite3'}", "unable to open database file"),
        ("postgresql://127.0.0.1:1/daycap", "Connection refused"),
    ):
        environment = {**spine.environment, "DAYCAP_LEDGER_URL": url}

        said = ended(LocalWorker(tmp_path, environment))

        assert "daycap worker: the ledger" in said
        assert why in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    "options", ["--pool=prefork", "-P prefork", "--pool threads", "--pool=processes", "--autoscale=4,1"]
)
def test_other_pools_are_refused(own_environment: dict[str, str], tmp_path: Path, options: str) -> None:
    said = ended(LocalWorker(made(tmp_path / "worker"), own_environment, *options.split()))

    assert "only --pool=solo is possible" in said
    assert "Traceback" not in said
