"""P6: what an agent's retired lease has free does not count against the agent in the same process."""

from __future__ import annotations

import time

import pytest

from daycap import CapExceeded
from daycap.money import MAX_MICROS
from daycap.protocol.counter import ACTIVE, DaySnapshot
from daycap.wallet.hold import Hold, Pending
from daycap.wallet.top_up import top_up
from tests import in_memory
from tests.in_memory import Deployment
from tests.runner_without_io import CAP, DAY, TERMS, Runner, held

RESEND_NS = 1_000_000_000


@pytest.fixture
def runner() -> Runner:
    return Runner()


def reserve(runner: Runner, estimate: int) -> Hold:
    """As a wallet does: ask until the answer is final."""
    steps = top_up(runner.book, "agent", estimate, end_s=time.monotonic() + 5, ask_to_open=lambda *_: None)
    answer = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as done:
            hold: Hold = done.value
            return hold
        answer = runner.counter.sync([step.request]) if isinstance(step, Pending) else None


def raise_cap(runner: Runner) -> None:
    runner.counter.publish([DaySnapshot("agent", DAY, 9, ACTIVE, MAX_MICROS, 0, repairs=True)], TERMS)


def stall(runner: Runner) -> None:
    """Nothing is settled for so long that the lease gets a successor."""
    for _ in range(3):
        runner.ms += 10_000
        runner.renew()
        runner.book.unsettled.stalled(RESEND_NS)


@pytest.mark.parametrize("impossible", [in_memory.CAP + 1, MAX_MICROS])
def test_an_impossible_reserve_keeps_the_lease(deployment: Deployment, impossible: int) -> None:
    wallet = deployment.wallet()
    hold = wallet.reserve("agent-7", in_memory.CAP)
    hold.release()

    with pytest.raises(CapExceeded):
        wallet.reserve("agent-7", impossible)

    asked = deployment.counter.asked
    again = wallet.reserve("agent-7", in_memory.CAP)
    assert (again.id.partition("-")[0], deployment.counter.asked) == (hold.id.partition("-")[0], asked)
    again.release()


def test_what_a_retired_lease_frees_is_there_at_once(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    hold = wallet.reserve("agent-7", in_memory.CAP)
    wallet._book.leases.replace(hold._lease)
    hold.finalize(1)

    with pytest.raises(CapExceeded):
        wallet.reserve("agent-7", in_memory.CAP)

    wallet.reserve("agent-7", in_memory.CAP - 1).release()


def test_the_successor_of_a_stalled_lease_has_its_money(runner: Runner) -> None:
    held(runner, 1).finalize(1)
    hold = held(runner, CAP - 1)
    stall(runner)
    hold.release()

    assert reserve(runner, CAP - 1)._lease is not hold._lease


def test_totals_at_their_limit_retire_a_lease(runner: Runner) -> None:
    raise_cap(runner)
    hold = reserve(runner, 10)
    hold.release()

    assert reserve(runner, MAX_MICROS)._lease is not hold._lease


def test_a_cap_raised_to_the_limit_is_seen(runner: Runner) -> None:
    reserve(runner, 10).release()
    raise_cap(runner)

    assert reserve(runner, MAX_MICROS).held_micros == MAX_MICROS


def test_an_unheard_grant_to_a_retired_lease_comes_back(runner: Runner) -> None:
    pending = runner.book.exchanges.begin_top_up("agent", CAP)
    runner.counter.sync([pending.request])
    runner.book.exchanges.abandon(pending)
    runner.book.leases.replace(pending.lease)

    assert reserve(runner, CAP).held_micros == CAP


def test_an_unheard_hand_back_is_told_again(runner: Runner) -> None:
    hold = held(runner, CAP)
    runner.book.leases.replace(hold._lease)
    hold.release()
    runner.book.exchanges.abandon(*runner.book.exchanges.begin_hand_back("agent"))

    assert reserve(runner, CAP).held_micros == CAP


def test_a_renewal_does_not_revive_a_retired_lease(runner: Runner) -> None:
    """Its money is not kept for a use that it has no more."""
    hold = held(runner, 1_000)
    runner.book.leases.replace(hold._lease)
    runner.renew()
    hold.release()

    (pending,) = runner.begin_renewal()

    assert (pending.request.returned_micros, pending.lease.deadline_ns) == (1_000, 0)


def test_nothing_is_kept_of_a_lease_that_is_let_go(runner: Runner) -> None:
    hold = held(runner, 1_000)
    runner.book.leases.replace(hold._lease)
    hold.release()
    for _ in range(2):
        runner.renew()

    assert (list(runner.book.exchanges.leases()), runner.book.leases.replaced) == ([], {})
