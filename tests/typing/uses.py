"""How daycap is used, for type checkers: mypy and pyright must agree with each line, also those marked as errors."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import assert_type

import httpx
import httpx2
import openai

from daycap import (
    AsyncHold,
    AsyncWallet,
    CapExceeded,
    DaycapError,
    Hold,
    InvalidAmount,
    Reading,
    Refused,
    Settings,
    Unavailable,
    Wallet,
    WalletStats,
    format_usd,
    usd,
)
from daycap.httpx_transport import AsyncMeteredTransport, MeteredTransport
from daycap.prices import Prices


def amounts() -> None:
    assert_type(usd("0.05"), int)
    assert_type(usd(5), int)
    assert_type(usd(Decimal("0.1")), int)
    assert_type(format_usd(1), str)
    usd(0.1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def threads(wallet: Wallet) -> None:
    with wallet.reserve("agent-7", usd("0.05")) as hold:
        assert_type(hold, Hold)
        assert_type(hold.held_micros, int)
        assert_type(hold.id, str)
        assert_type(hold.ended, bool)
        hold.actual = 31_200
        assert_type(hold.extend(1_000), None)
        hold.settle_part(500)
    hold.finalize(1)
    hold.release()
    hold.finalize(0.5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    wallet.reserve("agent-7")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    wallet.reserve("agent-7", 1, model="gpt-4o")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    assert_type(wallet.remaining("agent-7"), Reading)
    assert_type(wallet.spent("agent-7").micros, int)
    assert_type(wallet.spent("agent-7").tier, str)
    assert_type(wallet.flush(), tuple[str, ...])
    assert_type(wallet.close(timeout=1), tuple[str, ...])
    assert_type(wallet.stats(), WalletStats)
    assert_type(wallet.verify_identity_binding("agent-7", "did:web:example.com#7"), bool)


def made() -> None:
    assert_type(Wallet.from_env(), Wallet)
    assert_type(Wallet.from_env(caps={"agent-7": 1}, environ={}), Wallet)
    assert_type(Wallet.from_settings(Settings()), Wallet)
    assert_type(AsyncWallet.from_env(anchor="did:web:example.com#7"), AsyncWallet)


async def loop(wallet: AsyncWallet) -> None:
    with await wallet.reserve("agent-7", 50_000) as hold:
        assert_type(hold, AsyncHold)
        await hold.extend(1_000)
        hold.actual = 1
    assert_type(await wallet.spent("agent-7"), Reading)
    assert_type(await wallet.flush(1), tuple[str, ...])
    async with AsyncWallet.from_env() as another:
        assert_type(another, AsyncWallet)


def by_model(wallet: Wallet, prices: Prices) -> None:
    hold = wallet.reserve("agent-7", model="gpt-4o", input_tokens=1_200, max_output_tokens=500)
    assert_type(hold, Hold)
    hold.used({"prompt_tokens": 1_000, "completion_tokens": 10})
    hold.finalize(usage={"prompt_tokens": 1_000, "completion_tokens": 10})
    assert_type(prices.worst_case_micros("gpt-4o", input_tokens=1, max_output_tokens=1), int)
    assert_type(prices.actual_micros("gpt-4o", {"prompt_tokens": 1, "completion_tokens": 1}), int)


def metered(wallet: Wallet, of_loop: AsyncWallet) -> None:
    @wallet.metered("agent-7", 50_000, cost=len)
    def call(prompt: str, *, times: int = 1) -> str:
        return prompt * times

    @of_loop.metered(str, model="gpt-4o", input_tokens=1_200, max_output_tokens=500)
    async def chat(prompt: str) -> dict[str, int]:
        return {prompt: 1}

    assert_type(call("a", times=2), str)
    assert_type(asyncio.run(chat("a")), dict[str, int])
    call(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wallet.metered("agent-7")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def clients(wallet: Wallet, of_loop: AsyncWallet) -> None:
    openai.OpenAI(http_client=openai.DefaultHttpxClient(transport=MeteredTransport(wallet, "agent-7")))
    httpx.Client(transport=MeteredTransport(wallet, wrapped=httpx.HTTPTransport(), unmetered="pass"))
    httpx2.AsyncClient(transport=AsyncMeteredTransport(of_loop, lambda request: request.headers["x-user"]))
    MeteredTransport(of_loop)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def errors(wallet: Wallet) -> str:
    try:
        wallet.reserve("agent-7", 1)
    except CapExceeded as refused:
        assert_type(refused.agent, str)
        assert_type(refused.remaining_micros, int)
        assert_type(refused.day_ends_in_s, float)
        assert_type(refused.retry_after_s, float | None)
        return refused.day
    except (InvalidAmount, Refused, Unavailable, DaycapError) as error:
        return str(error)
    return ""
