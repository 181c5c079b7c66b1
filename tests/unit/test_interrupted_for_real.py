"""The garbage collector and signal handlers of a real process, at moments that nobody chose."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from daycap import AsyncWallet, BudgetUnavailable
from daycap.counters.memory import MemoryCounter
from daycap.errors import CounterUnavailable
from tests.in_memory import Deployment
from tests.spine import wait_for

COST = 7


@contextmanager
def often_collected() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def dropped_in_a_cycle(wallet: Any) -> None:
    """A generator that holds money is closed by the garbage collector, and finalizes its hold."""

    def stream(cycle: list[object]) -> Iterator[None]:
        with wallet.reserve("agent-7", 10) as hold:
            hold.actual = COST
            yield
            cycle.clear()

    cycle: list[object] = []
    generator = stream(cycle)
    cycle.append(generator)
    next(generator)


def test_calls_go_on_while_garbage_is_collected(deployment: Deployment) -> None:
    wallet = deployment.wallet()
    with often_collected():
        for number in range(1_500):
            if number % 3 == 0:
                dropped_in_a_cycle(wallet)
            wallet.reserve("agent-7", 10).finalize(COST)
    # Not at once where another thread is collecting just now.
    wait_for(lambda: (gc.collect(), wallet.stats().live_holds)[1] == 0)
    wait_for(lambda: wallet.flush(20) == () and wallet.spent("agent-7").micros >= 2_000 * COST)
    assert wallet.spent("agent-7").micros == 2_000 * COST


def test_tasks_dropped_in_a_cycle_are_charged() -> None:
    deployment = Deployment()

    async def main() -> None:
        async with AsyncWallet(deployment.parts()) as wallet:

            async def call(cycle: list[object]) -> None:
                with await wallet.reserve("agent-7", 10) as hold:
                    hold.actual = COST
                    await asyncio.get_running_loop().create_future()
                    cycle.clear()

            (await wallet.reserve("agent-7", 100_000)).release()
            with often_collected():
                for _ in range(500):
                    cycle: list[object] = []
                    coroutine = call(cycle)
                    cycle.append(coroutine)
                    coroutine.send(None)  # As far as its first real wait, and never further.
                    del coroutine, cycle
                    (await wallet.reserve("agent-7", 10)).finalize(COST)
            wait_for(lambda: (gc.collect(), wallet.stats().live_holds)[1] == 0)
            async with asyncio.timeout(20):
                while await wallet.flush(20) or (await wallet.spent("agent-7")).micros < 1_000 * COST:
                    await asyncio.sleep(0.01)
            assert (await wallet.spent("agent-7")).micros == 1_000 * COST

    asyncio.run(main())


SWALLOWED = "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
"""What a handler raises in a finalizer, anybody's, Python swallows."""


@contextmanager
def alarm(handler: Callable[[], object], longest_s: float) -> Iterator[None]:
    """SIGALRM after a random time; `handler` runs between two bytecodes of this thread."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.000_01, longest_s))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def of_threads() -> Iterator[Deployment]:
    """A handler cannot await, and what it raises ends the event loop that it interrupts."""
    deployment = Deployment()
    yield deployment
    deployment.close()


def test_a_handler_may_close_a_busy_wallet(of_threads: Deployment) -> None:
    deployment = of_threads
    for _ in range(40):
        wallet, done = deployment.wallet(), 0
        before = wallet.spent("agent-7").micros
        with alarm(lambda wallet=wallet: wallet.close(5), 0.01):  # type: ignore[misc]
            try:
                while True:
                    wallet.reserve("agent-7", 2).finalize(1)
                    done += 1
            except BudgetUnavailable:
                pass
        wait_for(lambda wallet=wallet: not wallet.close(5) and not wallet._open_parts)  # type: ignore[misc]
        assert deployment.wallet().spent("agent-7").micros - before in (done, done + 1)


class Rung(Exception):
    """What the handler raises."""


def ring() -> None:
    raise Rung


@pytest.mark.filterwarnings(SWALLOWED)
def test_a_handler_may_raise_in_a_busy_wallet(of_threads: Deployment) -> None:
    wallet, done = of_threads.wallet(), 0
    hold: Any
    wallet.reserve("agent-7", 2).release()  # Its threads run: Python's own start of a thread bears no exception.
    for _ in range(100):
        try:
            end_s = time.monotonic() + 0.05
            with alarm(ring, 0.001):
                while time.monotonic() < end_s:
                    with wallet.reserve("agent-7", 2) as hold:
                        hold.actual = 1
                    done += 1
        except Rung:
            # Its owner lets go of it while no alarm is set: what a handler raises in a finalizer, Python loses.
            hold = None
    wallet.reserve("agent-7", 2).finalize(1)
    assert wallet.flush(20) == ()
    wait_for(lambda: wallet.stats().live_holds == 0)
    wallet.flush(20)
    charged = wallet.spent("agent-7").micros
    assert done + 1 <= charged <= done + 1 + 200, "an interrupted call is charged in full at most"


def test_a_dropped_hold_is_charged_and_logged(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    wallet = deployment.wallet(trace_holds=True)
    hold = wallet.reserve("agent-7", 31)
    line = sys._getframe().f_lineno - 1
    del hold
    wait_for(lambda: wallet.spent("agent-7").micros == 31)
    (message,) = [each for each in caplog.messages if "was dropped" in each and ": 31 micros" in each]
    assert message.startswith("agent agent-7: a hold was dropped after ")
    if not hasattr(wallet, "_wallet"):  # In another thread's event loop the line is that of the loop.
        assert f"test_interrupted_for_real.py:{line}" in message


def test_a_hold_finalized_after_the_close_is_settled(deployment: Deployment) -> None:
    wallet, other = deployment.wallet(), deployment.wallet()
    hold = wallet.reserve("agent-7", 50)
    deployment.ledger.refuses = True
    wallet.close(0.1)
    hold.finalize(40)
    wait_for(lambda: wallet._sender.failures > 2)
    deployment.ledger.refuses = False
    wait_for(lambda: other.spent("agent-7").micros == 40)


def test_the_end_waits_for_what_came_after_the_close(deployment: Deployment) -> None:
    wallet, other = deployment.wallet(), deployment.wallet()
    hold = wallet.reserve("agent-7", 50)
    deployment.ledger.refuses = True
    wallet.close(0.1)
    hold.finalize(40)
    deployment.ledger.refuses = False
    wallet._end(5)
    assert other.spent("agent-7").micros == 40


def test_a_counter_in_memory_is_entered_once() -> None:
    heard: list[BaseException] = []

    def interrupted() -> int:
        try:
            counter.read([])
        except CounterUnavailable as error:
            heard.append(error)
        return 0

    counter = MemoryCounter(interrupted)
    counter.read([])
    assert len(heard) == 1
    assert MemoryCounter().read([]) == []
