"""RabbitMQ under load, while workers and the broker go and come back."""

from __future__ import annotations

import signal

import pytest

from tests.amqp.spine import AmqpSpine
from tests.faults.ledger import LockedLedger
from tests.faults.load import ACTUAL, spend, spending
from tests.in_loop import FACES
from tests.spine import wait_for


@pytest.fixture
def own_settings() -> dict[str, str]:
    return {"DAYCAP_RESEND_SECONDS": "3"}


@pytest.mark.parametrize("face", FACES)
def test_settles_under_load(spine: AmqpSpine, face: str) -> None:
    spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet(FACES[face].from_settings)

    spend(wallet, "agent-1", 1_000)

    assert wallet.flush(40) == ()
    assert spine.settled("agent-1") == 1_000
    assert wallet.spent("agent-1")[0] == 1_000 * ACTUAL


def test_worker_killed_under_load(spine: AmqpSpine) -> None:
    worker = spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet()

    with spending(wallet, "agent-1", 0.002) as load:
        for _ in range(2):
            wait_for(lambda at=load.calls: load.calls > at + 50)  # type: ignore[misc]
            worker.kill("SIGKILL")
            worker.start()
            worker.ready()
        wait_for(lambda at=load.calls: load.calls > at + 50)  # type: ignore[misc]

    assert wallet.flush(40) == ()
    assert spine.settled("agent-1") == load.calls


def test_broker_restarted_under_load(spine: AmqpSpine) -> None:
    worker = spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet()

    with spending(wallet, "agent-1", 0.005) as load:
        wait_for(lambda: load.calls > 50)
        spine.rabbit.kill()
        wait_for(lambda: wallet.stats().send_failures)
        spine.rabbit.start()
        wait_for(lambda: "the broker recovered" in worker.logs())
        wait_for(lambda at=load.calls: load.calls > at + 50)  # type: ignore[misc]

    assert wallet.flush(60) == ()
    assert spine.settled("agent-1") == load.calls
    assert worker.status == "running"


def test_several_workers_share_a_load(spine: AmqpSpine) -> None:
    first, second = spine.start_worker(), spine.start_worker()
    spine.add("agent-1", "agent-2")
    wallets = [spine.wallet(), spine.wallet()]

    for wallet, agent in zip(wallets, ("agent-1", "agent-2"), strict=True):
        spend(wallet, agent, 500)

    assert [wallet.flush(40) for wallet in wallets] == [(), ()]
    assert (spine.settled("agent-1"), spine.settled("agent-2")) == (500, 500)
    assert "settled" in first.logs()
    assert "settled" in second.logs()


def test_sigterm_under_load(spine: AmqpSpine) -> None:
    leaving, staying = spine.start_worker(), spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet()

    with spending(wallet, "agent-1", 0.002) as load:
        wait_for(lambda: load.calls > 100)
        leaving.process.send_signal(signal.SIGTERM)
        assert leaving.process.wait(20) == 0

    assert wallet.flush(40) == ()
    assert spine.settled("agent-1") == load.calls
    assert staying.status == "running"
    assert wallet.stats().resent == 0


def test_stopped_worker_loses_what_it_took(spine: AmqpSpine) -> None:
    spine.environment |= {"DAYCAP_LEASE_TTL_SECONDS": "4", "DAYCAP_GRACE_SECONDS": "1", "DAYCAP_RESEND_SECONDS": "99"}
    stopped = spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet()

    # Given a worker that stands still with messages in its hands, for longer than its heartbeat
    stopped.kill("SIGSTOP")
    spend(wallet, "agent-1", 20)
    spine.start_worker()

    # Then the broker gives them to another one
    assert wallet.flush(40) == ()
    assert spine.settled("agent-1") == 20
    assert wallet.stats().resent == 0
    stopped.kill("SIGCONT")
    wait_for(lambda: "the broker is failing" in stopped.logs())


def test_ledger_locked_gives_back_nothing(spine: AmqpSpine) -> None:
    worker = spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet()

    with LockedLedger(str(spine.ledger)):
        spend(wallet, "agent-1", 5)
        wait_for(lambda: worker.logs().count("not settled") >= 2, 30)

    assert wallet.flush(30) == ()
    assert spine.settled("agent-1") == 5
