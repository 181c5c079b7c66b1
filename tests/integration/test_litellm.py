"""The real litellm package, with its mock responses, inside a cap."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from openai.types.chat import ChatCompletionChunk

from daycap import CapExceeded, InvalidInput, UnknownModel, Wallet
from daycap.prices import Prices
from tests.litellm_faces import MAX_TOKENS, MESSAGES, MODEL, Loop, Threads
from tests.provider import answer as http_answer
from tests.spine import wait_for

if TYPE_CHECKING:
    from tests.provider import Provider
    from tests.spine import Spine

pytestmark = [
    # Pydantic, of types of LiteLLM's: one with fields to read only, and a mock response that is no text.
    pytest.mark.filterwarnings("ignore:Item:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

M = 1_000_000
OTHER_MODEL = "gpt-4o-mini"
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def worst(model: str = MODEL, max_tokens: int = MAX_TOKENS) -> int:
    """Nine tokens go in, by LiteLLM's count."""
    return Prices.default().worst_case_micros(model, input_tokens=9, max_output_tokens=max_tokens)


def actual(model: str = MODEL) -> int:
    return Prices.default().actual_micros(model, USAGE)


@pytest.fixture(scope="module", autouse=True)
def litellm() -> Any:
    """The package, with the prices that it carries instead of those it would fetch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

    return litellm


@pytest.fixture
def sent(litellm: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models of all requests that LiteLLM was about to send."""
    models: list[str] = []

    class Seen(litellm.integrations.custom_logger.CustomLogger):
        def log_pre_api_call(self, model: str, messages: Any, kwargs: Any) -> None:
            models.append(model)

    monkeypatch.setattr(litellm, "input_callback", [Seen()])
    return models


@pytest.fixture(params=[Threads, Loop])
def calls(request: pytest.FixtureRequest) -> Iterator[Any]:
    calls = request.param(rich=5 * M, poor=worst() - 1)
    yield calls
    calls.end()


@pytest.fixture
def answer(litellm: Any) -> Any:
    """What a provider that reports its usage says."""
    choice = {"message": {"role": "assistant", "content": "hi you"}}
    return litellm.ModelResponse(model=MODEL, choices=[choice], usage=litellm.Usage(**USAGE))


@pytest.mark.parametrize("face", [Threads, Loop])
def test_labels_choose_the_budgets(face: Any, answer: Any, sent: list[str], tmp_path: Path) -> None:
    environ = {"DAYCAP_LEDGER_URL": f"sqlite:///{tmp_path / 'spend.db'}"}
    with Wallet.from_env(environ=environ) as wallet:
        wallet.add_agent("rich", 5 * M)
        for name, labels in {"big": {"model": MODEL}, "tool": {"tool": "search"}, "team": {"team": "red"}}.items():
            wallet.add_budget(name, 1, agent="rich", labels=labels)
    calls = face(environ=environ, meter={"labels": {"team": "blue"}})
    refused = []
    for model, own in (
        (MODEL, {}),
        (f"openai/{MODEL}", {}),
        (OTHER_MODEL, {"tool": "search"}),
        (MODEL, {"team": "red"}),
        (OTHER_MODEL, {"tool": "mail"}),
    ):
        try:
            calls.call(mock_response=answer, model=model, metadata={"agent": "rich", "labels": own})
        except CapExceeded as error:
            refused.append(sorted(str(full.budget).partition("/")[0] for full in error.full))
    assert refused == [["big"], ["big"], ["tool"], ["big", "team"]]
    assert sent == [OTHER_MODEL]
    bad: Any
    for bad in ("tool", {"Tool": "x"}, {"tool": 1}, []):
        with pytest.raises(InvalidInput):
            calls.call(mock_response=answer, model=OTHER_MODEL, metadata={"agent": "rich", "labels": bad})
    with pytest.raises(InvalidInput):
        type(calls.metered)(calls.wallet, labels={"Tool": "x"})
    assert calls.spent() > 0
    calls.end()


class TestACall:
    def test_is_charged_by_its_usage(self, calls: Any, answer: Any, sent: list[str]) -> None:
        assert calls.call(mock_response=answer).usage.total_tokens == 14

        assert calls.spent() == actual()
        assert sent == [MODEL]

    def test_that_would_pass_the_cap_is_not_sent(self, calls: Any, answer: Any, sent: list[str]) -> None:
        with pytest.raises(CapExceeded) as refused:
            calls.call(mock_response=answer, user="poor")

        assert refused.value.estimate_micros == worst()
        assert sent == []
        assert calls.spent("poor") == 0

    @pytest.mark.parametrize(
        ("limits", "held"),
        [
            ({"max_tokens": None}, 16_384),
            ({"max_tokens": None, "n": 2}, 2 * 16_384),
            ({"max_tokens": None, "max_completion_tokens": 7_000}, 7_000),
            ({"max_tokens": 7_000, "max_completion_tokens": 1}, 7_000),
            ({"extra_body": {"max_completion_tokens": 7_000, "n": 2}}, 14_000),
            ({"max_tokens": 7_000, "prediction": {"type": "content", "content": "hello"}}, 7_000 + 39),
        ],
    )
    def test_holds_the_longest_answers_that_it_allows(self, calls: Any, limits: Any, held: int) -> None:
        with pytest.raises(CapExceeded) as refused:
            calls.call(user="poor", mock_response="hi", **limits)

        assert refused.value.estimate_micros == worst(max_tokens=held)

    def test_one_limit_for_all_bounds_the_answer(
        self, calls: Any, litellm: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(litellm, "get_model_info", lambda *_: {"max_output_tokens": None, "max_tokens": 7_000})
        with pytest.raises(CapExceeded) as refused:
            calls.call(user="poor", mock_response="hi", max_tokens=None)

        assert refused.value.estimate_micros == worst(max_tokens=7_000)

    def test_is_paid_by_the_agent_of_its_metadata_before_its_user(self, calls: Any, answer: Any) -> None:
        calls.call(mock_response=answer, metadata={"agent": "rich"}, user="poor")
        assert calls.spent() == actual()

    @pytest.mark.parametrize(
        ("call", "error"),
        [
            ({"num_retries": 1}, InvalidInput),
            ({"max_retries": 1}, InvalidInput),
            ({"fallbacks": [OTHER_MODEL]}, InvalidInput),
            ({"web_search_options": {}}, InvalidInput),
            ({"model": "openai/gpt-4o-search-preview"}, InvalidInput),
            ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, InvalidInput),
            ({"extra_body": {"models": [OTHER_MODEL]}}, InvalidInput),
            ({"model": "anthropic/claude-opus-5", "inference_geo": "us"}, UnknownModel),
            ({"model": "openai/nobody's"}, UnknownModel),
            ({"model": "openai/nobody's", "max_tokens": None}, InvalidInput),
        ],
    )
    def test_whose_cost_or_agent_cannot_be_told_is_not_sent(
        self, calls: Any, sent: list[str], call: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            calls.call(mock_response="hi", **call)
        assert (sent, calls.spent()) == ([], 0)

    @pytest.mark.parametrize("metadata", [None, {"agent": 7}])
    def test_without_an_agent_is_not_sent(self, calls: Any, sent: list[str], metadata: Any) -> None:
        with pytest.raises(InvalidInput, match="no agent given"):
            calls.call(mock_response="hi", user=None, metadata=metadata)
        assert (sent, calls.spent()) == ([], 0)

    def test_is_not_sent_while_litellm_is_set_to_make_others(
        self, calls: Any, litellm: Any, monkeypatch: pytest.MonkeyPatch, sent: list[str]
    ) -> None:
        monkeypatch.setattr(litellm, "num_retries", 2)
        with pytest.raises(InvalidInput, match=r"litellm\.num_retries"):
            calls.call(mock_response="hi")
        assert (sent, calls.spent()) == ([], 0)

    def test_that_fails_is_not_sent_again_by_the_providers_client(self, calls: Any, provider: Provider) -> None:
        provider.answers = [http_answer(500, {"error": {"message": "try again"}})]
        with pytest.raises(Exception, match="try again"):
            calls.call(model=f"openai/{MODEL}", api_base=f"{provider.url}/v1", api_key="k")
        assert (len(provider.asked), calls.spent()) == (1, worst())

    def test_that_fails_is_charged_in_full_unless_it_surely_was_not_billed(self, calls: Any, litellm: Any) -> None:
        more = {"model": MODEL, "llm_provider": "openai"}
        spent = 0
        for error, billed in (
            (litellm.AuthenticationError("no", **more), False),
            (litellm.NotFoundError("no", **more), False),
            (litellm.RateLimitError("no", **more), False),
            (litellm.BadRequestError("no", **more), True),
            (litellm.ContentPolicyViolationError("no", **more), True),
            (litellm.InternalServerError("no", **more), True),
            (litellm.ServiceUnavailableError("no", **more), True),
            (litellm.APIConnectionError("no", **more), True),
            (ValueError("no"), True),
        ):
            with pytest.raises(Exception, match="no"):
                calls.call(mock_response=error)
            spent += worst() if billed else 0
            assert calls.spent() == spent, repr(error)

    @pytest.mark.parametrize(("status", "billed"), [(429, False), (408, True), (409, True), (500, True), (503, True)])
    def test_whose_error_only_speaks_of_a_rate_limit_is_charged_in_full(
        self, calls: Any, provider: Provider, litellm: Any, status: int, billed: bool
    ) -> None:
        provider.answers = [http_answer(status, {"error": {"message": "met a rate limit in the middle of it"}})]
        with pytest.raises(litellm.RateLimitError):
            calls.call(model=f"openai/{MODEL}", api_base=f"{provider.url}/v1", api_key="k")
        assert calls.spent() == (worst() if billed else 0)

    @pytest.mark.parametrize(
        ("asked", "served", "charged"),
        [
            (None, "priority", "priority"),
            ("flex", "default", ""),
            ("flex", None, ""),
            ("flex", "flex", "flex"),
            ("priority", None, "priority"),
        ],
    )
    def test_charged_at_the_tier_that_served_it(
        self, calls: Any, litellm: Any, asked: str | None, served: str | None, charged: str
    ) -> None:
        said = {} if served is None else {"service_tier": served}
        answer = litellm.ModelResponse(model="gpt-5", usage=litellm.Usage(**USAGE), **said)
        calls.call(model="gpt-5", mock_response=answer, service_tier=asked)

        assert calls.spent() == Prices.default().actual_micros("gpt-5", USAGE, service_tier=charged)

    @pytest.mark.parametrize("asked", [{"speed": "fast"}, {"extra_body": {"speed": "fast"}}])
    def test_that_is_asked_to_be_fast_holds_the_prices_of_that(self, calls: Any, asked: Any) -> None:
        held: list[int] = []
        each_asked: tuple[dict[str, Any], ...] = ({}, asked)
        for more in each_asked:
            with pytest.raises(CapExceeded) as refused:
                calls.call(model="anthropic/claude-opus-5", user="poor", mock_response="hi", **more)
            held.append(refused.value.estimate_micros)

        assert held[1] == 2 * held[0]

    def test_whose_cost_is_no_amount_is_charged_in_full(self, calls: Any, litellm: Any) -> None:
        usage = litellm.Usage(prompt_tokens=2**52, completion_tokens=5, total_tokens=2**52 + 5)
        calls.call(mock_response=litellm.ModelResponse(model=MODEL, usage=usage))
        assert calls.spent() == worst()

    def test_that_litellm_itself_refuses_costs_nothing(self, calls: Any, litellm: Any, sent: list[str]) -> None:
        with pytest.raises(litellm.UnsupportedParamsError):
            calls.call(reasoning_effort="high", api_key="none")
        assert (sent, calls.spent()) == ([], 0)

    def test_that_times_out_is_charged_in_full(self, calls: Any, litellm: Any) -> None:
        with pytest.raises(litellm.Timeout):
            calls.call(mock_timeout=True, timeout=0.01)
        assert calls.spent() == worst()


class TestAStream:
    def test_is_charged_by_the_usage_that_it_ends_with(self, calls: Any, answer: Any) -> None:
        stream = calls.call(mock_response=answer, stream=True)
        *_, last = calls.read(stream)

        assert last.usage.total_tokens == 14
        assert calls.spent() == actual()

    @pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning")  # LiteLLM does, of OpenAI's chunks.
    def test_is_charged_at_the_service_tier_that_its_chunks_tell(self, calls: Any, litellm: Any) -> None:
        def chunk(*choices: Any, **fields: Any) -> Any:
            same: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
            return ChatCompletionChunk(**same, choices=list(choices), service_tier="priority", **fields)

        chunks = [
            chunk({"index": 0, "delta": {"content": "hi"}, "finish_reason": None}),
            chunk({"index": 0, "delta": {}, "finish_reason": "stop"}),
            chunk(usage=USAGE),
        ]

        async def later() -> Any:
            for each in chunks:
                yield each

        stream = calls.call(mock_response="hi you", stream=True)
        stream.custom_llm_provider = "openai"
        stream.completion_stream = iter(chunks) if isinstance(calls, Threads) else later()
        calls.read(stream)

        assert calls.spent() == Prices.default().actual_micros(MODEL, USAGE, service_tier="priority")

    def test_usage_needs_something_that_ends_the_hold(
        self, calls: Any, answer: Any, sent: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(calls.metered._abandoned, "watch", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            calls.call(mock_response=answer, stream=True)

        assert (sent, calls.spent()) == ([], 0)

    def test_whose_provider_told_no_usage_is_charged_in_full(self, calls: Any) -> None:
        """LiteLLM makes one up, by its own count of what it has seen."""
        *_, last = calls.read(calls.call(mock_response="hi you", stream=True))

        assert last.usage.total_tokens > 0
        assert calls.spent() == worst()

    def test_that_is_closed_early_is_charged_in_full(self, calls: Any, answer: Any) -> None:
        stream = calls.call(mock_response=answer, stream=True)
        calls.next(stream)
        assert calls.wallet.stats().live_holds == 1

        calls.close(stream)

        assert calls.spent() == worst()

    def test_that_is_closed_ends_its_providers_answer_too(self, calls: Any) -> None:
        ended = []

        def chunks() -> Any:
            try:
                yield
            finally:
                ended.append(True)

        async def later() -> Any:
            for each in chunks():
                yield each

        stream = calls.call(mock_response="hi you", stream=True)
        stream.completion_stream = chunks() if isinstance(calls, Threads) else later()
        calls.next(provider := stream.completion_stream)

        calls.close(stream)

        assert ended
        del provider

    def test_that_is_dropped_is_charged_in_full(self, calls: Any, answer: Any) -> None:
        stream = calls.call(mock_response=answer, stream=True)
        calls.next(stream)

        del stream

        wait_for(lambda: calls.wallet.stats().live_holds == 0)
        assert calls.spent() == worst()

    def test_that_is_dropped_after_its_usage_is_charged_by_it(self, calls: Any, answer: Any) -> None:
        stream = calls.call(mock_response=answer, stream=True)
        while getattr(calls.next(stream), "usage", None) is None:
            pass

        del stream

        wait_for(lambda: calls.wallet.stats().live_holds == 0)
        assert calls.spent() == actual()

    def test_that_is_dropped_is_litellms_to_clear_up_after(
        self, calls: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dropped: list[Any] = []
        stream = calls.call(mock_response=answer, stream=True)
        monkeypatch.setattr(type(stream).__mro__[1], "__del__", lambda _: dropped.append(True))

        del stream

        wait_for(lambda: gc.collect() >= 0 and bool(dropped))

    def test_that_fails_is_charged_in_full(self, calls: Any, litellm: Any) -> None:
        stream = calls.call(mock_response="Exception: mock_streaming_error", stream=True)
        with pytest.raises(litellm.ServiceUnavailableError):
            calls.read(stream)
        assert calls.spent() == worst()


class TestTheThreadThatEndsDroppedStreams:
    def test_is_one_and_ends_with_what_needs_it(self) -> None:
        calls = Threads(rich=5 * M)
        abandoned = calls.metered._abandoned
        abandoned.watch()
        thread = abandoned._thread
        assert thread is not None
        abandoned.watch()
        assert abandoned._thread is thread
        assert thread.daemon, "a program that ends does not wait for it"

        del abandoned
        calls.metered = None
        gc.collect()

        thread.join(10)
        assert not thread.is_alive()
        calls.end()

    def test_is_there_again_in_a_forked_child(self) -> None:
        calls = Threads(rich=5 * M)
        calls.metered._abandoned.watch()
        if (child := os.fork()) == 0:
            signal.alarm(10)  # It ends, come what may.
            calls.metered._abandoned.watch()
            thread = calls.metered._abandoned._thread
            os._exit(thread is None or not thread.is_alive())
        assert os.waitpid(child, 0)[1] == 0
        calls.end()


class TestACancelledTask:
    def test_is_charged_in_full(self, answer: Any) -> None:
        calls = Loop(rich=5 * M)

        async def main() -> None:
            task = asyncio.create_task(calls.acall(mock_response=answer, mock_delay=3600))
            while calls.wallet.stats().live_holds == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        calls.runner.run(main())
        assert calls.spent() == worst()
        calls.end()

    def test_is_charged_in_full_in_the_middle_of_a_stream(self, litellm: Any) -> None:
        calls = Loop(rich=5 * M)

        async def main() -> None:
            waiting = asyncio.Event()

            async def hangs() -> Any:
                waiting.set()
                await asyncio.sleep(3600)
                yield

            stream = await calls.acall(mock_response="hi you", stream=True)
            stream.completion_stream = hangs()
            task = asyncio.create_task(anext(stream))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        calls.runner.run(main())
        assert calls.spent() == worst()
        calls.end()


def deployment(name: str, model: str) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": f"openai/{model}", "api_key": "none"}}


class TestARouter:
    @pytest.fixture
    def router(self, calls: Any) -> Any:
        return calls.metered.router(
            model_list=[deployment("large", MODEL), deployment("small", OTHER_MODEL)],
            fallbacks=[{"large": ["small"]}],
            num_retries=1,
        )

    def test_holds_for_each_retry_and_each_fallback(self, calls: Any, router: Any, litellm: Any, sent: Any) -> None:
        with pytest.raises(litellm.InternalServerError):
            calls.call(router, model="large", mock_response="litellm.InternalServerError")

        assert sent == [MODEL, MODEL, OTHER_MODEL, OTHER_MODEL]
        assert calls.spent() == 2 * worst() + 2 * worst(OTHER_MODEL)

    def test_answers_and_is_charged_by_the_usage(self, calls: Any, router: Any, answer: Any) -> None:
        calls.call(router, model="large", mock_response=answer)
        assert calls.spent() == actual()

    def test_streams_and_is_charged_by_the_usage(self, calls: Any, router: Any, answer: Any) -> None:
        stream = calls.call(router, model="large", mock_response=answer, stream=True)
        assert any("hi" in str(chunk) for chunk in calls.read(stream))
        assert calls.spent() == actual()

    def test_whose_stream_is_dropped_is_charged_in_full(self, calls: Any, router: Any, answer: Any) -> None:
        stream = calls.call(router, model="large", mock_response=answer, stream=True)
        calls.next(stream)

        del stream

        def ended() -> bool:
            gc.collect()
            calls.turn()  # An event loop closes the generators that were dropped.
            return bool(calls.wallet.stats().live_holds == 0)

        wait_for(ended)
        assert calls.spent() == worst()

    def test_falls_back_to_what_the_agent_can_pay(self, calls: Any, router: Any, answer: Any, sent: Any) -> None:
        answer.model = OTHER_MODEL
        calls.call(router, model="large", mock_response=answer, user="poor")

        assert sent == [OTHER_MODEL]
        assert calls.spent("poor") == actual(OTHER_MODEL)

    def test_sends_nothing_past_the_cap_and_does_not_try_again(
        self, calls: Any, router: Any, sent: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reserve, asked = calls.wallet.reserve, []

        def counted(agent: str, estimate_micros: int, **labels: Any) -> Any:
            asked.append(estimate_micros)
            return reserve(agent, estimate_micros, **labels)

        monkeypatch.setattr(calls.wallet, "reserve", counted)
        with pytest.raises(CapExceeded):
            calls.call(router, model="large", mock_response="hi", user="poor", max_tokens=5_000)

        assert asked == [worst(max_tokens=5_000), worst(OTHER_MODEL, 5_000)]
        assert (sent, calls.spent("poor")) == ([], 0)

    def test_keeps_its_deployments_for_others_when_an_agent_has_no_money(self, calls: Any, answer: Any) -> None:
        router = calls.metered.router(model_list=[deployment("large", MODEL)], num_retries=0, allowed_fails=0)
        for _ in range(3):
            with pytest.raises(CapExceeded):
                calls.call(router, model="large", mock_response="hi", user="poor")

        calls.call(router, model="large", mock_response=answer)

        assert calls.spent() == actual()

    def test_refuses_what_it_does_not_meter(self, router: Any, calls: Any, sent: Any) -> None:
        async def other() -> None:
            await router.acompletion(model="large", messages=MESSAGES, user="rich", mock_response="hi")

        with pytest.raises(InvalidInput, match="does not meter embedding"):
            router.embedding(model="large", input="hi", num_retries=0)
        if isinstance(calls, Threads):
            with pytest.raises(InvalidInput, match="does not meter acompletion"):
                asyncio.run(other())
        else:
            with pytest.raises(InvalidInput, match="does not meter completion"):
                router.completion(model="large", messages=MESSAGES, user="rich", mock_response="hi")
        assert sent == []


class TestTwoHundredCallsAtOnce:
    """Each costs what it holds; there is money for a hundred."""

    CAP = 100 * worst() + worst() // 2

    @pytest.fixture
    def dear(self, litellm: Any) -> Any:
        usage = litellm.Usage(prompt_tokens=9, completion_tokens=MAX_TOKENS, total_tokens=9 + MAX_TOKENS)
        return litellm.ModelResponse(model=MODEL, usage=usage)

    def test_of_threads_use_the_cap_up_and_never_pass_it(self, dear: Any) -> None:
        calls = Threads(rich=self.CAP)

        def call(_: int) -> bool:
            try:
                return bool(calls.call(mock_response=dear, mock_delay=0.05))
            except CapExceeded:
                return False

        with ThreadPoolExecutor(200) as pool:
            paid = sum(pool.map(call, range(200)))

        assert 0.95 * self.CAP <= calls.spent() == paid * worst() <= self.CAP
        calls.end()

    def test_of_tasks_use_the_cap_up_and_never_pass_it(self, dear: Any) -> None:
        calls = Loop(rich=self.CAP)

        async def call() -> bool:
            try:
                return bool(await calls.acall(mock_response=dear, mock_delay=0.05))
            except CapExceeded:
                return False

        async def main() -> int:
            return sum(await asyncio.gather(*(call() for _ in range(200))))

        paid = calls.runner.run(main())
        assert 0.95 * self.CAP <= calls.spent() == paid * worst() <= self.CAP
        calls.end()


def test_the_ledger_has_what_the_calls_cost(spine: Spine, answer: Any) -> None:
    from daycap.litellm import Metered

    agent, wallet = spine.add("agent-7", worst() + actual()), spine.wallet()
    metered = Metered(wallet)

    def call(**call: Any) -> Any:
        return metered.completion(MODEL, MESSAGES, user=agent, max_tokens=MAX_TOKENS, mock_response=answer, **call)

    call()
    list(call(stream=True))
    with pytest.raises(CapExceeded):
        call()

    assert wallet.flush(20) == ()
    assert spine.settled_once(agent) == (2, 2 * actual())
