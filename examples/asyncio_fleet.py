"""Run a fleet of agents in one event loop, each with its own cap.

.venv/bin/python examples/asyncio_fleet.py
"""

from __future__ import annotations

import asyncio
import random

from daycap import AsyncWallet, CapExceeded, format_usd, usd

CAPS = {f"agent-{number}": usd("0.20") for number in range(20)}


async def work(wallet: AsyncWallet, agent: str) -> int:
    """Make calls until the day's budget is used up; return how many were made."""
    calls, dice = 0, random.Random(agent)
    while True:
        try:
            hold = await wallet.reserve(agent, usd("0.02"))
        except CapExceeded:
            return calls
        with hold:  # Always finalized: if the task is cancelled, with the whole hold.
            await asyncio.sleep(dice.random() / 500)
            hold.actual = dice.randint(usd("0.005"), usd("0.02"))
        calls += 1


async def main() -> None:
    async with AsyncWallet.from_env(caps=CAPS, environ={}) as wallet:
        calls = await asyncio.gather(*(work(wallet, agent) for agent in CAPS))
        await wallet.flush()
        for agent, count in zip(CAPS, calls, strict=True):
            spent = (await wallet.spent(agent)).micros
            print(f"{agent:<9} {count:3} calls  {format_usd(spent):>9} of {format_usd(CAPS[agent])}")


if __name__ == "__main__":
    asyncio.run(main())
