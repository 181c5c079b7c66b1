"""Redis hangs, or does as it is asked and nobody hears of it (P4, P5, P6, P8)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from daycap.clock import boot_ns
from daycap.counters.redis import RedisCounter
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from tests.faults.leases.conftest import TIMEOUT_S, TTL_S, LeaseSpine
from tests.faults.proxy import Proxy
from tests.processes import LocalRedis
from tests.runner import Said

THREADS = 32
AT_MOST_S = THREADS * TIMEOUT_S / 2
"""Some exchanges that time out, far fewer than if each thread waited for those before it."""


@contextmanager
def stopped(server: LocalRedis) -> Iterator[None]:
    """SIGSTOP: connections stay, and nothing answers."""
    server.kill("SIGSTOP")
    try:
        yield
    finally:
        server.kill("SIGCONT")


def heal(proxy: Proxy, server: LocalRedis) -> None:
    """The connections that hear nothing are cut; new ones are as ever."""
    proxy.heal()
    proxy.redirect(server.port)


@pytest.mark.parametrize("agents", [1, THREADS], ids=["one agent", "each another agent"])
def test_threads_do_not_queue_behind_a_hung_redis(spine: LeaseSpine, counter_server: LocalRedis, agents: int) -> None:
    names = [f"agent-{number}" for number in range(agents)]
    spine.ask("daycap.add_agents", caps=dict.fromkeys(names, 100), changed_by="test")
    a = spine.runner(open_timeout_seconds=30)
    held = a.reserve(names[0], 10)

    with stopped(counter_server):
        for _ in range(2):
            answers = a.ask("reserve_all_at_once", (names * THREADS)[:THREADS], 1)
            assert {error for error, _ in answers} == {"BudgetUnavailable"}
            assert max(seconds for _, seconds in answers) < AT_MOST_S

    # And all is well again without anyone's help
    a.release(a.reserve(names[0], 90))
    a.finalize(held, 10)
    spine.check_all_ended(*names)


def test_lease_outlasts_an_absent_redis(spine: LeaseSpine, counter_server: LocalRedis) -> None:
    agent, a = spine.add("agent-7", 100), spine.runner(slice_seconds=1_000)
    held = a.reserve(agent, 30)

    with stopped(counter_server):
        # Given a lease that goes on, and cannot grow
        held = a.reserve_again(held)
        with pytest.raises(Said, match="BudgetUnavailable"):
            a.reserve_once(agent, 31)

        # When its time is over without a renewal, not even its own money is held again
        end_ns = boot_ns() + round(TTL_S * 1e9)
        unavailable = False
        while not unavailable and boot_ns() < end_ns:
            try:
                held = a.reserve_again(held)
            except Said as said:
                unavailable = said.error == "BudgetUnavailable"
        assert unavailable

    a.release(a.reserve(agent, 100))
    assert spine.given_up == 0
    spine.check_all_ended(agent)


def test_what_was_granted_in_a_reply_that_nobody_heard_counts_first(
    spine: LeaseSpine, proxy: Proxy, counter_server: LocalRedis
) -> None:
    """P6: asking again takes nothing more. P5: a runner that does not ask again hands it back."""
    agent, a, b = spine.add("agent-7", 200), spine.runner(), spine.runner()
    first = a.reserve(agent, 10)
    proxy.swallow_replies()
    with pytest.raises(Said, match="BudgetUnavailable"):
        a.reserve_once(agent, 50)
    heal(proxy, counter_server)
    assert spine.leased(agent) == 60

    second = a.reserve(agent, 50)

    assert spine.leased(agent) == 60
    third = b.reserve(agent, 10)
    proxy.swallow_replies()
    with pytest.raises(Said, match="BudgetUnavailable"):
        b.reserve_once(agent, 30)
    heal(proxy, counter_server)
    # Nothing was lent twice, and what b has not heard of comes back though it lives on
    assert spine.leased(agent) in {70, 100}
    spine.wait_for(lambda: spine.leased(agent) == 70)
    assert spine.given_up == 0
    b.release(third)
    a.finalize(first, 10)
    a.finalize(second, 50)
    spine.check_all_ended(agent)


def test_stopped_redis_late_grant_is_handed_back(spine: LeaseSpine, counter_server: LocalRedis) -> None:
    # Given a runner that holds nothing and has handed back what it had
    agent, a, b = spine.add("agent-7", 100), spine.runner(), spine.runner()
    a.release(a.reserve(agent, 10))
    spine.wait_for(lambda: spine.leased(agent) == 0)

    with stopped(counter_server), pytest.raises(Said, match="BudgetUnavailable"):
        a.reserve_once(agent, 90)

    # When Redis goes on it does what it was asked; a, who has been told no, does not keep it from b
    hold = spine.wait_for(lambda: b.reserve_or_none(agent, 90))
    assert spine.given_up == 0
    b.finalize(hold, 90)
    spine.check_all_ended(agent)
    assert spine.day_row(agent)["spent_micros"] == 90


def test_a_publish_that_is_done_twice_changes_nothing_twice(
    spine: LeaseSpine, proxy: Proxy, counter_server: LocalRedis
) -> None:
    agent, a = spine.add("agent-7", 100), spine.runner()
    a.finalize(a.reserve(agent, 30), 25)
    assert a.flush() == []
    a.reserve(agent, 20)
    a.kill()
    before_ms = spine.counter.now_ms() + 60_000
    snapshots = spine.snapshots(agent)
    publisher = CounterPublisher(RedisCounter(spine.settings.redis_url, TIMEOUT_S), spine.settings.terms)
    publisher.now_ms()
    ledger = Ledger(spine.settings.ledger_url)

    # Given one that gave up the dead runner's lease and was not heard
    proxy.swallow_replies()
    assert publisher.publish(ledger, snapshots, expire_before_ms=before_ms) == []
    heal(proxy, counter_server)
    assert spine.leased(agent) == 0
    once = spine.reading(agent)

    (reply,) = publisher.publish(ledger, snapshots, expire_before_ms=before_ms)

    assert reply is not None
    assert (reply.given_up_micros, reply.opened, reply.repaired) == (0, False, False)
    assert spine.reading(agent)._replace(now_ms=0) == once._replace(now_ms=0)
    assert (once.spent_micros, once.given_up_micros >= 20) == (25, True)
    publisher.close()
    spine.check_all_ended(agent)
