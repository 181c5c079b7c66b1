"""Serve a web API that answers 402 when the caller's agent has spent its budget for the day.

.venv/bin/python examples/fastapi_endpoint.py         # calls itself, without a port
.venv/bin/uvicorn examples.fastapi_endpoint:app       # serves
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from daycap import AsyncWallet, BudgetUnavailable, CapExceeded, Refused, usd

CAPS = {"agent-7": usd("0.10")}


@asynccontextmanager
async def wallet_of_the_process(app: FastAPI) -> AsyncIterator[None]:
    """Create one wallet when the process starts; flush and close it when it ends."""
    async with AsyncWallet.from_env(caps=CAPS, environ={}) as wallet:
        app.state.wallet = wallet
        yield


app = FastAPI(lifespan=wallet_of_the_process)


@app.exception_handler(Refused)
async def refused(_: Request, error: Refused) -> JSONResponse:
    """Answer 402: the cap is reached, or the agent is paused or unknown. Retry-After says when a retry may help."""
    retry_after_s = error.retry_after_s if isinstance(error, CapExceeded) else None
    headers = {} if retry_after_s is None else {"Retry-After": str(ceil(retry_after_s))}
    return JSONResponse({"detail": str(error)}, status_code=402, headers=headers)


@app.exception_handler(BudgetUnavailable)
async def unavailable(_: Request, error: BudgetUnavailable) -> JSONResponse:
    """Answer 503: the budget could not be checked."""
    return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": "1"})


@app.post("/agents/{agent}/ask")
async def ask(agent: str, request: Request) -> dict[str, str | int]:
    """Answer a question from the agent's budget."""
    question = (await request.body()).decode()
    with await request.app.state.wallet.reserve(agent, usd("0.03")) as hold:
        answer, hold.actual = question.upper(), usd("0.025")  # Stands in for the model.
    return {"answer": answer, "cost_micros": hold.actual}


def main() -> None:
    with TestClient(app) as client:
        for number in range(6):
            reply = client.post("/agents/agent-7/ask", content=f"question {number}")
            print(reply.status_code, reply.json())
        print(client.post("/agents/nobody/ask", content="?").status_code)


if __name__ == "__main__":
    main()
