"""The broker is down, hangs, answers nothing, forgets: finalize returns at once and every event settles once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from daycap import Wallet
from daycap.counters.redis import counter_key
from daycap.protocol.wire import FINALIZE_QUEUE
from tests.faults.ledger import LockedLedger
from tests.faults.load import ACTUAL, HELD, spend, spend_one_that_is_taken, spending
from tests.faults.proxy import Proxy
from tests.spine import Spine

M = 1_000_000

_MOST_S = 0.25
"""What a finalize may take on a busy machine. In itself it takes microseconds; a broker that hangs takes seconds."""

_HEARTBEAT_S = 2.5
"""In so long a worker says at least once that it lives."""


@pytest.fixture
def own_settings() -> dict[str, str]:
    return {
        "DAYCAP_LEASE_TTL_SECONDS": "3",  # Runners look at what is unsettled each second.
        "DAYCAP_GRACE_SECONDS": "1",
        "DAYCAP_RESEND_SECONDS": "1",
    }


@pytest.fixture
def proxy(spine: Spine) -> Iterator[Proxy]:
    """Before the broker, for a runner that is to lose it."""
    proxy = Proxy(spine.broker.container.port)
    yield proxy
    proxy.close()


@pytest.mark.usefixtures("both_faces")
@pytest.mark.parametrize("fault", ["down", "hanging", "half open"])
def test_finalize_does_not_wait_for_the_broker(spine: Spine, proxy: Proxy, fault: str) -> None:
    agent, server = spine.add("agent-7", 5 * M), spine.broker.container
    wallet = spine.wallet(broker_url=f"redis://127.0.0.1:{proxy.port}/0")
    spend(wallet, agent, 1)
    assert wallet.flush(timeout=20) == ()
    fail, recover = {
        "down": (server.kill, server.restart),
        "hanging": (lambda: server.kill("SIGSTOP"), lambda: server.kill("SIGCONT")),
        "half open": (proxy.silence, proxy.heal),
    }[fault]

    fail()
    longest_s, calls = _finalize_until(wallet, agent, lambda: wallet.stats().send_failures >= 1)
    recover()

    assert longest_s < _MOST_S
    assert wallet.flush(timeout=60) == ()
    assert spine.settled_once(agent) == (1 + calls, (1 + calls) * ACTUAL)


def _finalize_until(wallet: Wallet, agent: str, over: Callable[[], bool]) -> tuple[float, int]:
    """The longest that a finalize took, and how many there were."""
    longest_s = 0.0
    for calls in itertools.count(1):
        hold = wallet.reserve(agent, HELD)
        started = time.perf_counter()
        hold.finalize(ACTUAL)
        longest_s = max(longest_s, time.perf_counter() - started)
        if over():
            return longest_s, calls
        time.sleep(0.005)  # A pace, not a wait: 200 calls a second.
    raise AssertionError


@pytest.mark.usefixtures("both_faces")
def test_leases_are_renewed_while_the_broker_hangs(spine: Spine) -> None:
    """P4: a runner that lives keeps its leases, whatever its broker does to those who ask how long the queue is."""
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    # Given an event that the broker has and nobody settles, so that the runner asks again and again
    spine.worker.kill()
    spend(wallet, agent, 1)
    spine.wait_for(lambda: wallet.stats().waiting == 0)
    hold = wallet.reserve(agent, HELD)
    lease = f"lease:{hold.id.rpartition('-')[0]}"

    spine.broker.container.kill("SIGSTOP")

    end = time.monotonic() + 2 * spine.settings.lease_ttl_seconds
    while time.monotonic() < end:
        deadline_ms = int(spine.redis.hget(counter_key(agent, hold.day), lease).split()[-1])
        assert deadline_ms > spine.counter.now_ms()
        time.sleep(0.1)


# --- what the broker loses is sent again ------------------------------------------------------------------------


def _queue(broker: redis.Redis) -> None:
    broker.delete(FINALIZE_QUEUE)


def _one_by_one(broker: redis.Redis) -> None:
    while broker.lpop(FINALIZE_QUEUE) is not None:
        pass


def _everything(broker: redis.Redis) -> None:
    broker.flushall()


@pytest.mark.usefixtures("both_faces")
@pytest.mark.parametrize("lose", [_queue, _one_by_one, _everything])
def test_lost_messages_are_resent_and_settled_once(
    spine: Spine, broker: redis.Redis, lose: Callable[[redis.Redis], None]
) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    spend(wallet, agent, 5)
    assert wallet.flush(timeout=20) == ()
    spine.worker.kill()
    spend(wallet, agent, 20)
    spine.wait_for(lambda: wallet.stats().waiting == 0)

    lose(broker)
    spine.worker.restart()

    spine.wait_for(lambda: spine.settled_once(agent) == (25, 25 * ACTUAL))
    assert wallet.flush(timeout=20) == ()
    assert wallet.stats().resent >= 20
    # And under a worker that runs
    lose(broker)
    spend(wallet, agent, 5)
    assert wallet.flush(timeout=20) == ()
    assert spine.settled_once(agent) == (30, 30 * ACTUAL)


def test_a_message_that_is_lost_while_a_worker_has_it_is_sent_again(
    spine: Spine, broker: redis.Redis, locked_ledger: LockedLedger
) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    with locked_ledger:
        spend_one_that_is_taken(wallet, agent, broker)
        broker.delete("unacked", "unacked_index")
        spine.worker.kill()
    spine.worker.restart()

    spine.wait_for(lambda: spine.settled_once(agent) == (1, ACTUAL))


def test_resends_back_off(spine: Spine, broker: redis.Redis) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    spine.worker.kill()
    sent_s: list[float] = []

    spend(wallet, agent, 1)
    while len(sent_s) < 3:
        spine.wait_for(lambda: broker.rpop(FINALIZE_QUEUE))
        sent_s.append(time.monotonic())

    waits_s = [later - earlier for earlier, later in itertools.pairwise(sent_s)]
    for doublings, wait_s in enumerate(waits_s):
        # Not before its time, and not ten times as late, as while messages wait; with room for a busy machine.
        due_s = spine.settings.resend_seconds * 2**doublings
        assert due_s - 0.5 < wait_s < due_s + 5
    assert wallet.stats().resent == 2


# --- the broker restarts ----------------------------------------------------------------------------------------


def test_broker_restart_loses_no_event(spine: Spine, broker: redis.Redis, locked_ledger: LockedLedger) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()

    with spending(wallet, agent) as load:
        for _ in range(3):
            before = load.calls
            with locked_ledger:
                spine.wait_for(lambda: broker.hlen("unacked") > 0)
                said = kill_broker(spine)
            restart_broker(spine, said)
            spine.wait_for(lambda before=before: spine.day_row(agent)["settled_count"] > before)  # type: ignore[misc]

    assert wallet.flush(timeout=30) == ()
    assert spine.settled_once(agent) == (load.calls, load.calls * ACTUAL)
    assert spine.worker.container.status == "running"


def test_worker_survives_a_heartbeat_without_broker(
    spine: Spine, broker: redis.Redis, locked_ledger: LockedLedger
) -> None:
    """Celery's own tries for ever to tell Flower that it lives, silently, and deaf to SIGTERM."""
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()

    with locked_ledger:
        spend_one_that_is_taken(wallet, agent, broker)
        said = kill_broker(spine)
        time.sleep(_HEARTBEAT_S)  # Not a wait for the worker, which waits for the ledger: the time that it is to miss.

    wait_until_missed(spine, said)
    assert spine.end_worker() == 0


def kill_broker(spine: Spine) -> int:
    """Returns how long the worker's log was then."""
    said = len(spine.worker.container.logs())
    spine.broker.container.kill()
    return said


def wait_until_missed(spine: Spine, said: int) -> None:
    """Until the worker has said that it finds no broker."""
    spine.wait_for(lambda: "Cannot connect" in spine.worker.container.logs()[said:])


def restart_broker(spine: Spine, said: int) -> None:
    """Start the broker anew, empty, when the worker has missed it; until the worker has found it again."""
    wait_until_missed(spine, said)
    spine.broker.container.restart()
    spine.wait_for(lambda: "the broker recovered" in spine.worker.container.logs()[said:])
