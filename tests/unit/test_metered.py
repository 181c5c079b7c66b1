"""The decorator: a hold around each call of a function."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from google.genai.types import GenerateContentResponse, GenerateContentResponseUsageMetadata

from daycap import AsyncWallet, CapExceeded, InvalidInput, Wallet
from daycap.prices import Prices

CAPS = {"agent-7": 100_000, "agent-8": 100_000}
CALL: dict[str, Any] = {"model": "gpt-4o", "input_tokens": 1_000, "max_output_tokens": 500}
USAGE = {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1_000}


class Answer:
    """As a client gives it."""

    usage = USAGE


@pytest.fixture
def wallet() -> Iterator[Wallet]:
    with Wallet.from_env(caps=CAPS, environ={}) as wallet:
        yield wallet


def spent(wallet: Wallet, agent: str = "agent-7") -> int:
    assert wallet.stats().live_holds == 0
    assert wallet.flush() == ()
    return wallet.spent(agent).micros


def test_a_functions_call_is_charged_by_its_results_cost(wallet: Wallet) -> None:
    @wallet.metered("agent-7", 50_000, cost=lambda answer: int(answer) * 10)
    def call(prompt: str, *, times: int = 1) -> str:
        """Ask it."""
        assert wallet.remaining("agent-7").micros == 50_000
        return prompt * times

    assert call("1", times=2) == "11"
    assert (call.__name__, call.__doc__) == ("call", "Ask it.")
    assert spent(wallet) == 110


@pytest.mark.parametrize("answer", [Answer(), {"usage": USAGE}])
def test_a_call_by_its_model_is_charged_by_its_results_usage(wallet: Wallet, answer: object) -> None:
    @wallet.metered("agent-7", **CALL)
    def call() -> object:
        return answer

    assert call() is answer
    assert spent(wallet) == Prices.default().actual_micros("gpt-4o", USAGE)


@pytest.mark.parametrize(
    ("said", "charged"),
    [
        ({"model": "gpt-4o-mini-2024-07-18"}, {"model": "gpt-4o-mini"}),
        ({"model_version": "gpt-4o-mini"}, {"model": "gpt-4o-mini"}),
        ({"model": "gpt-4o-2024-11-20"}, {"model": "gpt-4o"}),
        ({"service_tier": "priority"}, {"model": "gpt-4o", "service_tier": "priority"}),
    ],
)
def test_the_model_that_answered_is_charged(wallet: Wallet, said: Any, charged: Any) -> None:
    @wallet.metered("agent-7", **CALL)
    def call() -> object:
        return {"usage": USAGE, **said}

    async def in_loop() -> int:
        async with AsyncWallet.from_env(caps=CAPS, environ={}) as of_loop:

            @of_loop.metered("agent-7", **CALL)
            async def call() -> object:
                return {"usage": USAGE, **said}

            await call()
            assert await of_loop.flush() == ()
            return (await of_loop.spent("agent-7")).micros

    call()
    assert spent(wallet) == asyncio.run(in_loop()) == Prices.default().actual_micros(usage=USAGE, **charged)


def test_another_model_without_a_price_is_charged_in_full(wallet: Wallet) -> None:
    @wallet.metered("agent-7", **CALL)
    def call() -> object:
        return {"usage": USAGE, "model": "nobody's"}

    assert call() == {"usage": USAGE, "model": "nobody's"}
    assert spent(wallet) == Prices.default().worst_case_micros(**CALL)


@pytest.mark.parametrize("form", ["object", "fields", "json"])
def test_googles_answers_have_their_usage_by_another_name(wallet: Wallet, form: str) -> None:
    usage = GenerateContentResponseUsageMetadata(
        prompt_token_count=900, candidates_token_count=100, total_token_count=1_000
    )
    whole = GenerateContentResponse(usage_metadata=usage)
    answers = {"object": whole, "fields": whole.model_dump(), "json": whole.model_dump(mode="json", by_alias=True)}

    @wallet.metered("agent-7", model="gemini-2.5-flash", input_tokens=1_000, max_output_tokens=500)
    def call() -> object:
        return answers[form]

    assert call() is answers[form]
    assert spent(wallet) == Prices.default().actual_micros("gemini-2.5-flash", usage)


def test_the_agent_may_come_from_the_arguments(wallet: Wallet) -> None:
    @wallet.metered(lambda user, prompt: f"agent-{user}", 100)
    def call(user: int, prompt: str) -> str:
        return prompt

    call(8, "a")

    assert (spent(wallet), spent(wallet, "agent-8")) == (0, 100)


def test_missing_cost_charges_the_whole_hold(wallet: Wallet) -> None:
    @wallet.metered("agent-7", 1_000)
    def search() -> int:
        return 5

    @wallet.metered("agent-7", 1_000, cost=lambda _: 1)
    def fail() -> None:
        raise ConnectionError

    @wallet.metered("agent-7", **CALL)
    def stream() -> object:
        return object()

    search()
    assert spent(wallet) == 1_000
    with pytest.raises(ConnectionError):
        fail()
    assert spent(wallet) == 2_000
    # A result that does not say its usage is an error, as it is in a `with` block.
    with pytest.raises(InvalidInput):
        stream()
    assert spent(wallet) == 2_000 + Prices.default().worst_case_micros(**CALL)


def test_a_refused_call_is_not_made(wallet: Wallet) -> None:
    @wallet.metered("agent-7", 100_001)
    def call() -> None:
        pytest.fail("it was made")

    with pytest.raises(CapExceeded):
        call()


def test_what_is_not_over_when_it_returns_cannot_be_metered(wallet: Wallet) -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    async def coroutine() -> int:
        return 1

    async def main() -> None:
        async with AsyncWallet.from_env(caps=CAPS, environ={}) as of_loop:
            for function in (generator, async_generator, lambda: 1):
                with pytest.raises(InvalidInput, match="metered"):
                    of_loop.metered("agent-7", 1)(function)  # type: ignore[arg-type]

    for function in (generator, async_generator, coroutine):
        with pytest.raises(InvalidInput, match="metered"):
            wallet.metered("agent-7", 1)(function)
    asyncio.run(main())


def test_the_event_loops_wallet_does_the_same() -> None:
    async def main() -> None:
        async with AsyncWallet.from_env(caps=CAPS, environ={}) as wallet:

            @wallet.metered("agent-7", 50_000, cost=len)
            async def call(prompt: str) -> str:
                await asyncio.sleep(0)
                return prompt

            @wallet.metered("agent-7", 1_000)
            async def hang(begun: asyncio.Event) -> None:
                begun.set()
                await asyncio.sleep(3600)

            assert await call("four") == "four"
            begun = asyncio.Event()
            task = asyncio.create_task(hang(begun))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            assert await wallet.flush() == ()
            assert (await wallet.spent("agent-7")).micros == 1_004

    asyncio.run(main())
