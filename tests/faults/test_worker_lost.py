"""The worker dies, anywhere: what it had is settled by the next one, once."""

from __future__ import annotations

import json
import random
import time

import pytest
import redis

from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE
from tests.faults.broker import HELD_BACK_S, let_time_pass
from tests.faults.ledger import LockedLedger
from tests.faults.load import ACTUAL, HELD, spend, spend_one_that_is_taken, spending
from tests.processes import LocalRedis
from tests.spine import Spine

M = 1_000_000


@pytest.fixture
def own_settings() -> dict[str, str]:
    # Runners learn each second what is settled, and mend nothing themselves, but where a test says so.
    return {"DAYCAP_LEASE_TTL_SECONDS": "3", "DAYCAP_RESEND_SECONDS": "60"}


def test_worker_killed_and_started_again_settles_what_waited(spine: Spine) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    spine.worker.kill()
    spend(wallet, agent, 50)

    spine.worker.restart()

    assert wallet.flush(timeout=30) == ()
    assert spine.settled_once(agent) == (50, 50 * ACTUAL)


# --- killed at each step of settle --------------------------------------------------------------------------------


def test_killed_workers_messages_go_to_the_next(spine: Spine, broker: redis.Redis, locked_ledger: LockedLedger) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    with locked_ledger:
        spend_one_that_is_taken(wallet, agent, broker)
        spine.worker.kill()
    spine.worker.restart()

    let_time_pass(broker, HELD_BACK_S)

    spine.wait_for(lambda: spine.settled_once(agent) == (1, ACTUAL))
    spine.wait_for(lambda: broker.hlen("unacked") == 0)
    assert wallet.flush(timeout=20) == ()
    assert wallet.stats().resent == 0


def test_kill_before_ack_settles_nothing_twice(spine: Spine, broker: redis.Redis, counter_server: LocalRedis) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    hold = wallet.reserve(agent, HELD)
    # Given a counter that hangs, so that the worker, which publishes next, has committed and not acknowledged
    today = spine.today
    counter_server.kill("SIGSTOP")
    hold.finalize(ACTUAL)
    spine.wait_for(lambda: spine.rows("SELECT * FROM settlements"))
    assert broker.hlen("unacked") == 1
    spine.worker.kill()
    counter_server.kill("SIGCONT")
    spine.worker.restart()

    let_time_pass(broker, HELD_BACK_S)

    spine.wait_for(lambda: "duplicates 1" in spine.worker.container.logs())
    assert wallet.flush(timeout=20) == ()
    assert today == spine.today
    assert spine.settled_once(agent) == (1, ACTUAL)


def test_a_worker_that_was_stopped_and_goes_on_settles_nothing_again(
    spine: Spine, broker: redis.Redis, locked_ledger: LockedLedger, request: pytest.FixtureRequest
) -> None:
    """P2: its message went to another worker meanwhile."""
    agent, wallet, first = spine.add("agent-7", 5 * M), spine.wallet(), spine.worker.container
    with locked_ledger:
        spend_one_that_is_taken(wallet, agent, broker)
        first.kill("SIGSTOP")
    request.getfixturevalue("second_worker")

    let_time_pass(broker, HELD_BACK_S)
    spine.wait_for(lambda: spine.settled_once(agent) == (1, ACTUAL))
    first.kill("SIGCONT")

    spine.wait_for(lambda: "duplicates 1" in first.logs())
    assert spine.settled_once(agent) == (1, ACTUAL)
    assert wallet.flush(timeout=20) == ()


@pytest.mark.parametrize("own_settings", [{"DAYCAP_RESEND_SECONDS": "1", "DAYCAP_LEASE_TTL_SECONDS": "3"}])
def test_killed_at_any_moment_under_load_each_event_is_settled_once(spine: Spine) -> None:
    agent, wallet, chance = spine.add("agent-7", 50 * M), spine.wallet(), random.Random(7)

    with spending(wallet, agent, pause_s=0.01) as load:
        for _ in range(8):
            time.sleep(chance.uniform(0, 0.3))
            spine.worker.kill()
            spine.worker.restart()

    spine.wait_for(lambda: spine.settled_once(agent) == (load.calls, load.calls * ACTUAL), timeout_s=60)
    assert wallet.flush(timeout=30) == ()
    assert spine.ask("daycap.audit")["differences"] == []


def test_redelivered_cap_change_undoes_nothing(spine: Spine, broker: redis.Redis) -> None:
    agent = spine.add("agent-7", 5 * M)
    # Given a worker that died when it had lowered the cap and before it could acknowledge that
    spine.worker.kill()
    lower = {"agent": agent, "cap_micros": 2 * M, "changed_by": "ann"}
    asked = spine.app.send_task("daycap.set_cap", kwargs=lower, queue=CONTROL_QUEUE)
    # (A worker that starts has caps adjusted, which may wait there, too.)
    (message,) = [each for each in broker.lrange(CONTROL_QUEUE, 0, -1) if "daycap.set_cap" in str(each)]
    broker.hset("unacked", "tag", json.dumps([json.loads(message), "", CONTROL_QUEUE]))
    broker.zadd("unacked_index", {"tag": time.time()})
    spine.worker.restart()
    assert asked.get(20)["result"]["cap_micros"] == 2 * M
    spine.ask("daycap.set_cap", agent=agent, cap_micros=7 * M, changed_by="bob")

    let_time_pass(broker, HELD_BACK_S)

    spine.wait_for(lambda: broker.hlen("unacked") == broker.llen(CONTROL_QUEUE) == 0)
    assert spine.ask("daycap.find_agents", agents=[agent])[0]["daily_cap_micros"] == 7 * M
    assert [row["changed_by"] for row in spine.rows("SELECT changed_by FROM cap_changes")] == ["test", "ann", "bob"]


# --- asked to end --------------------------------------------------------------------------------------------------


def test_sigterm_under_load_leaves_nothing_half_done(spine: Spine, broker: redis.Redis) -> None:
    agent, wallet = spine.add("agent-7", 50 * M), spine.wallet()
    with spending(wallet, agent) as load:
        for _ in range(3):
            before = load.calls
            spine.wait_for(lambda before=before: spine.day_row(agent)["settled_count"] > before)  # type: ignore[misc]
            assert spine.end_worker() == 0
            assert broker.hlen("unacked") == 0
            spine.worker.restart()

    assert wallet.flush(timeout=30) == ()
    assert spine.settled_once(agent) == (load.calls, load.calls * ACTUAL)
    assert wallet.stats().resent == 0
    assert "duplicates 1" not in spine.worker.container.logs()


def test_sigterm_lets_the_batch_that_is_being_settled_be_settled(
    spine: Spine, broker: redis.Redis, locked_ledger: LockedLedger
) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    with locked_ledger:
        spend_one_that_is_taken(wallet, agent, broker)
        spine.wait_for(lambda: "daycap.finalize[" in spine.worker.container.logs())
        spine.worker.container.process.terminate()

    assert spine.end_worker() == 0

    assert spine.settled_once(agent) == (1, ACTUAL)
    assert (broker.hlen("unacked"), broker.llen(FINALIZE_QUEUE)) == (0, 0)


def test_sigterm_gives_back_a_batch_that_cannot_be_settled(
    spine: Spine, broker: redis.Redis, locked_ledger: LockedLedger
) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    with locked_ledger:
        spend_one_that_is_taken(wallet, agent, broker)

        assert spine.end_worker() == 0

        assert (broker.hlen("unacked"), broker.llen(FINALIZE_QUEUE)) == (0, 1)
    spine.worker.restart()
    assert wallet.flush(timeout=20) == ()
    assert wallet.stats().resent == 0
