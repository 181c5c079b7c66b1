"""Runners that die, stand still, or take long over a call (P4, P5, P6)."""

from __future__ import annotations

import dataclasses

import pytest

from daycap.protocol.counter import LeaseTerms
from daycap.protocol.wire import CONTROL_QUEUE
from tests.faults.leases.conftest import GRACE_S, TTL_S, LeaseSpine
from tests.runner import Runner, Said
from worker import housekeeping
from worker.deployment import Deployment
from worker.queue import settled_before_ms

LIFE_MS = round((TTL_S + GRACE_S) * 1000)
WARM = 1_000
"""Seconds of use to lease ahead: more than any lease here, so that what is free stays in it while it is used."""


def wait_until_over(spine: LeaseSpine, deadline_ms: int) -> None:
    """Until the counter would give up a lease with that deadline."""
    spine.wait_for(lambda: spine.counter.now_ms() > deadline_ms + GRACE_S * 1000)


def test_the_money_of_a_killed_runner_is_back_within_ttl_and_grace(spine: LeaseSpine) -> None:
    # Given a runner that has spent 25 of its 30 and holds 20, killed in the middle of that call
    agent, a, b = spine.add("agent-7", 100), spine.runner(), spine.runner()
    first, under_way = a.reserve(agent, 30), a.reserve(agent, 20)
    a.finalize(first, 25)
    spine.settled(agent, 25)
    a.kill()
    killed_ms, lease = spine.counter.now_ms(), spine.lease(agent, under_way)
    left = lease.granted - lease.returned - lease.drawn
    with pytest.raises(Said, match="CapExceeded"):
        b.reserve_once(agent, 75)

    # When its ttl and grace are over, and not before
    spine.wait_for(lambda: spine.expire() > 0)

    # Then the money is back, counted and shown
    now_ms = spine.counter.now_ms()
    assert lease.deadline_ms + GRACE_S * 1000 < now_ms < killed_ms + LIFE_MS + 5_000
    assert spine.given_up == left >= 20
    reading, status = spine.reading(agent), spine.status(agent)
    assert (reading.leased_micros, reading.given_up_micros, reading.remaining_micros) == (0, left, 75)
    assert (status["leased_micros"], status["given_up_micros"]) == (0, left)
    # And all of it can be spent
    b.finalize(b.reserve(agent, 75), 75)
    with pytest.raises(Said, match="CapExceeded"):
        b.reserve_once(agent, 1)
    spine.check_all_ended(agent)
    assert spine.day_row(agent)["spent_micros"] == 100


def test_killed_runners_spending_is_settled_first(spine: LeaseSpine) -> None:
    agent, a = spine.add("agent-7", 100), spine.runner()
    spent, under_way = a.reserve(agent, 60), a.reserve(agent, 20)
    # Given a worker that stands still with another message in its hands
    spine.worker.kill("SIGSTOP")
    try:
        spine.app.send_task("daycap.reconcile", queue=CONTROL_QUEUE)
        spine.wait_for(lambda: queued(spine, CONTROL_QUEUE) == 0)
        # And the events of a runner that was killed
        a.finalize(spent, 50)
        spine.wait_for(lambda: a.stats()["waiting"] == 0)
        a.kill()
        wait_until_over(spine, spine.lease(agent, under_way).deadline_ms)

        # When another worker looks for what to give up
        deployment = Deployment.from_settings(dataclasses.replace(spine.settings, metrics_port=0))
        for _ in range(3):
            housekeeping.expire(
                deployment.ledger, deployment.publisher, lambda now_ms: settled_before_ms(spine.app, now_ms), []
            )
        deployment.publisher.close()
        deployment.ledger.close()

        # Then nothing is, while the events wait
        assert (spine.reading(agent).given_up_micros, spine.leased(agent)) == (0, 80)
    finally:
        spine.worker.kill("SIGCONT")

    # And once they are settled, the rest
    spine.settled(agent, 50)
    spine.wait_for(lambda: spine.expire() > 0)
    reading = spine.reading(agent)
    assert (reading.given_up_micros, reading.leased_micros, reading.remaining_micros) == (30, 0, 50)
    spine.check_all_ended(agent)


def queued(spine: LeaseSpine, queue: str) -> int:
    with spine.app.connection_for_read() as connection:
        return connection.default_channel.client.llen(queue)


def lent_to_another(spine: LeaseSpine, agent: str, cap: int) -> tuple[Runner, str]:
    """What a stopped runner had is given up, and another runner takes all that there is."""
    leased = spine.leased(agent)
    spine.wait_for(lambda: spine.expire() > 0)
    assert spine.given_up == leased > 0
    other = spine.runner()
    return other, other.reserve(agent, cap)


def test_stopped_runner_makes_no_hold_from_an_old_lease(spine: LeaseSpine) -> None:
    # Given a runner that holds 40 and has 60 besides
    agent, a = spine.add("agent-7", 100), spine.runner(slice_seconds=WARM)
    held = a.reserve(agent, 40)
    a.release(a.reserve(agent, 60))
    a.stop()
    assert spine.leased(agent) == 100
    b, taken = lent_to_another(spine, agent, 100)

    a.resume()
    with pytest.raises(Said, match="CapExceeded"):
        a.reserve_once(agent, 60)
    with pytest.raises(Said, match="CapExceeded"):
        a.reserve(agent, 1)

    # Its late event still settles: 140 were spent, of a cap of 100 and 100 given up
    b.finalize(taken, 100)
    a.finalize(held, 40)
    assert (a.flush(), b.flush()) == ([], [])
    row = spine.day_row(agent)
    assert (row["spent_micros"], row["uncovered_micros"], row["settled_count"]) == (100, 40, 2)
    assert spine.given_up == 100
    spine.check_all_ended(agent)


@pytest.mark.parametrize(
    ("estimate", "stop"),
    [(60, ("reserve", "leaves", 1)), (120, ("reserve", "leaves", 3))],
    ids=["from memory", "with an answer of the counter"],
)
def test_runner_stopped_inside_reserve_makes_no_hold(
    spine: LeaseSpine, estimate: int, stop: tuple[str, str, int]
) -> None:
    """The clock is read after the money was taken, so that a pause in between cannot make a late hold."""
    agent, a = spine.add("agent-7", 160), spine.runner(slice_seconds=WARM)
    held, other = a.reserve(agent, 40), a.reserve(agent, 60)
    a.ask("stop_when", *stop)
    a.release(other)
    a.tell("reserve", agent, estimate)
    a.wait_until_stopped()
    b, taken = lent_to_another(spine, agent, 160)

    a.resume()

    with pytest.raises(Said, match=r"CapExceeded|BudgetUnavailable"):
        a.hear()
    b.finalize(taken, 160)
    a.finalize(held, 40)
    spine.check_all_ended(agent)
    assert spine.day_row(agent)["uncovered_micros"] == 40


def test_long_call_keeps_its_hold_past_the_ttl(spine: LeaseSpine) -> None:
    # Given a call under way, of a runner that has another agent whose leases live for a minute
    agent, other, a, b = spine.add("agent-7", 100), spine.add("agent-8", 100), spine.runner(), spine.runner()
    snapshots = spine.snapshots(other)
    spine.counter.publish(snapshots, LeaseTerms(60_000, 400, 1_000))
    held = a.reserve(agent, 50)
    first_deadline_ms = spine.lease(agent, held).deadline_ms
    long_lived = a.reserve(other, 10)

    wait_until_over(spine, first_deadline_ms + 1_000)
    spine.expire()

    # Then its money is still set aside, to a micro, and nothing was given up
    assert (spine.leased(agent), spine.given_up) == (50, 0)
    with pytest.raises(Said, match="CapExceeded"):
        b.reserve_once(agent, 51)
    b.finalize(b.reserve(agent, 50), 50)
    a.finalize(held, 50)
    a.release(long_lived)
    spine.check_all_ended(agent, other)
    assert spine.day_row(agent)["spent_micros"] == 100


def test_refused_runner_gets_unused_money_at_renewal(spine: LeaseSpine) -> None:
    """P6. The others are busy, so that nothing of theirs lies idle: only a recall brings it back."""
    agent, others = spine.add("agent-7", 100), [spine.runner(slice_seconds=WARM) for _ in range(2)]
    used = [runner.reserve(agent, 10) for runner in others]
    for runner in others:
        runner.release(runner.reserve(agent, 40))
    assert spine.leased(agent) == 100
    late = spine.runner()
    renewals: list[set[int]] = [set(), set()]

    def gets_it() -> str | None:
        for number, runner in enumerate(others):
            used[number] = runner.reserve_again(used[number])
            renewals[number].add(spine.lease(agent, used[number]).deadline_ms)
        return late.reserve_or_none(agent, 60)

    hold = spine.wait_for(gets_it)

    # The lease as it was, the renewal that hears of it, the one that hands back; another begins meanwhile at most.
    assert max(map(len, renewals)) <= 4
    assert spine.given_up == 0
    late.finalize(hold, 60)
    spine.check_all_ended(agent)


def test_lone_runner_spends_to_the_true_cap(spine: LeaseSpine) -> None:
    agent, a = spine.add("agent-7", 100), spine.runner()
    a.finalize(a.reserve(agent, 60), 15)
    for estimate in (86, 100):
        with pytest.raises(Said, match="CapExceeded"):
            a.reserve(agent, estimate)
    a.reserve(agent, 35)
    a.finalize(a.reserve(agent, 50), 50)
    with pytest.raises(Said, match="CapExceeded"):
        a.reserve(agent, 1)
    spine.wait_for(lambda: spine.reading(agent).spent_micros == 65)
    with pytest.raises(Said, match="CapExceeded"):
        a.reserve(agent, 1)
    a.kill()
    spine.wait_for(lambda: spine.expire() == 35)
    spine.check_all_ended(agent)
