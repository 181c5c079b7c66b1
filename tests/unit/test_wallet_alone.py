"""A wallet over a counter in memory: what its verbs say, and how it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from daycap import BudgetUnavailable, CapExceeded, InvalidInput, UnknownAgent, WalletStats
from daycap.delivery.outbox import Outbox
from tests.in_loop import locks_of
from tests.in_memory import CAP, Deployment, Reader, threads
from tests.spine import wait_for

# --- the verbs --------------------------------------------------------------------------------------------


def test_what_is_spent_is_known_once_it_is_flushed(deployment: Deployment) -> None:
    with deployment.wallet() as wallet:
        wallet.reserve("agent-7", 50_000).finalize(31_200)
        assert wallet.flush() == ()
        assert wallet.spent("agent-7").micros == 31_200
        assert wallet.remaining("agent-7").micros == CAP - 31_200
    assert threads() == set()


@pytest.mark.parametrize("agent", [["agent-7"], {}, None, 7, "", "no agent"])
def test_what_is_no_agent_is_refused(deployment: Deployment, agent: str) -> None:
    with pytest.raises(InvalidInput, match="agent"):
        deployment.wallet().reserve(agent, 1)


def test_refused_runner_hands_back_recalled_money(
    deployment: Deployment,
) -> None:
    """P6: the next renewal is ten seconds away."""
    one, other = deployment.wallet(slice_seconds=0), deployment.wallet(slice_seconds=0)
    hold = one.reserve("agent-7", CAP * 6 // 10)
    asked = deployment.counter.asked
    wait_for(lambda: deployment.counter.asked > asked)  # It is renewed.
    hold.release()
    for wallet, estimate in ((other, CAP * 9 // 10), (one, CAP + 1)):
        with pytest.raises(CapExceeded):
            wallet.reserve("agent-7", estimate)

    wait_for(lambda: deployment.leased(other) == 0, 5)

    other.reserve("agent-7", CAP * 9 // 10).release()


def test_unknown_agent_is_refused_each_time(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    for _ in range(2):
        with pytest.raises(UnknownAgent):
            wallet.reserve("stranger", 1)
    wallet.reserve("agent-7", 1).release()
    assert "stranger" not in locks_of(wallet), "a program that makes up names takes no memory for each"


def test_its_stats_count_what_it_holds_and_what_went_wrong(deployment: Deployment, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", 1 << 24)
    (tmp_path / "outbox").rmdir()  # Nothing can be written there.
    wallet = deployment.wallet(outbox)
    assert wallet.stats() == deployment.wallet().stats() == WalletStats(0, 0, 0, 0, 0, 0, 0)
    holds = [wallet.reserve("agent-7", 10) for _ in range(3)]
    deployment.ledger.refuses = True

    holds[0].finalize(10)

    wait_for(lambda: wallet.stats().send_failures)
    stats = wallet.stats()
    assert (stats.live_holds, stats.unsettled, stats.waiting, stats.outbox_failures) == (2, 1, 1, 1)
    assert (stats.fallthroughs, stats.resent) == (0, 0)
    deployment.ledger.refuses = False
    assert wallet.flush() == ()
    stats = wallet.stats()
    assert (stats.live_holds, stats.unsettled, stats.waiting) == (2, 0, 0)
    for hold in holds[1:]:
        hold.release()


def test_messages_carry_the_counters_time(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    assert deployment.ledger.counter_ms() is None
    before_ms = deployment.counter.now_ms()
    wallet.reserve("agent-7", 10).release()
    told_ms = deployment.ledger.counter_ms()
    assert told_ms is not None
    assert before_ms - 1 <= told_ms <= deployment.counter.now_ms() + 1


# --- flush and close --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_flush_names_what_is_not_settled_in_its_time(deployment: Deployment, timeout: float) -> None:
    wallet = deployment.wallet()
    hold = wallet.reserve("agent-7", 10)
    deployment.ledger.refuses = True
    hold.finalize(10)
    begun_s = time.monotonic()

    assert wallet.flush(timeout) == (hold.id,)

    assert time.monotonic() - begun_s >= timeout
    deployment.ledger.refuses = False
    assert wallet.flush(20) == ()


def test_a_flush_ends_when_all_is_settled(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    wallet.reserve("agent-7", 10).finalize(10)
    begun_s = time.monotonic()
    assert wallet.flush(60) == ()
    assert time.monotonic() - begun_s < 30


def test_a_flush_asks_again_and_again_but_not_without_a_pause(deployment: Deployment) -> None:
    wallet = deployment.wallet(resend_seconds=3_600)
    hold = wallet.reserve("agent-7", 10)
    deployment.ledger.loses = True
    hold.finalize(10)
    wait_for(lambda: wallet.stats().waiting == 0)
    before = deployment.counter.asked

    assert wallet.flush(1) == (hold.id,)

    assert 10 <= deployment.counter.asked - before <= 60
    wallet.close(timeout=0)


def test_flush_waits_for_the_broker_first(deployment: Deployment) -> None:
    wallet = deployment.wallet(lease_ttl_seconds=3_600)
    hold = wallet.reserve("agent-7", 10)
    deployment.ledger.refuses = True
    hold.finalize(10)
    before = deployment.counter.asked

    wallet.flush(0.1)

    assert deployment.counter.asked == before


def test_closing_hands_back_what_is_not_held_and_ends_the_threads(deployment: Deployment) -> None:
    wallet, other = deployment.wallet(reader=Reader(deployment.said)), deployment.wallet()
    wallet.reserve("agent-7", CAP // 2).release()
    assert deployment.leased(other) >= CAP // 2

    assert wallet.close() == ()

    assert deployment.leased(other) == 0
    assert deployment.said == ["transport is closed", "counter is closed", "reader is closed"]
    assert threads() == set()


def test_a_closed_wallet_reserves_nothing_and_says_so(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    wallet.reserve("agent-7", 10).finalize(10)
    assert wallet.close() == ()
    unused = deployment.wallet()
    unused.close()
    for closed in (wallet, unused):
        with pytest.raises(BudgetUnavailable, match="closed"):
            closed.reserve("agent-7", 1)
    assert threads() == set()
    assert not unused._renewer.started


def test_closing_wallet_waits_for_unsettled_events(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    wallet.reserve("agent-7", CAP // 2).release()  # It has much in memory.
    hold = wallet.reserve("agent-7", 10)
    deployment.ledger.refuses = True
    hold.finalize(10)
    unsettled: list[tuple[str, ...]] = []
    closing = threading.Thread(target=lambda: unsettled.append(wallet.close(60)))
    closing.start()

    def refused() -> bool:
        try:
            wallet.reserve("agent-7", 1).release()
        except BudgetUnavailable:
            return True
        return False

    wait_for(refused)
    assert closing.is_alive()
    deployment.ledger.refuses = False
    closing.join()
    assert unsettled == [()]


def test_closing_again_waits_for_what_was_left(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    hold = wallet.reserve("agent-7", 10)
    deployment.ledger.refuses = True
    hold.finalize(10)
    assert wallet.close(timeout=0) == (hold.id,)
    assert deployment.said == [], "it is still being sent"
    deployment.ledger.refuses = False

    assert wallet.close() == ()

    ends = ["transport is closed", "counter is closed"]
    wait_for(lambda: deployment.said == ends)
    assert wallet.close() == ()
    assert deployment.said == ends


def test_a_hold_that_lives_at_the_close_is_charged_when_it_ends(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    wallet, other = deployment.wallet(), deployment.wallet()
    hold = wallet.reserve("agent-7", 10)
    wallet.close()
    assert "1 live holds" in caplog.text

    hold.finalize(7)

    wait_for(lambda: other.spent("agent-7").micros == 7)


def test_a_wallet_closed_without_live_holds_warns_of_none(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    wallet = deployment.wallet()
    wallet.reserve("agent-7", 10).finalize(10)
    wallet.close()
    assert "live holds" not in caplog.text


def test_closing_lets_go_of_the_outbox(deployment: Deployment, tmp_path: Path) -> None:
    directory = tmp_path / "outbox"
    wallet = deployment.wallet(Outbox(directory, 1 << 24))
    hold = wallet.reserve("agent-7", 10)
    deployment.ledger.refuses = True
    hold.finalize(10)
    other = Outbox(directory, 1 << 24)
    assert other.adopt() == []

    assert wallet.close(timeout=0) == (hold.id,)

    (adopted,) = other.adopt()
    assert [event.reservation for event in adopted.events] == [hold.id]
    adopted.close()
    other.close()


def test_what_is_settled_is_in_the_outbox_no_longer(deployment: Deployment, tmp_path: Path) -> None:
    wallet = deployment.wallet(Outbox(tmp_path / "outbox", 1 << 24))
    wallet.reserve("agent-7", 10).finalize(10)
    assert wallet.close() == ()
    assert list((tmp_path / "outbox").iterdir()) == []


def test_what_a_process_left_in_the_outbox_is_settled_by_the_next_one(deployment: Deployment, tmp_path: Path) -> None:
    dead = deployment.wallet(Outbox(tmp_path / "outbox", 1 << 24))
    hold = dead.reserve("agent-7", 10)
    deployment.ledger.refuses = True
    hold.finalize(10)
    assert dead.close(timeout=0) == (hold.id,)
    wait_for(lambda: not threads())
    deployment.ledger.refuses = False

    wallet = deployment.wallet(Outbox(tmp_path / "outbox", 1 << 24))

    assert wallet.flush(20) == ()
    assert wallet.spent("agent-7").micros == 10
