"""A wallet with a SQLite file of its own moves on to Redis and a worker, on the same file."""

from __future__ import annotations

from pathlib import Path

import pytest

from daycap import BudgetUnavailable, CapExceeded, Settings, Wallet
from daycap.clock import day_of, wall_ms
from daycap.delivery.celery import producer_app
from daycap.delivery.outbox import Outbox
from daycap.ledger.lock import LedgerInUse
from daycap.protocol.wire import CONTROL_QUEUE, FinalizeEvent
from tests.faults.test_starting import ended
from tests.processes import LocalWorker
from tests.spine import wait_for

QUICK = {"DAYCAP_LEASE_TTL_SECONDS": "3", "DAYCAP_GRACE_SECONDS": "0"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "worker"
    place.mkdir()
    return place


def test_moving_on_to_a_worker_keeps_the_file(own_environment: dict[str, str], directory: Path) -> None:
    file = directory / "spend.db"
    alone = Settings(ledger_url=f"sqlite:///{file}")
    environment = {**own_environment, **QUICK, "DAYCAP_LEDGER_URL": alone.ledger_url}

    # Given a wallet alone: as long as it has the file, no worker starts on it
    with Wallet.from_settings(alone) as wallet:
        wallet.add_agent("agent-7", 100)
        wallet.reserve("agent-7", 50).finalize(30)
        assert wallet.flush() == ()
        said = ended(LocalWorker(directory, environment))
        assert "daycap worker: the ledger" in said
        assert "in use by a wallet" in said
        assert "Traceback" not in said

    # And an event that a killed wallet left in the outbox
    killed = Outbox(Path(f"{file}-outbox"), 2**20)
    killed.append(FinalizeEvent("a" * 26, 1, 1, "agent-7", day_of(wall_ms()), 60, 60, 1))
    killed.forget()

    worker = LocalWorker(directory, environment)
    try:
        worker.ready()
        # Then the worker has settled it before anything is lent, and keeps other wallets out
        with Wallet.from_settings(Settings.from_env(environment)) as wallet:
            assert wallet.spent("agent-7").micros == 90
            # (To this Redis the day is a lost one, as after any loss: it lends when the fence has fallen.)
            wait_for(lambda: lends(wallet, environment))
            with pytest.raises(CapExceeded):
                wallet.reserve("agent-7", 11)
            wallet.reserve("agent-7", 10).finalize(10)
            assert wallet.flush(20) == ()
            assert wallet.spent("agent-7").micros == 100
        with pytest.raises(LedgerInUse, match="in use by a worker"):
            Wallet.from_settings(alone)
    finally:
        worker.teardown()

    with Wallet.from_settings(alone) as wallet:
        assert wallet.spent("agent-7").micros == 100


def lends(wallet: Wallet, environment: dict[str, str]) -> bool:
    """Whether the counter lends; the worker is sent what beat would send."""
    app = producer_app("test", environment["DAYCAP_BROKER_URL"], (CONTROL_QUEUE,))
    app.send_task("daycap.expire", kwargs={"every_s": 10}, queue=CONTROL_QUEUE)
    app.close()
    try:
        wallet.reserve("agent-7", 1).release()
    except BudgetUnavailable:
        return False
    return True
