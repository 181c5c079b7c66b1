"""The real client packages of OpenAI and Anthropic through the metered transports, against a server on 127.0.0.1."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from daycap import AsyncWallet, CapExceeded, InvalidInput, UnknownModel, Wallet
from daycap.httpx_transport import AGENT_HEADER, LABELS_HEADER, AsyncMeteredTransport, MeteredTransport
from daycap.prices import Prices
from tests.provider import answer, stream

if TYPE_CHECKING:
    from tests.provider import Provider
    from tests.spine import Spine

CAP = 1_000_000
CAPS = {"agent-7": CAP, "agent-8": CAP}
MESSAGES: Any = [{"role": "user", "content": "Say this is a test"}]
CHAT: Any = {"model": "gpt-4o", "messages": MESSAGES, "max_completion_tokens": 100}
MESSAGE: Any = {"model": "claude-opus-5", "messages": MESSAGES, "max_tokens": 100}

CHAT_USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
CHAT_MICROS = 12 * 2.5 + 7 * 10
CHAT_ANSWER: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ja"}, "finish_reason": "stop"}],
    "usage": CHAT_USAGE,
}
MESSAGE_USAGE = {"input_tokens": 12, "output_tokens": 7}
MESSAGE_MICROS = 12 * 5 + 7 * 25
MESSAGE_ANSWER = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5",
    "content": [{"type": "text", "text": "ja"}],
    "stop_reason": "end_turn",
    "usage": MESSAGE_USAGE,
}
RESPONSE_ANSWER = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "model": "gpt-4o",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 19,
    },
}


def chunk(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [], **fields}


WORD = chunk(choices=[{"index": 0, "delta": {"content": "ja"}, "finish_reason": None}])
CHAT_EVENTS = [WORD, WORD, chunk(usage=CHAT_USAGE), "[DONE]"]
MESSAGE_EVENTS = [
    {
        "type": "message_start",
        "message": {**MESSAGE_ANSWER, "content": [], "usage": {"input_tokens": 12, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ja"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]
RESPONSE_EVENTS = [
    {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE_ANSWER, "usage": None}},
    {"type": "response.completed", "sequence_number": 1, "response": RESPONSE_ANSWER},
]


@pytest.fixture
def wallet() -> Iterator[Wallet]:
    with Wallet.from_env(caps=CAPS, environ={}) as wallet:
        yield wallet


@contextmanager
def openai_of(
    server: Provider, wallet: Wallet, agent: Any = "agent-7", *, retries: int = 0, timeout: Any = 20.0, **meter: Any
) -> Iterator[openai.OpenAI]:
    http_client = openai.DefaultHttpxClient(transport=MeteredTransport(wallet, agent, **meter))
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="k", http_client=http_client, max_retries=retries, timeout=timeout
    ) as client:
        yield client


@contextmanager
def anthropic_of(server: Provider, wallet: Wallet, retries: int = 0, **meter: Any) -> Iterator[anthropic.Anthropic]:
    http_client = anthropic.DefaultHttpxClient(transport=MeteredTransport(wallet, "agent-7", **meter))
    with anthropic.Anthropic(base_url=server.url, api_key="k", http_client=http_client, max_retries=retries) as client:
        yield client


@asynccontextmanager
async def loop_of(
    provider: Provider, cap_micros: int = CAP
) -> AsyncIterator[tuple[AsyncWallet, openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    """A wallet of an event loop, and both clients through it."""
    async with AsyncWallet.from_env(caps={"agent-7": cap_micros}, environ={}) as wallet:

        def transport() -> AsyncMeteredTransport:
            return AsyncMeteredTransport(wallet, "agent-7")

        async with (
            openai.AsyncOpenAI(
                base_url=f"{provider.url}/v1",
                api_key="k",
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(transport=transport()),
            ) as of_openai,
            anthropic.AsyncAnthropic(
                base_url=provider.url,
                api_key="k",
                max_retries=0,
                http_client=anthropic.DefaultAsyncHttpxClient(transport=transport()),
            ) as of_anthropic,
        ):
            yield wallet, of_openai, of_anthropic


def spent(wallet: Wallet, agent: str = "agent-7") -> int:
    """What was charged, once it is sure that nothing is held any more."""
    assert wallet.stats().live_holds == 0
    assert wallet.flush() == ()
    return wallet.spent(agent).micros


async def loop_spent(wallet: AsyncWallet) -> int:
    assert wallet.stats().live_holds == 0
    assert await wallet.flush() == ()
    return (await wallet.spent("agent-7")).micros


def most(provider: Provider, model: str = "gpt-4o") -> int:
    """The worst case of the last request."""
    return Prices.default().worst_case_micros(
        model, input_tokens=len(provider.asked[-1][1]) + 64, max_output_tokens=100
    )


BUDGETS: dict[str, dict[str, str]] = {
    "big": {"model": "gpt-4o*"},
    "claude": {"model": "claude-*"},
    "tool": {"tool": "search"},
    "team": {"team": "red"},
}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A ledger with an agent and budgets for labels, all of them full."""
    environ = {"DAYCAP_LEDGER_URL": f"sqlite:///{tmp_path / 'spend.db'}"}
    with Wallet.from_env(environ=environ) as wallet:
        wallet.add_agent("agent-7", CAP)
        for name, labels in BUDGETS.items():
            wallet.add_budget(name, 1, agent="agent-7", labels=labels)
    return environ


def refused(error: CapExceeded) -> list[str]:
    return sorted(str(full.budget).partition("/")[0] for full in error.full)


def test_labels_choose_the_budgets(provider: Provider, environ: dict[str, str]) -> None:
    mini = {**CHAT, "model": "o3"}
    provider.answers = [answer(200, {**CHAT_ANSWER, "model": "o3"})]
    with Wallet.from_env(environ=environ) as wallet:
        of_request: Any = {"labels": lambda request: {"team": "red" if b"o3" in request.content else "blue"}}
        deployed: Any = {"models": {"ours": "gpt-4o"}}
        for meter, call, labels, full in (
            ({}, CHAT, "", ["big"]),
            ({}, mini, "tool=search", ["tool"]),
            ({}, mini, " tool = mail , team=red,", ["team"]),
            ({"labels": {"team": "red"}}, mini, "", ["team"]),
            ({"labels": {"team": "red"}}, mini, "tool=search", ["team", "tool"]),
            (of_request, mini, "", ["team"]),
            (of_request, CHAT, "", ["big"]),
            (deployed, {**CHAT, "model": "ours"}, "", ["big"]),
        ):
            with openai_of(provider, wallet, **meter) as client, pytest.raises(CapExceeded) as found:
                client.chat.completions.create(**call, extra_headers={LABELS_HEADER: labels} if labels else {})
            assert refused(found.value) == full
        with anthropic_of(provider, wallet) as of_anthropic, pytest.raises(CapExceeded) as found:
            of_anthropic.messages.create(**MESSAGE)
        assert refused(found.value) == ["claude"]
        with openai_of(provider, wallet, labels={"team": "red"}) as client:
            for bad in ("tool", "tool=a,tool=b", "Tool=a", "tool="):
                with pytest.raises(InvalidInput):
                    client.chat.completions.create(**mini, extra_headers={LABELS_HEADER: bad})
            assert provider.asked == []
            client.chat.completions.create(**mini, extra_headers={LABELS_HEADER: "team=blue,tool=mail"})
        ((headers, _),) = provider.asked
        assert LABELS_HEADER.lower() not in headers
        assert spent(wallet) > 0
        with pytest.raises(InvalidInput):
            MeteredTransport(wallet, labels={"Tool": "x"})


def test_labels_in_an_event_loop(provider: Provider, environ: dict[str, str]) -> None:
    async def run() -> None:
        async with AsyncWallet.from_env(environ=environ) as wallet:
            transport = AsyncMeteredTransport(wallet, "agent-7", labels={"team": "red"})
            http_client = openai.DefaultAsyncHttpxClient(transport=transport)
            async with openai.AsyncOpenAI(
                base_url=f"{provider.url}/v1", api_key="k", http_client=http_client
            ) as client:
                with pytest.raises(CapExceeded) as found:
                    await client.chat.completions.create(**CHAT, extra_headers={LABELS_HEADER: "tool=search"})
            assert refused(found.value) == ["big", "team", "tool"]

    asyncio.run(run())
    assert provider.asked == []


def test_each_kind_of_call_is_charged_by_the_usage_in_its_answer(provider: Provider, wallet: Wallet) -> None:
    with openai_of(provider, wallet) as of_openai, anthropic_of(provider, wallet) as of_anthropic:
        provider.answers = [answer(200, CHAT_ANSWER)]
        assert of_openai.chat.completions.create(**CHAT).choices[0].message.content == "ja"
        assert spent(wallet) == CHAT_MICROS

        provider.answers = [answer(200, RESPONSE_ANSWER)]
        of_openai.responses.create(model="gpt-4o", input="hello", max_output_tokens=100)
        assert spent(wallet) == 2 * CHAT_MICROS

        provider.answers = [answer(200, MESSAGE_ANSWER)]
        of_anthropic.messages.create(**MESSAGE)
        assert spent(wallet) == 2 * CHAT_MICROS + MESSAGE_MICROS

        embedding = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
        used = {"model": "text-embedding-3-small", "usage": {"prompt_tokens": 100, "total_tokens": 100}}
        provider.answers = [answer(200, {**embedding, **used})]
        with openai_of(provider, wallet, provider="openai") as told:
            told.embeddings.create(model="text-embedding-3-small", input="hello", encoding_format="float")
        assert spent(wallet) == 2 * CHAT_MICROS + MESSAGE_MICROS + 2


def test_the_worst_case_is_held_while_the_call_is_under_way(provider: Provider, wallet: Wallet) -> None:
    held = []

    def look(handler: BaseHTTPRequestHandler) -> None:
        held.append(CAP - wallet.remaining("agent-7").micros)
        answer(200, CHAT_ANSWER)(handler)

    provider.answers = [look]
    with openai_of(provider, wallet) as client:
        client.chat.completions.create(**CHAT, n=3)

    expected = Prices.default().worst_case_micros(
        "gpt-4o", input_tokens=len(provider.asked[0][1]) + 64, max_output_tokens=300
    )
    assert held == [expected]


def test_streams_pass_unchanged_and_are_charged_by_their_last_usage(provider: Provider, wallet: Wallet) -> None:
    with openai_of(provider, wallet) as of_openai, anthropic_of(provider, wallet) as of_anthropic:
        provider.answers = [stream(CHAT_EVENTS)]
        chunks = list(of_openai.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
        assert [len(each.choices) for each in chunks] == [1, 1, 0]
        assert spent(wallet) == CHAT_MICROS

        provider.answers = [stream(RESPONSE_EVENTS)]
        assert len(list(of_openai.responses.create(model="gpt-4o", input="a", max_output_tokens=100, stream=True))) == 2
        assert spent(wallet) == 2 * CHAT_MICROS

        provider.answers = [stream(MESSAGE_EVENTS)]
        assert len(list(of_anthropic.messages.create(**MESSAGE, stream=True))) == 6
        assert spent(wallet) == 2 * CHAT_MICROS + MESSAGE_MICROS

        with of_anthropic.messages.stream(**MESSAGE) as text:
            assert "".join(text.text_stream) == "ja"
        assert spent(wallet) == 2 * CHAT_MICROS + 2 * MESSAGE_MICROS


def test_stream_without_usage_is_charged_in_full(provider: Provider, wallet: Wallet) -> None:
    provider.answers = [stream([WORD, "[DONE]"])]
    with openai_of(provider, wallet) as client:
        list(client.chat.completions.create(**CHAT, stream=True))

    assert spent(wallet) == most(provider)


def test_abandoned_stream_is_charged_in_full(provider: Provider, wallet: Wallet) -> None:
    provider.answers = [stream(MESSAGE_EVENTS)]
    with anthropic_of(provider, wallet) as client:
        with client.messages.create(**MESSAGE, stream=True) as events:
            assert next(iter(events)).type == "message_start"
        given_up = most(provider, "claude-opus-5")
        assert spent(wallet) == given_up

        provider.answers = [stream(MESSAGE_EVENTS[:4], broken=True)]
        with pytest.raises(Exception, match="incomplete chunked read"):
            list(client.messages.create(**MESSAGE, stream=True))
        assert spent(wallet) == 2 * given_up

        # One that ends without its last event has not said all that it used.
        provider.answers = [stream(MESSAGE_EVENTS[:1])]
        list(client.messages.create(**MESSAGE, stream=True))
        assert spent(wallet) == 3 * given_up


@pytest.mark.parametrize("retries", [0, 3])
def test_refused_request_is_not_sent(provider: Provider, retries: int) -> None:
    with Wallet.from_env(caps={"agent-7": 10}, environ={}) as wallet:
        with openai_of(provider, wallet, retries=retries) as of_openai, pytest.raises(CapExceeded) as refused:
            of_openai.chat.completions.create(**CHAT)
        assert (refused.value.agent, refused.value.cap_micros) == ("agent-7", 10)
        assert (type(refused.value).__name__, type(refused.value).__module__) == ("CapExceeded", "daycap.errors")
        # Nobody tried again, and nothing wraps it: for each client it is one of its own errors.
        assert isinstance(refused.value, openai.OpenAIError)
        assert refused.value.__cause__ is None

        with anthropic_of(provider, wallet, retries) as of_anthropic, pytest.raises(CapExceeded) as refused:
            of_anthropic.messages.create(**MESSAGE)
        assert isinstance(refused.value, anthropic.AnthropicError)
    assert provider.asked == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"model": "gpt-4o", "messages": MESSAGES}, "max_output_tokens"),
        ({**CHAT, "n": 2.5}, "counts"),
        ({**CHAT, "max_completion_tokens": -1}, "counts"),
        ({**CHAT, "tools": [{"type": "web_search"}]}, "web_search"),
        ({**CHAT, "web_search_options": {}}, "web_search_options"),
        ({**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({**CHAT, "messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "audio"),
        ({**CHAT, "model": "nobody's"}, "no price"),
    ],
)
def test_a_call_without_a_bound_or_a_price_is_refused(
    provider: Provider, wallet: Wallet, call: Any, message: str
) -> None:
    with openai_of(provider, wallet, retries=2) as client, pytest.raises((InvalidInput, UnknownModel), match=message):
        client.chat.completions.create(**call)

    assert (provider.asked, spent(wallet)) == ([], 0)


def test_bounds_may_be_given_to_the_transport(provider: Provider, wallet: Wallet) -> None:
    provider.answers = [answer(500, {})]
    call: Any = {"model": "gpt-4o", "input": "go on", "previous_response_id": "r"}
    with (
        openai_of(provider, wallet, max_output_tokens=100, count_tokens=lambda body: len(body) * 100) as client,
        pytest.raises(openai.InternalServerError),
    ):
        client.responses.create(**call)

    bound = Prices.default().worst_case_micros("gpt-4o", input_tokens=300, max_output_tokens=100)
    assert spent(wallet) == bound


def test_the_prices_of_a_service_tier_are_held_and_charged(provider: Provider, wallet: Wallet) -> None:
    provider.answers = [answer(200, {**CHAT_ANSWER, "service_tier": "priority"})]
    with openai_of(provider, wallet) as client:
        client.chat.completions.create(**CHAT, service_tier="priority")

    assert spent(wallet) == Prices.default().actual_micros("gpt-4o", CHAT_USAGE, service_tier="priority")
    assert spent(wallet) > CHAT_MICROS


@pytest.mark.parametrize(
    ("asked", "said", "charged"),
    [
        ("priority", {"service_tier": "default"}, ""),
        ("priority", {}, "priority"),
        ("flex", {"service_tier": "default"}, ""),
        ("flex", {"service_tier": "flex"}, "flex"),
        ("flex", {}, ""),
    ],
)
def test_call_is_charged_at_its_served_tier(
    provider: Provider, wallet: Wallet, asked: Any, said: dict[str, str], charged: str
) -> None:
    provider.answers = [answer(200, {**CHAT_ANSWER, "model": "gpt-5", **said})]
    with openai_of(provider, wallet) as client:
        client.chat.completions.create(**{**CHAT, "model": "gpt-5"}, service_tier=asked)

    assert spent(wallet) == Prices.default().actual_micros("gpt-5", CHAT_USAGE, service_tier=charged)


@pytest.mark.parametrize("said", [{"speed": "standard"}, {"speed": "fast"}, {}])
def test_a_fast_call_costs_what_it_was_served_at(provider: Provider, wallet: Wallet, said: dict[str, str]) -> None:
    provider.answers = [answer(200, {**MESSAGE_ANSWER, "usage": {**MESSAGE_USAGE, **said}})]
    with anthropic_of(provider, wallet) as client:
        client.messages.create(**MESSAGE, speed="fast")

    assert spent(wallet) == MESSAGE_MICROS * (1 if said == {"speed": "standard"} else 2)


def test_tries_that_fail_are_a_hold_each(provider: Provider, wallet: Wallet) -> None:
    # Given a provider that fails, has no time, fails, and answers
    late = {"retry-after-ms": "1"}
    provider.answers = [answer(500, {}, **late), answer(429, {}, **late), answer(503, {}, **late)]
    provider.answers.append(answer(200, CHAT_ANSWER))
    with openai_of(provider, wallet, retries=3) as client:
        client.chat.completions.create(**CHAT)

    # Then what may have been billed is charged in full, what was turned away is not
    assert len(provider.asked) == 4
    assert spent(wallet) == 2 * most(provider) + CHAT_MICROS


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429])
def test_what_the_provider_turns_away_costs_nothing(provider: Provider, wallet: Wallet, status: int) -> None:
    provider.answers = [answer(status, {"error": {"message": "no"}})]
    with openai_of(provider, wallet) as client:
        for streamed in (False, True):
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(**CHAT, stream=streamed)

    assert spent(wallet) == 0


@pytest.mark.parametrize(
    ("status", "error"), [(400, {"code": "content_filter"}), (408, {}), (409, {}), (500, {}), (529, {})]
)
def test_what_may_have_been_billed_is_charged_in_full(
    provider: Provider, wallet: Wallet, status: int, error: dict[str, str]
) -> None:
    provider.answers = [answer(status, {"error": error})]
    with openai_of(provider, wallet) as client, pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**CHAT)

    assert spent(wallet) == most(provider)


def test_a_400_that_nobody_read_may_have_been_billed(provider: Provider, wallet: Wallet) -> None:
    provider.answers = [answer(400, {"error": {"code": "content_filter"}})]
    transport = MeteredTransport(wallet, "agent-7")
    with (
        httpx2.Client(transport=transport) as client,
        client.stream("POST", f"{provider.url}/v1/chat/completions", json=CHAT),
    ):
        pass

    assert spent(wallet) == most(provider)


def test_timeout_is_charged_but_no_connection_is_free(provider: Provider, wallet: Wallet) -> None:
    provider.answers = [provider.never]
    with openai_of(provider, wallet, timeout=httpx2.Timeout(20, read=0.2)) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**CHAT)
        charged = most(provider)
        assert spent(wallet) == charged

        with pytest.raises(openai.APIConnectionError):
            client.with_options(base_url="http://127.0.0.1:1/v1").chat.completions.create(**CHAT)
        assert spent(wallet) == charged


def test_a_call_is_its_headers_agents_and_the_provider_does_not_see_it(provider: Provider, wallet: Wallet) -> None:
    provider.answers = [answer(200, CHAT_ANSWER)]
    with openai_of(provider, wallet, lambda request: request.headers["x-user"]) as client:
        client.chat.completions.create(**CHAT, extra_headers={"x-user": "agent-7"})
        client.chat.completions.create(**CHAT, extra_headers={AGENT_HEADER: "agent-8"})
    assert (spent(wallet), spent(wallet, "agent-8")) == (CHAT_MICROS, CHAT_MICROS)
    assert not any(AGENT_HEADER.lower() in headers for headers, _ in provider.asked)
    # What is compressed could not be read as it passes by.
    assert {headers["accept-encoding"] for headers, _ in provider.asked} == {"identity"}

    with openai_of(provider, wallet, None) as client, pytest.raises(InvalidInput, match="no agent"):
        client.chat.completions.create(**CHAT)


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_call_that_is_redirected_stays_its_headers_agents(provider: Provider, wallet: Wallet, library: Any) -> None:
    provider.answers = [answer(307, {}, location="/v2/chat/completions"), answer(200, CHAT_ANSWER)]
    with library.Client(transport=MeteredTransport(wallet, "agent-7"), follow_redirects=True) as client:
        client.post(f"{provider.url}/v1/chat/completions", json=CHAT, headers={AGENT_HEADER: "agent-8"})

    assert (spent(wallet), spent(wallet, "agent-8")) == (0, CHAT_MICROS)
    assert not any(AGENT_HEADER.lower() in headers for headers, _ in provider.asked)


def test_what_cannot_be_metered_is_refused_unless_it_may_pass(provider: Provider, wallet: Wallet) -> None:
    provider.answers = [answer(200, {"input_tokens": 3, "created": 1, "data": []})]
    with openai_of(provider, wallet) as client, anthropic_of(provider, wallet) as of_anthropic:
        # What costs nothing passes.
        assert list(client.models.list()) == []
        assert of_anthropic.messages.count_tokens(model="claude-opus-5", messages=MESSAGES).input_tokens == 3
        with pytest.raises(InvalidInput, match="images/generations cannot be metered"):
            client.images.generate(prompt="a cap", model="gpt-image-1")
    with openai_of(provider, wallet, unmetered="pass") as client:
        client.images.generate(prompt="a cap", model="gpt-image-1")

    assert spent(wallet) == 0


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_the_client_may_be_of_httpx_or_of_httpx2(provider: Provider, wallet: Wallet, library: Any) -> None:
    async def in_loop() -> int:
        async with AsyncWallet.from_env(caps=CAPS, environ={}) as of_loop:
            async with library.AsyncClient(transport=AsyncMeteredTransport(of_loop, "agent-7")) as client:
                assert (await client.post(f"{provider.url}/v1/chat/completions", json=CHAT)).json() == CHAT_ANSWER
            return await loop_spent(of_loop)

    provider.answers = [answer(200, CHAT_ANSWER)]
    with library.Client(transport=MeteredTransport(wallet, "agent-7")) as client:
        assert client.post(f"{provider.url}/v1/chat/completions", json=CHAT).json() == CHAT_ANSWER

    assert spent(wallet) == CHAT_MICROS
    assert asyncio.run(in_loop()) == CHAT_MICROS


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_answer_read_below_is_charged(wallet: Wallet, library: Any) -> None:
    events = "".join(f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n" for each in CHAT_EVENTS)
    answers = [
        library.Response(200, json=CHAT_ANSWER),
        library.Response(200, text=events, headers={"content-type": "text/event-stream"}),
        library.Response(429, json={}),
    ]
    transport = MeteredTransport(wallet, "agent-7", wrapped=library.MockTransport(lambda _: answers.pop(0)))
    with library.Client(transport=transport) as client:
        for charged in CHAT_MICROS, 2 * CHAT_MICROS, 2 * CHAT_MICROS:
            client.post("http://127.0.0.1/v1/chat/completions", json=CHAT)
            assert spent(wallet) == charged


@pytest.mark.parametrize(
    ("url", "model", "bill"),
    [
        ("https://openrouter.ai/api/v1", "openai/gpt-4o", {"cost": 0.016062}),
        ("https://api.x.ai/v1", "grok-4", {"cost_in_usd_ticks": 160_620_000}),
    ],
)
def test_the_bill_of_the_urls_provider_is_charged(wallet: Wallet, url: str, model: str, bill: dict[str, Any]) -> None:
    said = {**CHAT_ANSWER, "model": model, "usage": {**CHAT_ANSWER["usage"], **bill}}
    wrapped = httpx2.MockTransport(lambda _: httpx2.Response(200, json=said))
    with httpx2.Client(transport=MeteredTransport(wallet, "agent-7", wrapped=wrapped)) as client:
        client.post(f"{url}/chat/completions", json={**CHAT, "model": model})

    assert spent(wallet) == 16_062


def test_an_answer_that_was_closed_below_is_charged_in_full(provider: Provider, wallet: Wallet) -> None:
    class Closes(httpx2.HTTPTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            response = super().handle_request(request)
            response.close()
            return response

    provider.answers = [answer(200, CHAT_ANSWER)]
    with (
        httpx2.Client(transport=MeteredTransport(wallet, "agent-7", wrapped=Closes())) as client,
        client.stream("POST", f"{provider.url}/v1/chat/completions", json=CHAT),
    ):
        assert spent(wallet) == most(provider)


def test_an_event_loops_answer_that_was_read_below_is_charged() -> None:
    async def main() -> None:
        async with AsyncWallet.from_env(caps=CAPS, environ={}) as wallet:
            made_up = httpx2.MockTransport(lambda _: httpx2.Response(200, json=CHAT_ANSWER))
            transport = AsyncMeteredTransport(wallet, "agent-7", wrapped=made_up)
            async with httpx2.AsyncClient(transport=transport) as client:
                await client.post("http://127.0.0.1/v1/chat/completions", json=CHAT)
            assert await loop_spent(wallet) == CHAT_MICROS

    asyncio.run(main())


def test_calls_and_streams_of_an_event_loop_are_charged_by_their_usage(provider: Provider) -> None:
    async def main() -> int:
        async with loop_of(provider) as (wallet, of_openai, of_anthropic):
            provider.answers = [answer(200, CHAT_ANSWER)]
            await of_openai.chat.completions.create(**CHAT)
            assert await loop_spent(wallet) == CHAT_MICROS

            provider.answers = [stream(MESSAGE_EVENTS)]
            async with of_anthropic.messages.stream(**MESSAGE) as events:
                assert await events.get_final_text() == "ja"
            return await loop_spent(wallet)

    assert asyncio.run(main()) == CHAT_MICROS + MESSAGE_MICROS


def test_abandoned_async_stream_is_charged_in_full(provider: Provider) -> None:
    async def main() -> int:
        async with loop_of(provider) as (wallet, of_openai, _):
            provider.answers = [stream(CHAT_EVENTS)]
            async with await of_openai.chat.completions.create(**CHAT, stream=True) as chunks:
                await anext(aiter(chunks))
            return await loop_spent(wallet)

    assert asyncio.run(main()) == most(provider)


def test_cancelled_task_is_charged_in_full(provider: Provider) -> None:
    async def main() -> int:
        async with loop_of(provider) as (wallet, of_openai, _):
            asked = asyncio.Event()
            loop = asyncio.get_running_loop()

            def wait(handler: BaseHTTPRequestHandler) -> None:
                loop.call_soon_threadsafe(asked.set)
                provider.never(handler)

            provider.answers = [wait]
            task = asyncio.create_task(of_openai.chat.completions.create(**CHAT))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await loop_spent(wallet)

    assert asyncio.run(main()) == most(provider)


def test_an_event_loops_refused_calls_reach_the_caller(provider: Provider) -> None:
    async def main() -> None:
        async with loop_of(provider, cap_micros=10) as (_, of_openai, of_anthropic):
            with pytest.raises(CapExceeded):
                await of_openai.chat.completions.create(**CHAT)
            with pytest.raises(CapExceeded):
                await of_anthropic.with_options(max_retries=3).messages.create(**MESSAGE)

    asyncio.run(main())
    assert provider.asked == []


def test_a_request_that_is_streamed_is_read_before_it_is_held_for(provider: Provider, wallet: Wallet) -> None:
    body = json.dumps(CHAT).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    async def in_loop() -> int:
        async with AsyncWallet.from_env(caps=CAPS, environ={}) as of_loop:
            async with httpx2.AsyncClient(transport=AsyncMeteredTransport(of_loop, "agent-7")) as client:
                await client.post(url, content=pieces(), headers=length)
            return await loop_spent(of_loop)

    provider.answers = [answer(200, CHAT_ANSWER)]
    url, length = f"{provider.url}/v1/chat/completions", {"content-length": str(len(body))}
    with httpx2.Client(transport=MeteredTransport(wallet, "agent-7")) as client:
        client.post(url, content=iter([body]), headers=length)

    assert spent(wallet) == CHAT_MICROS
    assert asyncio.run(in_loop()) == CHAT_MICROS
    assert [asked for _, asked in provider.asked] == [body, body]


def test_unclosed_stream_is_charged_at_its_end(provider: Provider, wallet: Wallet) -> None:
    provider.answers = [stream(CHAT_EVENTS)]
    url = f"{provider.url}/v1/chat/completions"
    with (
        httpx2.Client(transport=MeteredTransport(wallet, "agent-7")) as client,
        client.stream("POST", url, json={**CHAT, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        while next(lines) != "data: [DONE]":
            pass
        assert wallet.stats().live_holds == 0
    assert spent(wallet) == CHAT_MICROS


def test_what_costs_nothing_passes_in_an_event_loop_too(provider: Provider) -> None:
    async def main() -> int:
        async with loop_of(provider) as (wallet, of_openai, _):
            assert [model async for model in of_openai.models.list()] == []
            return await loop_spent(wallet)

    assert asyncio.run(main()) == 0


class Closed(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """An answer without a network, that says whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield b"{"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"{"

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def test_abandoned_answer_is_closed_below(wallet: Wallet) -> None:
    said = Closed()
    wrapped = httpx2.MockTransport(lambda _: httpx2.Response(200, stream=said))
    url = "http://127.0.0.1/v1/chat/completions"

    async def in_loop() -> None:
        async with AsyncWallet.from_env(caps=CAPS, environ={}) as of_loop:
            async with (
                AsyncMeteredTransport(of_loop, "agent-7", wrapped=wrapped) as metered,
                httpx2.AsyncClient(transport=metered).stream("POST", url, json=CHAT),
            ):
                pass
            assert of_loop.stats().live_holds == 0

    with (
        MeteredTransport(wallet, "agent-7", wrapped=wrapped) as metered,
        httpx2.Client(transport=metered).stream("POST", url, json=CHAT),
    ):
        pass
    assert said.closed
    assert wallet.stats().live_holds == 0

    said.closed = False
    asyncio.run(in_loop())
    assert said.closed


def test_many_calls_at_once_stay_inside_a_small_cap_in_the_ledger(provider: Provider, spine: Spine) -> None:
    # Given a cap of twenty calls' cost, and calls that hold some twelve times as much as they cost
    cap = 20 * int(CHAT_MICROS)
    agent = spine.add("small", cap)
    wallet = spine.wallet(slice_seconds=0)
    provider.answers = [answer(200, CHAT_ANSWER)]

    def call(client: openai.OpenAI) -> bool:
        try:
            client.chat.completions.create(**CHAT)
        except CapExceeded:
            return False
        return True

    # When many threads make as many calls as they may
    with openai_of(provider, wallet, agent) as client, ThreadPoolExecutor(8) as threads:
        made = sum(threads.map(call, [client] * 100))

    # Then each is charged once, and the cap is kept
    assert wallet.flush(20) == ()
    assert len(provider.asked) == made
    assert spine.settled_once(agent) == (made, made * CHAT_MICROS)
    assert 0 < made * CHAT_MICROS <= cap


def test_many_tasks_at_once_stay_inside_a_small_cap_in_the_ledger(provider: Provider, spine: Spine) -> None:
    # Given a cap of twenty calls' cost, and calls that hold some twelve times as much as they cost
    cap = 20 * int(CHAT_MICROS)
    agent = spine.add("small", cap)
    provider.answers = [answer(200, CHAT_ANSWER)]

    async def call(client: openai.AsyncOpenAI) -> bool:
        try:
            await client.chat.completions.create(**CHAT)
        except CapExceeded:
            return False
        return True

    # When many tasks make as many calls as they may
    async def main() -> int:
        async with AsyncWallet.from_env(environ={**spine.environment, "DAYCAP_SLICE_SECONDS": "0"}) as wallet:
            http_client = openai.DefaultAsyncHttpxClient(transport=AsyncMeteredTransport(wallet, agent))
            async with openai.AsyncOpenAI(
                base_url=f"{provider.url}/v1", api_key="k", http_client=http_client, max_retries=0
            ) as client:
                made = sum([ok for _ in range(5) for ok in await asyncio.gather(*(call(client) for _ in range(20)))])
            assert await wallet.flush(20) == ()
            return made

    # Then each is charged once, and the cap is kept
    made = asyncio.run(main())
    assert len(provider.asked) == made
    assert spine.settled_once(agent) == (made, made * CHAT_MICROS)
    assert 0 < made * CHAT_MICROS <= cap


def test_threads_that_begin_at_once_share_one_transport(
    provider: Provider, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a transport whose first call makes the one that sends, and meanwhile a second call begins
    provider.answers = [answer(200, CHAT_ANSWER)]
    metered = MeteredTransport(wallet, "agent-7")
    client = httpx2.Client(transport=metered)
    made: list[httpx2.HTTPTransport] = []
    second_is_there, make = threading.Event(), httpx2.HTTPTransport
    threads = ThreadPoolExecutor(1)
    second = []

    class Making:
        """The transport's own lock, and who comes to it."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._came = 0

        def __enter__(self) -> None:
            self._came += 1
            if self._came == 2:
                second_is_there.set()
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    def begin_another() -> httpx2.HTTPTransport:
        made.append(make())
        if len(made) == 1:
            second.append(threads.submit(client.post, f"{provider.url}/v1/chat/completions", json=CHAT))
            second_is_there.wait(10)
        return made[-1]

    metered._creating = Making()  # type: ignore[assignment]
    monkeypatch.setattr(httpx2, "HTTPTransport", begin_another)

    # When both are answered
    with client, threads:
        assert client.post(f"{provider.url}/v1/chat/completions", json=CHAT).status_code == 200
        assert second[0].result(20).status_code == 200

    # Then both went through the same one, and none is left open
    assert made == [metered._wrapped]
