"""A wallet whose counter does not answer, whose process forks, or ends without a word."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from daycap import BudgetUnavailable, Wallet, WalletStats
from daycap.delivery.outbox import Outbox
from daycap.wallet.hold import BaseHold
from tests.in_loop import locks_of
from tests.in_memory import CAP, Deployment, Reader, threads
from tests.processes import ROOT
from tests.spine import wait_for

# --- a counter that does not answer -----------------------------------------------------------------------


def reserving(
    wallet: Wallet, agent: str = "agent-7", estimate: int = 10
) -> tuple[threading.Thread, list[BaseHold | BaseException]]:
    """Another thread that reserves, and what came of it."""
    outcome: list[BaseHold | BaseException] = []

    def reserve() -> None:
        try:
            outcome.append(wallet.reserve(agent, estimate))
        except BudgetUnavailable as error:
            outcome.append(error)

    thread = threading.Thread(target=reserve)
    thread.start()
    return thread, outcome


def waiting_for_another(wallet: Wallet, agent: str = "agent-7") -> int:
    """How many have come to where one agent's reservations wait for each other."""
    lock = locks_of(wallet)[agent]
    if isinstance(lock, asyncio.Lock):
        return len(lock._waiters or ())
    return sum(frame.f_code.co_name == "take" for frame in sys._current_frames().values())


def test_second_waiter_does_not_wait_again(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    counter = deployment.counter
    counter.answers.clear()
    counter.away = True
    asked = reserving(wallet)
    wait_for(lambda: counter.asked == 1)
    others = [reserving(wallet) for _ in range(3)]
    wait_for(lambda: waiting_for_another(wallet) == len(others))

    counter.answers.set()

    for thread, outcome in (asked, *others):
        thread.join()
        assert [type(each) for each in outcome] == [BudgetUnavailable]
    assert counter.asked == 1
    # Whoever comes later asks anew
    counter.away = False
    wallet.reserve("agent-7", 10).release()


def test_who_waits_for_a_day_when_the_wallet_is_closed_is_told_so(deployment: Deployment) -> None:
    wallet = deployment.wallet(open_timeout_seconds=60)
    deployment.ledger.opens = False
    thread, outcome = reserving(wallet)
    wait_for(lambda: deployment.counter.asked > 1)

    wallet.close(0)

    thread.join(10)
    assert [str(each) for each in outcome] == ["this wallet is closed"]


def test_no_reservation_waits_longer_for_others_than_reserve_may_take(deployment: Deployment) -> None:
    deployment.wallet().reserve("agent-7", 10).release()  # The day is open.
    wallet, asked = deployment.wallet(open_timeout_seconds=0.2), deployment.counter.asked
    deployment.counter.answers.clear()
    first, outcome = reserving(wallet)
    wait_for(lambda: deployment.counter.asked == asked + 1)

    with pytest.raises(BudgetUnavailable, match="too many"):
        wallet.reserve("agent-7", 10)

    deployment.counter.answers.set()
    first.join()
    assert isinstance(outcome[0], BaseHold)


def test_what_memory_can_serve_waits_for_nobodys_question(deployment: Deployment) -> None:
    wallet, counter = deployment.wallet(lease_ttl_seconds=3_600), deployment.counter
    held = wallet.reserve("agent-7", CAP // 2)
    asked = counter.asked
    counter.answers.clear()
    thread, _ = reserving(wallet, estimate=CAP // 2)
    wait_for(lambda: counter.asked > asked)
    held.release()

    wallet.reserve("agent-7", 10).release()

    assert thread.is_alive(), "the other one still waits"
    counter.answers.set()
    thread.join()


def test_one_agent_waits_for_no_other(deployment: Deployment) -> None:
    wallet = deployment.wallet(open_timeout_seconds=20)
    deployment.counter.answers.clear()
    asked = [reserving(wallet, agent) for agent in ("agent-7", "agent-8")]
    wait_for(lambda: deployment.counter.asked == 2)
    deployment.counter.answers.set()
    for thread, outcome in asked:
        thread.join()
        assert isinstance(outcome[0], BaseHold)


def test_reservations_that_fail_leave_the_way_free(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    deployment.counter.away = True
    for _ in range(3):
        with pytest.raises(BudgetUnavailable, match="away"):
            wallet.reserve("agent-7", 10)
    deployment.counter.away = False
    wallet.reserve("agent-7", 10).release()


def test_unopened_day_causes_no_storm(deployment: Deployment) -> None:
    deployment.ledger.opens = False
    wallet = deployment.wallet(open_timeout_seconds=0.5)
    with pytest.raises(BudgetUnavailable, match="is not open in the counter"):
        wallet.reserve("agent-7", 10)
    assert 2 <= deployment.counter.asked <= 60


# --- processes --------------------------------------------------------------------------------------------


def in_a_child(work: Callable[[], bool]) -> bool:
    if (child := os.fork()) == 0:
        signal.alarm(20)  # It ends, come what may.
        try:
            os._exit(not work())
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


def test_a_forked_child_begins_with_nothing_of_its_parents(deployment: Deployment, tmp_path: Path) -> None:
    wallet = deployment.wallet(Outbox(tmp_path / "outbox", 1 << 24), Reader(deployment.said))
    hold = wallet.reserve("agent-7", CAP)
    deployment.ledger.refuses = True
    hold.finalize(10)

    def work() -> bool:
        deployment.ledger.refuses = False
        assert deployment.said == ["transport forgets", "counter forgets", "reader forgets"]
        assert wallet.stats() == WalletStats(0, 0, 0, 0, 0, 0, 0)
        own = wallet.reserve("agent-7", CAP)  # Here even the counter is its own.
        own.finalize(10)
        assert threads() == {"daycap-renewer", "daycap-sender"}, "who renews its leases otherwise?"
        own_directory = [path for path in (tmp_path / "outbox").iterdir() if path.name.startswith(f"{os.getpid()}-")]
        return wallet.flush(10) == () and len(own_directory) == 1

    assert in_a_child(work)
    assert wallet.stats().unsettled == 1
    deployment.ledger.refuses = False
    assert wallet.flush() == ()


def test_child_of_a_closed_wallet_has_an_open_one(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    wallet.close()
    assert in_a_child(lambda: bool(wallet.reserve("agent-7", 10).id))


_ENDS_WITHOUT_CLOSING = """
import sys
from tests.in_memory import Deployment
class Said(list):
    def append(self, each):
        print(each, flush=True)
deployment = Deployment()
deployment.ledger._said = Said()
wallet = deployment.wallet()
if sys.argv[1] == "used":
    wallet.reserve("agent-7", 10).finalize(7)
"""


@pytest.mark.parametrize(("used", "said"), [("used", "transport is closed\n"), ("unused", "")])
def test_a_process_that_ends_closes_the_wallets_that_it_used(used: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ENDS_WITHOUT_CLOSING, used], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == said
