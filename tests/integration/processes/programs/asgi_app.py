"""A user's ASGI application: each request spends 1,000 micros of "agent-7", but not /ready.

At its end it closes its wallet.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from daycap import AsyncWallet

AGENT, COST = "agent-7", 1_000


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncWallet.from_env() as app.state.wallet:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/ready")
async def ready() -> None:
    pass


@app.get("/")
async def spend() -> int:
    with await app.state.wallet.reserve(AGENT, 2 * COST) as hold:
        hold.actual = COST
    return os.getpid()
