"""What clients send through the metered transports, against what was held for it and what the answer says."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import openai
import pytest

from daycap import AsyncWallet, CapExceeded, InvalidInput, UnknownModel, Wallet
from daycap.httpx_transport import AsyncMeteredTransport, MeteredTransport
from daycap.prices import Prices
from tests.provider import answer, stream

if TYPE_CHECKING:
    from tests.provider import Provider

MINI, PRO, OPUS = "gpt-4o-mini", "gpt-5-pro", "claude-opus-5"
MESSAGES: Any = [{"role": "user", "content": "Say this is a test"}]
CHAT = {"model": MINI, "messages": MESSAGES, "max_tokens": 100}
MESSAGE: Any = {"model": OPUS, "messages": MESSAGES, "max_tokens": 100}
RESPONSE: Any = {"model": "gpt-4o", "input": "hello", "max_output_tokens": 100}
SEARCH: Any = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}

USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
IN_OUT = {"input_tokens": 12, "output_tokens": 7}
WORD = {"index": 0, "delta": {"content": "ja"}, "finish_reason": None}


class OfThreads:
    """Requests as a program with threads makes them."""

    def __init__(self, provider: Provider, cap: int, **meter: Any) -> None:
        self.wallet = Wallet.from_env(caps={"agent-7": cap}, environ={})
        self.transport = MeteredTransport(self.wallet, "agent-7", **meter)
        self.client = httpx2.Client(transport=self.transport, base_url=provider.url, timeout=20)

    def post(self, path: str, body: Any, **more: Any) -> Any:
        return self.client.post(path, json=body, **more)

    def raw(self, path: str, content: bytes, **more: Any) -> Any:
        return self.client.post(path, content=content, **more)

    def spent(self) -> int:
        assert self.wallet.stats().live_holds == 0
        assert self.wallet.flush() == ()
        return self.wallet.spent("agent-7").micros

    def end(self) -> None:
        self.client.close()
        self.wallet.close()


class OfLoop:
    """The same, as a program with an event loop makes them."""

    def __init__(self, provider: Provider, cap: int, **meter: Any) -> None:
        self.runner = asyncio.Runner()
        self.wallet = AsyncWallet.from_env(caps={"agent-7": cap}, environ={})
        self.transport = AsyncMeteredTransport(self.wallet, "agent-7", **meter)
        self.client = httpx2.AsyncClient(transport=self.transport, base_url=provider.url, timeout=20)

    def post(self, path: str, body: Any, **more: Any) -> Any:
        return self.runner.run(self.client.post(path, json=body, **more))

    def raw(self, path: str, content: bytes, **more: Any) -> Any:
        return self.runner.run(self.client.post(path, content=content, **more))

    def spent(self) -> int:
        assert self.wallet.stats().live_holds == 0
        assert self.runner.run(self.wallet.flush()) == ()
        return self.runner.run(self.wallet.spent("agent-7")).micros

    def end(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.run(self.wallet.close())
        self.runner.close()


@pytest.fixture(params=[OfThreads, OfLoop])
def face(request: pytest.FixtureRequest, provider: Provider) -> Iterator[Callable[..., Any]]:
    made = []

    def make(cap: int = 10_000_000, **meter: Any) -> Any:
        made.append(request.param(provider, cap, **meter))
        return made[-1]

    yield make
    for each in made:
        each.end()


def chat(model: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "ja"}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], **more}


def message(**more: Any) -> dict[str, Any]:
    said = {"id": "m", "type": "message", "role": "assistant", "model": OPUS, "stop_reason": "end_turn"}
    return {**said, "content": [{"type": "text", "text": "ja"}], "usage": IN_OUT, **more}


def chunk(*choices: Any, model: str = MINI, **more: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": choices, **more}


def cost(model: str, usage: Any = USAGE, **more: Any) -> int:
    return Prices.default().actual_micros(model, usage, **more)


def most(provider: Provider, model: str = MINI) -> int:
    """The worst case of the last request."""
    size = len(provider.asked[-1][1])
    return Prices.default().worst_case_micros(model, input_tokens=size + 64, max_output_tokens=100)


class TestTheModelThatAnswers:
    def test_is_charged_and_not_the_one_asked(self, face: Any, provider: Provider) -> None:
        calls = face()
        provider.answers = [answer(200, chat("gpt-5-pro-2025-10-06", usage=USAGE))]
        calls.post("/v1/chat/completions", CHAT)
        provider.answers = [stream([chunk(WORD), chunk(model=PRO, usage=USAGE), "[DONE]"])]
        calls.post("/v1/chat/completions", {**CHAT, "stream": True})
        assert calls.spent() == 2 * cost(PRO)

    def test_without_a_price_costs_all_that_is_held(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat("nobody's", usage=USAGE))]
        calls = face()
        calls.post("/v1/chat/completions", CHAT)
        assert calls.spent() == most(provider)

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ("openai/gpt-4o-mini", "gpt-4o-mini-2099-01-01"),
            ("openai/gpt-4o-mini", "openai/gpt-4o-mini"),
            ("gpt-4o-mini", "openai/gpt-4o-mini"),
            ("mistral/mistral-large-latest", "mistral-large-9912"),
        ],
    )
    def test_may_name_its_version(self, face: Any, provider: Provider, asked: str, said: str) -> None:
        provider.answers = [answer(200, chat(said, usage=USAGE))]
        calls = face()
        calls.post("/v1/chat/completions", {**CHAT, "model": asked})
        assert calls.spent() == cost(asked)

    @pytest.mark.parametrize("said", ["openai/gpt-4o-mini", "nobodys/own-name-20990101"])
    def test_does_not_matter_to_a_bill(self, face: Any, provider: Provider, said: str) -> None:
        provider.answers = [answer(200, chat(said, usage={**USAGE, "cost": 0.016062}))]
        calls = face()
        calls.post("/v1/chat/completions", {**CHAT, "model": "openrouter/openai/gpt-4o-mini"})
        assert calls.spent() == 16_062

    def test_is_azures_deployment_and_not_the_bodys(self, provider: Provider) -> None:
        held = Prices.default().worst_case_micros(PRO, input_tokens=170, max_output_tokens=100, provider="azure")
        azure: Any = {"azure_endpoint": provider.url, "azure_deployment": PRO, "api_key": "k", "max_retries": 0}
        azure["api_version"] = "2024-10-21"

        async def in_loop() -> None:
            async with AsyncWallet.from_env(caps={"agent-7": held // 2}, environ={}) as wallet:
                http = openai.DefaultAsyncHttpxClient(transport=AsyncMeteredTransport(wallet, "agent-7"))
                async with openai.AsyncAzureOpenAI(**azure, http_client=http) as client:
                    await client.chat.completions.create(**CHAT)

        with pytest.raises(CapExceeded):
            asyncio.run(in_loop())
        with Wallet.from_env(caps={"agent-7": held // 2}, environ={}) as wallet:
            http = openai.DefaultHttpxClient(transport=MeteredTransport(wallet, "agent-7"))
            with openai.AzureOpenAI(**azure, http_client=http) as client, pytest.raises(CapExceeded):
                client.chat.completions.create(**CHAT)
        assert provider.asked == []

    def test_of_azure_is_charged(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat("gpt-5-pro-2025-10-06", usage=USAGE))]
        calls = face()
        calls.post(f"/openai/deployments/{PRO}/chat/completions?api-version=1", CHAT)
        assert calls.spent() == cost(PRO, provider="azure")

    def test_of_a_deployment_may_be_told(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(500, {})]
        path = "/openai/deployments/our-chat/chat/completions"
        with pytest.raises(UnknownModel, match="our-chat"):
            face().post(path, CHAT)
        calls = face(models={"our-chat": "gpt-4o"})
        calls.post(path, CHAT)
        assert calls.spent() == most(provider, "gpt-4o")

    def test_of_a_name_may_be_told(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat("our-chat", usage=USAGE))]
        calls = face(models={"our-chat": MINI})
        calls.post("/v1/chat/completions", {**CHAT, "model": "our-chat"})
        assert calls.spent() == cost(MINI)

    def test_is_held_for_in_an_extra_body(self, provider: Provider) -> None:
        with Wallet.from_env(caps={"agent-7": 1_000}, environ={}) as wallet:
            http = openai.DefaultHttpxClient(transport=MeteredTransport(wallet, "agent-7"))
            url = f"{provider.url}/v1"
            with openai.OpenAI(base_url=url, api_key="k", http_client=http) as client:
                for extra, refused in (({"model": PRO}, CapExceeded), ({"max_tokens": None}, InvalidInput)):
                    with pytest.raises(refused):
                        client.chat.completions.create(**CHAT, extra_body=extra)
        assert provider.asked == []

    def test_with_a_price_of_ones_own(self, face: Any, provider: Provider, tmp_path: Any) -> None:
        """It holds for all versions, and for whatever one's own server calls the model."""
        file = tmp_path / "prices.toml"
        file.write_text('["gpt-4o-mini"]\ninput = 1000\noutput = 1000\n')
        calls = face()
        calls.wallet.prices = Prices.from_file(file)
        for said in ("gpt-4o-mini-2024-07-18", "/models/mini"):
            provider.answers = [answer(200, chat(said, usage=USAGE))]
            calls.post("/v1/chat/completions", CHAT)
        assert calls.spent() == 2 * 19_000


class TestARequest:
    @pytest.mark.parametrize(
        "field",
        [
            {"plugins": [{"id": "web"}]},
            {"search_parameters": {"mode": "on"}},
            {"enable_search": True},
            {"modalities": ["text", "audio"]},
            {"audio": {"voice": "alloy"}},
            {"best_of": 3},
            {"num_generations": 3},
            {"models": [PRO]},
            {"fallbacks": [PRO]},
            {"route": "fallback"},
            {"background": True},
            {"reasoning.mode": "pro"},
            {"extra_body": {"google": {}}},
            {"max_output_tokens": 5},
        ],
    )
    def test_with_a_field_of_unknown_cost_is_refused(self, face: Any, provider: Provider, field: Any) -> None:
        (name,) = field
        sent = {"reasoning": {"mode": "pro"}} if name == "reasoning.mode" else field
        for count in ({}, {"count_tokens": len}):
            with pytest.raises(InvalidInput, match=name):
                face(**count).post("/v1/chat/completions", {**CHAT, **sent})
        assert provider.asked == []

    def test_may_have_what_is_vouched_for(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat(MINI, usage=USAGE))]
        calls = face(allow=["plugins", "X-Model-Group", "tag"])
        calls.post("/v1/chat/completions?tag=a", {**CHAT, "plugins": [{"id": "f"}]}, headers={"x-model-group": "a"})
        assert calls.spent() == cost(MINI)

    @pytest.mark.parametrize(
        ("content", "headers", "why"),
        [
            (b'{"model": "gpt-4o-mini", "max_tokens": 9, "max_tokens": 99, "messages": []}', {}, "max_tokens' twice"),
            (b'{"model": "gpt-4o-mini", "max_tokens": 9, "messages": [{"role": 1, "role": 2}]}', {}, "role' twice"),
            (gzip.compress(json.dumps(CHAT).encode()), {"content-encoding": "gzip"}, "plain JSON in UTF-8"),
            (json.dumps(CHAT).encode("utf-16"), {}, "plain JSON in UTF-8"),
            (b'{"model": "gpt-4o-mini", "messages": "\xff", "max_tokens": 9}', {}, "plain JSON in UTF-8"),
            (b"--b\r\nmodel: x\r\n--b--", {"content-type": "multipart/form-data; boundary=b"}, "plain JSON"),
            (b'["gpt-4o-mini"]', {}, "JSON object"),
            (b'{"messages": [], "max_tokens": 9}', {}, "name its model"),
            (b'{"model": ["gpt-4o-mini"], "messages": [], "max_tokens": 9}', {}, "name its model"),
            (b'{"model": "gpt-4o-mini", "messages": [], "max_tokens": NaN}', {}, "counts"),
        ],
    )
    def test_that_may_be_read_otherwise_is_refused(
        self, face: Any, provider: Provider, content: bytes, headers: Any, why: str
    ) -> None:
        for unmetered in ("refuse", "pass"):
            with pytest.raises(InvalidInput, match=why):
                face(unmetered=unmetered).raw("/v1/chat/completions", content, headers=headers)
        assert provider.asked == []

    @pytest.mark.parametrize(
        "more",
        [
            {"headers": {"x-portkey-config": "c"}},
            {"headers": {"helicone-fallbacks": "[]"}},
            {"headers": {"azureml-model-deployment": "d"}},
            {"headers": {"x-http-method-override": "PUT"}},
            {"params": {"model": PRO}},
        ],
    )
    def test_that_may_be_rerouted_is_refused(self, face: Any, provider: Provider, more: Any) -> None:
        name = next(iter(next(iter(more.values()))))
        with pytest.raises(InvalidInput, match=name):
            face().post("/v1/chat/completions", CHAT, **more)
        assert provider.asked == []

    def test_in_disguise_is_held_for_or_refused(self, face: Any, provider: Provider) -> None:
        with pytest.raises(InvalidInput, match="x-http-method-override"):
            face(unmetered="pass").post("/cancel", CHAT, headers={"x-http-method-override": "PUT"})
        with pytest.raises(CapExceeded):
            face(cap=10, unmetered="pass").post("/V1/Chat/Completions/", CHAT)
        assert provider.asked == []

    @pytest.mark.parametrize(
        ("part", "named"),
        [
            ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, "image_url"),
            ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input_audio"),
            ({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}, "file"),
            ({"role": "assistant", "content": "a", "images": [{"type": "image_url"}]}, "images"),
            ({"role": "assistant", "audio": {"id": "a"}}, "audio"),
        ],
    )
    def test_of_more_than_text_needs_a_count(self, face: Any, provider: Provider, part: Any, named: str) -> None:
        provider.answers = [answer(200, chat(MINI, usage=USAGE))]
        call = {**CHAT, "messages": [part]}
        with pytest.raises(InvalidInput, match=named):
            face().post("/v1/chat/completions", call)
        calls = face(count_tokens=lambda _: 30_000)
        calls.post("/v1/chat/completions", call)
        assert calls.spent() == cost(MINI)

    @pytest.mark.parametrize("tool", [{"google_search": {}}, {"type": "code_interpreter"}, {"type": "file_search"}])
    def test_with_a_tool_of_unknown_cost_is_refused(self, face: Any, provider: Provider, tool: Any) -> None:
        for count in ({}, {"count_tokens": lambda _: 1_000}):
            with pytest.raises(InvalidInput, match=str(tool.get("type", "google_search"))):
                face(**count).post("/v1/responses", {**RESPONSE, "tools": [tool]})
        assert provider.asked == []


class TestSearches:
    def held(self, model: str, searches: int) -> int:
        return Prices.default().worst_case_micros(
            model, input_tokens=50_000, max_output_tokens=100, max_web_searches=searches
        )

    @pytest.mark.parametrize(
        ("path", "call", "meter"),
        [
            ("/v1/messages", {**MESSAGE, "tools": [SEARCH]}, {}),
            ("/v1/messages", {**MESSAGE, "tools": [{**SEARCH, "max_uses": None}]}, {"max_web_searches": 5}),
            ("/v1/responses", {**RESPONSE, "tools": [{"type": "web_search"}], "max_tool_calls": 5}, {}),
        ],
    )
    def test_are_held_for(self, face: Any, provider: Provider, path: str, call: Any, meter: Any) -> None:
        provider.answers = [answer(500, {})]
        calls = face(count_tokens=lambda _: 50_000, **meter)
        calls.post(path, call)
        assert calls.spent() == self.held(call["model"], 5)

    @pytest.mark.parametrize(
        ("path", "call"),
        [
            ("/v1/messages", {**MESSAGE, "tools": [{**SEARCH, "max_uses": None}]}),
            ("/v1/responses", {**RESPONSE, "tools": [{"type": "web_search"}]}),
        ],
    )
    def test_without_a_bound_are_refused(self, face: Any, provider: Provider, path: str, call: Any) -> None:
        with pytest.raises(InvalidInput, match="max_uses"):
            face(count_tokens=lambda _: 50_000).post(path, call)
        assert provider.asked == []

    def test_without_a_count_of_the_input_are_refused(self, face: Any, provider: Provider) -> None:
        with pytest.raises(InvalidInput, match="count_tokens"):
            face().post("/v1/messages", {**MESSAGE, "tools": [SEARCH]})
        assert provider.asked == []

    def test_of_anthropic_are_charged_as_told(self, face: Any, provider: Provider) -> None:
        usage = {**IN_OUT, "server_tool_use": {"web_search_requests": 2}}
        provider.answers = [answer(200, message(usage=usage))]
        calls = face(count_tokens=lambda _: 50_000)
        calls.post("/v1/messages", {**MESSAGE, "tools": [SEARCH]})
        assert calls.spent() == cost(OPUS, usage) == cost(OPUS, IN_OUT) + 20_000

    @pytest.mark.parametrize("streamed", [False, True])
    def test_of_responses_are_counted(self, face: Any, provider: Provider, streamed: bool) -> None:
        found = {"type": "web_search_call", "id": "w", "status": "completed"}
        output = [
            {**found, "action": {"type": "search", "query": "a"}},
            {**found, "action": {"type": "open_page", "url": "u"}},
            found,
        ]
        said = {"id": "r", "object": "response", "model": "gpt-4o", "output": output, "usage": IN_OUT}
        event = {"type": "response.completed", "response": said}
        provider.answers = [stream([event]) if streamed else answer(200, said)]
        calls = face(count_tokens=lambda _: 50_000)
        calls.post("/v1/responses", {**RESPONSE, "tools": [{"type": "web_search"}], "max_tool_calls": 5})
        assert calls.spent() == cost("gpt-4o", IN_OUT) + 20_000

    def test_that_are_not_told_are_all_charged(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat("gpt-4o", usage=USAGE))]
        calls = face(count_tokens=lambda _: 50_000)
        calls.post("/v1/chat/completions", {**CHAT, "model": "gpt-4o", "web_search_options": {}})
        assert calls.spent() == cost("gpt-4o") + 10_000

    def test_of_the_real_client_are_held_for(self, provider: Provider) -> None:
        provider.answers = [answer(200, message(usage={**IN_OUT, "server_tool_use": {"web_search_requests": 5}}))]
        with Wallet.from_env(caps={"agent-7": self.held(OPUS, 5)}, environ={}) as wallet:
            transport = MeteredTransport(wallet, "agent-7", count_tokens=lambda _: 50_000)
            http = anthropic.DefaultHttpxClient(transport=transport)
            with anthropic.Anthropic(base_url=provider.url, api_key="k", http_client=http) as client:
                client.messages.create(**MESSAGE, tools=[SEARCH])
            assert wallet.flush() == ()
            assert wallet.spent("agent-7").micros == cost(OPUS, IN_OUT) + 50_000


STOP = {"index": 0, "delta": {}, "finish_reason": "stop"}
START = {"type": "message_start", "message": message(usage={**IN_OUT, "output_tokens": 1})}
DELTA = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}


class TestAStreamWithoutItsLastEvent:
    @pytest.mark.parametrize(
        "events",
        [
            [chunk(WORD), chunk(STOP), chunk(usage=USAGE)],
            [chunk(WORD), chunk(usage=USAGE)],
            [chunk(WORD), chunk(STOP, usage=USAGE)],
        ],
    )
    def test_is_charged_by_its_final_usage(self, face: Any, provider: Provider, events: Any) -> None:
        provider.answers = [stream(events)]
        calls = face()
        calls.post("/v1/chat/completions", {**CHAT, "stream": True})
        assert calls.spent() == cost(MINI)

    @pytest.mark.parametrize(
        "events",
        [
            [chunk(WORD, usage=USAGE)],
            [chunk(usage=USAGE), chunk(WORD)],
            [chunk(STOP, WORD, usage=USAGE)],
            [chunk(WORD), chunk(STOP)],
        ],
    )
    def test_is_charged_in_full_if_more_may_come(self, face: Any, provider: Provider, events: Any) -> None:
        provider.answers = [stream(events)]
        calls = face()
        calls.post("/v1/chat/completions", {**CHAT, "stream": True})
        assert calls.spent() == most(provider)

    def test_that_breaks_after_it_is_charged_by_it(self, face: Any, provider: Provider) -> None:
        provider.answers = [stream([chunk(WORD), chunk(usage=USAGE)], broken=True)]
        calls = face()
        with pytest.raises(httpx2.RemoteProtocolError):
            calls.post("/v1/chat/completions", {**CHAT, "stream": True})
        assert calls.spent() == cost(MINI)

    def test_of_anthropic_is_charged_by_its_final_usage(self, face: Any, provider: Provider) -> None:
        provider.answers = [stream([START, DELTA])]
        calls = face()
        calls.post("/v1/messages", {**MESSAGE, "stream": True})
        assert calls.spent() == cost(OPUS, IN_OUT)


def test_a_later_zero_does_not_erase_the_input(face: Any, provider: Provider) -> None:
    start = {"type": "message_start", "message": message(usage={"input_tokens": 420, "output_tokens": 1})}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    last = {**delta, "usage": {"input_tokens": 0, "output_tokens": 7}}
    provider.answers = [stream([start, last, {"type": "message_stop"}])]
    calls = face()
    calls.post("/v1/messages", {**MESSAGE, "stream": True})
    assert calls.spent() == 420 * 5 + 7 * 25
