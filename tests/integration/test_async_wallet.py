"""What an event loop's wallet does that a thread's has no need for: it never blocks, and bears cancellation."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from daycap import AsyncWallet, BudgetUnavailable, CapExceeded
from tests.processes import ROOT, LocalRedis

if TYPE_CHECKING:
    from tests.spine import Spine

M = 1_000_000

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine in a new event loop of each kind."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


@pytest.fixture
def agent(spine: Spine) -> str:
    return spine.add("agent-7", 5 * M)


def wallet_of(spine: Spine, **changes: str) -> AsyncWallet:
    return AsyncWallet.from_env(environ={**spine.environment, **changes})


def test_a_warm_reserve_does_not_yield_to_the_loop(spine: Spine, agent: str, run: Run) -> None:
    async def main() -> None:
        async with wallet_of(spine) as wallet:
            (await wallet.reserve(agent, 1000)).release()

            call = wallet.reserve(agent, 10)
            with pytest.raises(StopIteration) as done:
                call.send(None)

            done.value.value.finalize(10)

    run(main())
    assert spine.settled_once(agent) == (1, 10)


def test_many_tasks_on_a_small_cap_use_it_up_and_never_pass_it(spine: Spine, run: Run) -> None:
    agent = spine.add("small", 100_000)

    async def call(wallet: AsyncWallet) -> int:
        try:
            with await wallet.reserve(agent, 1_000) as hold:
                await asyncio.sleep(0.001)
                hold.actual = 1_000
        except CapExceeded:
            return 0
        return 1_000

    async def main() -> int:
        async with wallet_of(spine) as wallet:
            spent = sum(await asyncio.gather(*(call(wallet) for _ in range(200))))
            assert await wallet.flush(20) == ()
            assert (await wallet.spent(agent)).micros == spent
            return spent

    spent = run(main())
    assert 95_000 <= spent <= 100_000
    assert spine.settled_once(agent) == (spent / 1_000, spent)


def test_agents_that_are_asked_for_at_once_share_a_connection(spine: Spine, run: Run) -> None:
    agents = [f"agent-{number}" for number in range(300)]
    spine.ask("daycap.add_agents", caps=dict.fromkeys(agents, M), changed_by="test")

    async def main() -> int:
        async with wallet_of(spine) as wallet:
            for hold in await asyncio.gather(*(wallet.reserve(agent, 1_000) for agent in agents)):
                hold.release()
            # The server counts those of the renewer's thread too, which begins when it likes.
            return len(wallet._in_loop._lines.get()._pool._available_connections)

    assert run(main()) == 1


def test_a_call_that_is_cancelled_is_finalized_with_all_that_it_held(spine: Spine, agent: str, run: Run) -> None:
    async def call(wallet: AsyncWallet, begun: asyncio.Event) -> None:
        with await wallet.reserve(agent, 50_000):
            begun.set()
            await asyncio.sleep(3600)

    async def main() -> None:
        async with wallet_of(spine) as wallet:
            begun = asyncio.Event()
            task = asyncio.create_task(call(wallet, begun))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert wallet.stats().live_holds == 0

    run(main())
    assert spine.settled_once(agent) == (1, 50_000)


@pytest.fixture
def own_counter(tmp_path: Any) -> Any:
    server = LocalRedis(tmp_path)
    server.ready()
    yield server
    server.kill("SIGCONT")
    server.teardown()


class TestACounterThatHangs:
    """Its server is stopped: it takes what is sent and answers nothing."""

    def test_does_not_hold_up_the_loop(self, spine: Spine, own_counter: LocalRedis, run: Run) -> None:
        async def main() -> None:
            async with wallet_of(spine, DAYCAP_REDIS_URL=own_counter.url, DAYCAP_REDIS_TIMEOUT_SECONDS="1") as wallet:
                own_counter.kill("SIGSTOP")
                asking = asyncio.create_task(wallet.reserve("agent-7", 1_000))
                turns = 0
                while not asking.done():
                    await asyncio.sleep(0.001)
                    turns += 1
                with pytest.raises(BudgetUnavailable, match="did not answer"):
                    await asking
                # The question alone takes a second; a loop that it blocked would have had a turn or two.
                assert turns > 50
                own_counter.kill("SIGCONT")

        run(main())

    def test_a_reserve_that_is_cancelled_meanwhile_holds_nothing(self, spine: Spine, agent: str, run: Run) -> None:
        redis_server = spine.broker.container.process.pid

        async def main() -> None:
            async with wallet_of(spine) as wallet:
                (await wallet.reserve(agent, 10)).release()
                before = wallet.stats()
                os.kill(redis_server, signal.SIGSTOP)
                try:
                    asking = asyncio.create_task(wallet.reserve(agent, 4 * M))
                    await asyncio.sleep(0.05)
                    asking.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await asking
                finally:
                    os.kill(redis_server, signal.SIGCONT)
                assert wallet.stats() == before
                # What was granted unseen is heard of by the next question, and none of it is lost.
                (await wallet.reserve(agent, 5 * M)).release()

        run(main())
        assert spine.ask("daycap.audit")["differences"] == []
        (reading,) = spine.counter.read([(agent, spine.today)])
        assert reading.leased_micros == 0


_TWO_LOOPS = """
import asyncio, sys
from daycap import AsyncWallet
import uvloop
run = asyncio.run if sys.argv[1] == "asyncio" else uvloop.run
wallet = AsyncWallet.from_env()
async def spend():
    (await wallet.reserve("agent-7", 1_000)).finalize(1_000)
run(spend())
run(spend())
assert run(wallet.close(20)) == ()
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_wallet_outlives_its_loop(spine: Spine, agent: str, kind: str) -> None:
    """In a process of its own: a loop that ends without closing its connection says so when that is collected."""
    environment = {**os.environ, **spine.environment, "DAYCAP_SLICE_SECONDS": "0"}
    subprocess.run([sys.executable, "-c", _TWO_LOOPS, kind], env=environment, cwd=ROOT, check=True, timeout=60)

    assert spine.settled_once(agent) == (2, 2_000)


_LOOPS_AT_ONCE = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
from daycap import AsyncWallet, CapExceeded
import uvloop
run = asyncio.run if sys.argv[1] == "asyncio" else uvloop.run
wallet = AsyncWallet.from_env()
spent = []
async def spend():
    try:
        hold = await wallet.reserve("agent-7", 50_000)
    except CapExceeded:
        return
    await asyncio.sleep(0)
    hold.finalize(50_000)
    spent.append(50_000)
async def spend_much():
    await asyncio.wait_for(asyncio.gather(*(spend() for _ in range(50))), 30)
with ThreadPoolExecutor() as threads:
    for each in [threads.submit(run, spend_much()) for _ in range(3)]:
        each.result()
assert run(wallet.close(20)) == ()
print(sum(spent))
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_loops_in_several_threads_share_a_wallet(spine: Spine, agent: str, kind: str) -> None:
    environment = {**os.environ, **spine.environment, "DAYCAP_SLICE_SECONDS": "0"}
    command = [sys.executable, "-c", _LOOPS_AT_ONCE, kind]
    spent = int(subprocess.check_output(command, env=environment, cwd=ROOT, timeout=60))

    assert spent == 5 * M
    assert spine.settled_once(agent) == (100, 5 * M)


def test_flush_and_close_leave_the_loop_its_turns(spine: Spine, agent: str, run: Run) -> None:
    async def main() -> None:
        wallet = wallet_of(spine)
        (await wallet.reserve(agent, 1_000)).finalize(1_000)
        spine.worker.container.kill("SIGSTOP")
        try:
            began, flushing, turns = time.monotonic(), asyncio.create_task(wallet.flush(0.5)), 0
            while not flushing.done():
                await asyncio.sleep(0.001)
                turns += 1
            assert len(await flushing) == 1
            assert time.monotonic() - began >= 0.5
            assert turns > 25
        finally:
            spine.worker.container.kill("SIGCONT")
        assert await wallet.close(20) == ()

    run(main())
