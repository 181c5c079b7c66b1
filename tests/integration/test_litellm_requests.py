"""What LiteLLM sends, against what was held for it: the real package, and a provider on 127.0.0.1."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from daycap import CapExceeded, InvalidInput
from daycap.prices import Prices
from tests.litellm_faces import MAX_TOKENS, Loop, Threads
from tests.provider import answer, stream

if TYPE_CHECKING:
    from tests.provider import Provider

pytestmark = [
    # Pydantic, of types of LiteLLM's: one with fields to read only, and usages of other providers.
    pytest.mark.filterwarnings("ignore:Item:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
    # LiteLLM leaves an event loop open that it makes for its first synchronous call.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]

MINI, PRO = "gpt-4o-mini", "gpt-5-pro"
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
WORDS = "the quick brown fox jumps over the lazy dog " * 1_000
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.fixture(scope="module", autouse=True)
def litellm() -> Any:
    """The package, with the prices that it carries instead of those it would fetch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

    return litellm


def chat(model: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "ja"}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], **more}


def chunks(model: str) -> list[Any]:
    same = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
    word = {"index": 0, "delta": {"content": "ja"}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return [{**same, "choices": [word]}, {**same, "choices": [last]}, {**same, "choices": [], "usage": USAGE}, "[DONE]"]


def cost(model: str) -> int:
    return Prices.default().actual_micros(model, USAGE)


@pytest.fixture(params=[Threads, Loop])
def face(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    made = []

    def make(cap: int = 10_000_000, **meter: Any) -> Any:
        made.append(request.param(rich=cap, meter=meter))
        return made[-1]

    yield make
    for each in made:
        each.end()


def at(provider: Provider, **call: Any) -> dict[str, Any]:
    return {"model": f"openai/{MINI}", "api_base": f"{provider.url}/v1", "api_key": "k", **call}


class TestTheModelThatAnswers:
    def test_is_charged_and_not_the_one_asked(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat("gpt-5-pro-2025-10-06", usage=USAGE))]
        calls = face()
        calls.call(**at(provider))
        assert calls.spent() == cost(PRO)

    def test_is_charged_for_a_stream_too(self, face: Any, provider: Provider) -> None:
        provider.answers = [stream(chunks("gpt-5-pro-2025-10-06"))]
        calls = face()
        calls.read(calls.call(**at(provider, stream=True)))
        assert calls.spent() == cost(PRO)

    def test_without_a_price_costs_all_that_is_held(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat("nobody's", usage=USAGE))]
        calls = face()
        calls.call(**at(provider))
        assert calls.spent() == Prices.default().worst_case_micros(MINI, input_tokens=9, max_output_tokens=MAX_TOKENS)

    @pytest.mark.parametrize("where", ["api_base", "base_url"])
    def test_may_be_the_deployment_in_the_url(self, face: Any, provider: Provider, where: str) -> None:
        azure = {"model": f"azure/{MINI}", "api_key": "k", "api_version": "2024-10-21"}
        url = f"{provider.url}/openai/deployments/{PRO}"
        held = Prices.default().worst_case_micros(f"azure/{PRO}", input_tokens=9, max_output_tokens=MAX_TOKENS)
        with pytest.raises(CapExceeded) as refused:
            face(cap=held - 1).call(**azure, **{where: url})
        assert (provider.asked, refused.value.estimate_micros) == ([], held)

    def test_of_a_deployment_is_its_base_model(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat("gpt-4o-2024-11-20", usage=USAGE))]
        azure = {"api_base": provider.url, "api_key": "k", "api_version": "2024-10-21"}
        calls = face()
        calls.call(model="azure/our-chat", base_model="gpt-4o", **azure)
        assert calls.spent() == cost("gpt-4o")

    def test_may_be_dearer_than_its_base_model(self, face: Any, provider: Provider) -> None:
        held = Prices.default().worst_case_micros(PRO, input_tokens=9, max_output_tokens=MAX_TOKENS)
        with pytest.raises(CapExceeded):
            face(cap=held - 1).call(**at(provider, model=f"openai/{PRO}", base_model=MINI))
        assert provider.asked == []

    def test_of_an_alias_is_held_for(
        self, face: Any, provider: Provider, litellm: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(litellm, "model_alias_map", {f"openai/{MINI}": f"openai/{PRO}"})
        for more in ({}, {"mock_response": "a mock, as some handlers, does not tell what it sends"}):
            with pytest.raises(CapExceeded):
                face(cap=1_000).call(**at(provider, **more))
        assert provider.asked == []

    def test_in_the_extra_body_is_held_for(self, face: Any, provider: Provider) -> None:
        with pytest.raises(CapExceeded):
            face(cap=1_000).call(**at(provider, extra_body={"model": PRO}))
        assert provider.asked == []

    @pytest.mark.parametrize(("model", "refused"), [(PRO, CapExceeded), ("nobody's", InvalidInput)])
    def test_by_a_hook_is_held_for(
        self, provider: Provider, litellm: Any, monkeypatch: pytest.MonkeyPatch, model: str, refused: Any
    ) -> None:
        """LiteLLM has this hook for asynchronous calls only."""
        from litellm.integrations.custom_logger import CustomLogger

        class Changes(CustomLogger):
            async def async_pre_call_deployment_hook(self, kwargs: Any, call_type: Any) -> Any:
                return {**kwargs, "model": f"openai/{model}"}

        monkeypatch.setattr(litellm, "callbacks", [Changes()])
        calls = Loop(rich=1_000)
        with pytest.raises(refused):
            calls.call(**at(provider))
        assert (provider.asked, calls.spent()) == ([], 0)
        calls.end()


class TestTheLimit:
    @pytest.mark.parametrize(
        "taken_out", [{"additional_drop_params": ["max_tokens"]}, {"extra_body": {"max_tokens": None}}]
    )
    def test_that_is_taken_out_is_not_counted_on(self, face: Any, provider: Provider, taken_out: Any) -> None:
        with pytest.raises(CapExceeded) as refused:
            face(cap=10_000).call(**at(provider, model="openai/gpt-4o", **taken_out))
        longest = Prices.default().worst_case_micros("gpt-4o", input_tokens=9, max_output_tokens=16_384)
        assert (provider.asked, refused.value.estimate_micros) == ([], longest)

    def test_that_litellm_drops_by_itself_is_not_counted_on(
        self, face: Any, provider: Provider, litellm: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def without_limit(self: Any, **_: Any) -> dict[str, Any]:
            return {}

        monkeypatch.setattr(litellm.OpenAIGPTConfig, "map_openai_params", without_limit)
        with pytest.raises(CapExceeded) as refused:
            face(cap=9_000).call(**at(provider, model="openai/gpt-4o"))
        longest = Prices.default().worst_case_micros("gpt-4o", input_tokens=9, max_output_tokens=16_384)
        assert (provider.asked, refused.value.estimate_micros) == ([], longest)

    def test_that_litellm_raises_is_held_for(self, face: Any, provider: Provider, litellm: Any) -> None:
        """Claude's thinking needs a longer answer than was asked for."""
        claude = {"model": "anthropic/claude-opus-4-1", "api_base": provider.url, "api_key": "k"}
        provider.answers = [answer(500, {})]
        calls = face()
        with pytest.raises(litellm.InternalServerError):
            calls.call(**claude, max_tokens=None, thinking={"type": "enabled", "budget_tokens": 50_000})
        sent = json.loads(provider.asked[-1][1])
        assert calls.spent() >= sent["max_tokens"] * 75


class TestTheInput:
    def test_counts_a_schema_and_functions(self, face: Any, provider: Provider) -> None:
        schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"description": WORDS}}}
        functions = [{"name": "f", "parameters": {"type": "object"}, "description": WORDS}]
        for more in ({"response_format": schema}, {"functions": functions}):
            with pytest.raises(CapExceeded) as refused:
                face(cap=5_000).call(**at(provider, **more))
            assert refused.value.estimate_micros > len(WORDS) * 0.15
        assert provider.asked == []

    def test_counts_a_schema_that_is_a_class(self, face: Any, provider: Provider) -> None:
        large = type("Large", (BaseModel,), {"__doc__": WORDS})
        with pytest.raises(CapExceeded):
            face(cap=5_000).call(**at(provider, response_format=large))
        assert provider.asked == []

    def test_counts_what_litellm_adds(self, face: Any, provider: Provider) -> None:
        with pytest.raises(CapExceeded) as refused:
            face(cap=5_000).call(**at(provider, litellm_system_prompt=WORDS))
        assert refused.value.estimate_micros > len(WORDS) * 0.15
        assert provider.asked == []

    def test_of_images_needs_a_count(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat(MINI, usage=USAGE))]
        messages = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, IMAGE]}]
        with pytest.raises(InvalidInput, match=r"image_url.*count_input"):
            face().call(**at(provider, messages=messages))
        calls = face(count_input=lambda *_: 30_000)
        calls.call(**at(provider, messages=messages))
        assert (len(provider.asked), calls.spent()) == (1, cost(MINI))

    def test_takes_back_a_message_that_was_answered(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat(MINI, usage=USAGE))]
        calls = face()
        said = calls.call(**at(provider)).choices[0].message
        calls.call(**at(provider, messages=[said, {"role": "user", "content": "go on"}]))
        assert calls.spent() == 2 * cost(MINI)


class TestAnOption:
    @pytest.mark.parametrize(
        "option",
        [
            {"plugins": [{"id": "web"}]},
            {"search_parameters": {"mode": "on"}},
            {"enable_search": True},
            {"modalities": ["text", "audio"]},
            {"audio": {"voice": "alloy"}},
            {"best_of": 3},
            {"silent_model": PRO},
            {"azure": True},
            {"deployment_id": "our-chat"},
            {"models": [PRO]},
        ],
    )
    def test_of_unknown_cost_is_refused(self, face: Any, provider: Provider, option: Any) -> None:
        (name,) = option
        for way in (option, {"extra_body": option}):
            with pytest.raises(InvalidInput, match=name):
                face().call(**at(provider, **way))
        assert provider.asked == []

    @pytest.mark.parametrize(
        ("option", "named"),
        [
            ({"tools": [{"googleSearch": {}}]}, "googleSearch"),
            ({"tools": [{"type": "code_interpreter"}]}, "code_interpreter"),
            ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
            ({"extra_headers": {"x-portkey-config": "c"}}, "x-portkey-config"),
        ],
    )
    def test_of_tools_and_headers_is_refused(self, face: Any, provider: Provider, option: Any, named: str) -> None:
        for count in ({}, {"count_input": lambda *_: 1_000}):
            with pytest.raises(InvalidInput, match=named):
                face(**count).call(**at(provider, **option))
        assert provider.asked == []

    def test_may_be_vouched_for(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat(MINI, usage=USAGE))]
        calls = face(allow=["plugins"])
        calls.call(**at(provider, extra_body={"plugins": [{"id": "files"}]}))
        assert json.loads(provider.asked[0][1])["plugins"]
        assert calls.spent() == cost(MINI)

    def test_of_searches_is_held_for(self, face: Any, provider: Provider, litellm: Any) -> None:
        provider.answers = [answer(500, {})]
        tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
        claude = {"model": "anthropic/claude-opus-4-1", "api_base": provider.url, "api_key": "k"}
        calls = face(count_input=lambda *_: 1_000)
        with pytest.raises(litellm.InternalServerError):
            calls.call(**claude, tools=[tool])
        assert len(provider.asked) == 1
        assert calls.spent() == Prices.default().worst_case_micros(
            "claude-opus-4-1", input_tokens=1_000, max_output_tokens=MAX_TOKENS, max_web_searches=5
        )


class TestTheLook:
    """At each request where it leaves, whatever LiteLLM is told of callbacks."""

    @pytest.mark.parametrize(
        "option", [{"no-log": True}, {"turn_off_message_logging": True}, {"litellm_disabled_callbacks": ["_Watch"]}]
    )
    def test_cannot_be_turned_off(self, face: Any, provider: Provider, option: Any) -> None:
        with pytest.raises(CapExceeded):
            face(cap=1_000).call(**at(provider, litellm_system_prompt=WORDS, **option))
        assert provider.asked == []

    def test_survives_a_reset_of_the_callbacks(
        self, face: Any, provider: Provider, litellm: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = face(cap=1_000)
        provider.answers = [answer(200, chat(MINI, usage=USAGE))]
        calls.call(**at(provider))
        monkeypatch.setattr(litellm, "input_callback", [])
        with pytest.raises(CapExceeded):
            calls.call(**at(provider, litellm_system_prompt=WORDS))
        assert len(provider.asked) == 1

    def test_that_fails_sends_nothing(self, face: Any, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("daycap.integrations.litellm_sent.as_sent", fail)
        calls = face()
        with pytest.raises(InvalidInput, match="ZeroDivisionError"):
            calls.call(**at(provider))
        assert (provider.asked, calls.spent()) == ([], 0)

    def test_stops_a_second_dearer_request(
        self, face: Any, provider: Provider, litellm: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a loop of LiteLLM's own would send it; the first may have been billed."""
        from daycap.integrations import litellm_sent

        look = litellm_sent.as_sent
        seen = []

        def grown(asked: Any, details: Any) -> Any:
            seen.append(asked)
            (call,) = look(asked, details).calls
            return asked._replace(calls=({**call, "max_output_tokens": MAX_TOKENS * len(seen)},))

        class Again(litellm.integrations.custom_logger.CustomLogger):
            def log_pre_api_call(self, model: str, messages: Any, kwargs: Any) -> None:
                litellm_sent._watch.log_pre_api_call(model, messages, kwargs)

        monkeypatch.setattr(litellm_sent, "as_sent", grown)
        monkeypatch.setattr(litellm, "input_callback", [litellm_sent._watch, Again()])
        calls = face()
        with pytest.raises(InvalidInput, match="second request"):
            calls.call(**at(provider))
        assert calls.spent() == Prices.default().worst_case_micros(MINI, input_tokens=9, max_output_tokens=MAX_TOKENS)


class TestOtherBodies:
    """The bodies of other providers have other fields; no call is made twice for that."""

    def test_of_anthropic_leave_at_once(self, face: Any, provider: Provider) -> None:
        usage = {"input_tokens": 12, "output_tokens": 7}
        said = {"id": "m", "type": "message", "role": "assistant", "model": "claude-opus-4-1-20250805"}
        provider.answers = [
            answer(
                200, {**said, "content": [{"type": "text", "text": "ja"}], "stop_reason": "end_turn", "usage": usage}
            )
        ]
        calls = face()
        held: list[Any] = []
        self._note(calls, held)
        calls.call(model="anthropic/claude-opus-4-1", api_base=provider.url, api_key="k")
        assert (len(held), calls.spent()) == (1, Prices.default().actual_micros("claude-opus-4-1", usage))

    def test_of_google_leave_at_once(self, face: Any, provider: Provider) -> None:
        usage = {"promptTokenCount": 12, "candidatesTokenCount": 7, "totalTokenCount": 19}
        part = {"content": {"parts": [{"text": "ja"}], "role": "model"}, "finishReason": "STOP"}
        provider.answers = [
            answer(200, {"candidates": [part], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"})
        ]
        calls = face()
        held: list[Any] = []
        self._note(calls, held)
        calls.call(model="gemini/gemini-2.5-flash", api_base=provider.url, api_key="k")
        assert (len(held), calls.spent()) == (1, Prices.default().actual_micros("gemini-2.5-flash", usage))

    def test_of_responses_are_read_too(self, face: Any, provider: Provider) -> None:
        with pytest.raises(CapExceeded):
            face(cap=50_000).call(**at(provider, model=f"openai/{PRO}", additional_drop_params=["max_tokens"]))
        assert provider.asked == []

    def _note(self, calls: Any, held: list[int]) -> None:
        reserve = calls.wallet.reserve

        def noted(agent: str, estimate_micros: int, **labels: Any) -> Any:
            held.append(estimate_micros)
            return reserve(agent, estimate_micros, **labels)

        calls.wallet.reserve = noted


class TestARouter:
    def test_holds_for_the_limit_of_its_deployment(self, face: Any, provider: Provider) -> None:
        calls = face(cap=10_000)
        params = at(provider, model="openai/gpt-4o", additional_drop_params=["max_tokens"])
        router = calls.metered.router(model_list=[{"model_name": "chat", "litellm_params": params}], num_retries=0)
        with pytest.raises(CapExceeded):
            calls.call(router, model="chat")
        assert provider.asked == []

    def test_charges_the_model_that_answers(self, face: Any, provider: Provider) -> None:
        provider.answers = [answer(200, chat("gpt-5-pro-2025-10-06", usage=USAGE))]
        calls = face()
        router = calls.metered.router(
            model_list=[{"model_name": "chat", "litellm_params": at(provider)}], num_retries=0
        )
        calls.call(router, model="chat")
        assert calls.spent() == cost(PRO)
