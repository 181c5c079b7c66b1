"""What only an event loop's wallet can do wrong, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from daycap import AsyncWallet, BudgetUnavailable, Wallet
from tests.in_memory import CAP, Deployment

if TYPE_CHECKING:
    from daycap.wallet.hold import BaseHold


async def reserve_at_once(wallet: AsyncWallet) -> None:
    """So that tasks wait for each other."""
    holds: list[BaseHold] = await asyncio.gather(*(wallet.reserve("agent-7", CAP // 4) for _ in range(4)))
    for hold in holds:
        hold.release()


def test_tasks_of_one_loop_after_the_other_wait_for_each_other() -> None:
    deployment = Deployment(AsyncWallet)
    wallet: AsyncWallet = deployment.wallet(slice_seconds=0)  # type: ignore[assignment]

    for _ in range(2):
        asyncio.run(reserve_at_once(wallet))
        wallet._renewer.renew(hand_back=True)

    asyncio.run(wallet.close())


def test_the_loop_has_its_turns_while_a_day_is_waited_for() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    async def main() -> None:
        deployment = Deployment(AsyncWallet)
        deployment.ledger.opens = False
        wallet: AsyncWallet = deployment.wallet(open_timeout_seconds=0.3)  # type: ignore[assignment]
        counting = asyncio.create_task(count())
        with pytest.raises(BudgetUnavailable, match="is not open in the counter"):
            await wallet.reserve("agent-7", 10)
        counting.cancel()
        assert 2 <= deployment.counter.asked <= 60
        assert turns > 3
        await wallet.close()

    asyncio.run(main())


@asynccontextmanager
async def something_else(info: bytes, answer: bytes) -> AsyncIterator[dict[str, str]]:
    """What speaks Redis' protocol, but is no counter: a proxy perhaps, or another one's script. Where it is."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (words := await reader.readline()) != b"":
            command = [await read_word(reader) for _ in range(int(words[1:]))]
            says = {b"INFO": b"$%d\r\n%s\r\n" % (len(info), info), b"EVALSHA": answer}
            writer.write(says.get(command[0], b"+OK\r\n"))
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        yield {"DAYCAP_REDIS_URL": url, "DAYCAP_BROKER_URL": "redis://127.0.0.1:1/0"}


async def read_word(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readexactly(int((await reader.readline())[1:]) + 2))[:-2]


@pytest.mark.parametrize(
    ("info", "answer"),
    [
        (b"redis_version:7\r\n", b"$-1\r\n"),
        (b"run_id:a\r\n", b"$-1\r\n"),
        (b"run_id:a\r\n", b"*2\r\n$3\r\nNEW\r\n:1\r\n"),
        (b"run_id:a\r\n", b"*4\r\n$2\r\nOK\r\n:1\r\n:1\r\n:1\r\n"),
    ],
)
def test_foreign_answer_is_unavailable_at_once(info: bytes, answer: bytes) -> None:
    async def main() -> None:
        async with something_else(info, answer) as environ:
            of_a_loop, of_threads = AsyncWallet.from_env(environ=environ), Wallet.from_env(environ=environ)
            says = "did not come from its script" if info.startswith(b"run_id") else "has no run_id"
            with pytest.raises(BudgetUnavailable, match=says):
                await asyncio.wait_for(of_a_loop.reserve("agent-7", 1), 5)
            with pytest.raises(BudgetUnavailable, match=says):
                await asyncio.to_thread(of_threads.reserve, "agent-7", 1)
            await of_a_loop.close(0)
            await asyncio.to_thread(of_threads.close, 0)

    asyncio.run(main())
