"""What only an event loop's wallet can do wrong, without a server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from daycap import AsyncWallet, BudgetUnavailable
from tests.in_memory import CAP, Deployment

if TYPE_CHECKING:
    from daycap.lease import BaseHold


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
        wallet._keeper.renew(hand_back=True)

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
        with pytest.raises(BudgetUnavailable, match="nobody opened"):
            await wallet.reserve("agent-7", 10)
        counting.cancel()
        assert 2 <= deployment.counter.asked <= 60
        assert turns > 3
        await wallet.close()

    asyncio.run(main())
