"""The usage objects of the real client packages, priced and worked out by hand; and what LiteLLM says of the same."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, cast

import anthropic.types
import anthropic.types.beta
import pytest
from google.genai import types as google
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from openai.types import CompletionUsage, CreateEmbeddingResponse
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails
from openai.types.create_embedding_response import Usage as EmbeddingUsage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails, ResponseUsage
from pydantic import TypeAdapter
from pydantic_ai.usage import RequestUsage, RunUsage

from daycap import InvalidInput, UnknownModel
from daycap.prices import Prices

PRICES = Prices.default()


@pytest.fixture(scope="module")
def litellm() -> Any:
    """The package, with the prices that it carries instead of those it would fetch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

    return litellm


def each_form(usage: Any) -> list[Any]:
    """The object, as a dict, and as JSON has it."""
    return [usage, usage.model_dump(), usage.model_dump(mode="json", by_alias=True, exclude_none=True)]


def test_openai_counts_cached_tokens_inside() -> None:
    usage = CompletionUsage(
        prompt_tokens=1000,
        completion_tokens=200,
        total_tokens=1200,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=600, audio_tokens=0),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=150, rejected_prediction_tokens=10),
    )
    for form in each_form(usage):
        # gpt-4o: 2.50 in, 1.25 cached, 10 out
        assert PRICES.actual_micros("gpt-4o", form) == 400 * 2.5 + 600 * 1.25 + 200 * 10


def test_openais_audio_tokens_have_their_own_price() -> None:
    usage = CompletionUsage(
        prompt_tokens=1000,
        completion_tokens=200,
        total_tokens=1200,
        prompt_tokens_details=PromptTokensDetails(audio_tokens=900),
        completion_tokens_details=CompletionTokensDetails(audio_tokens=150),
    )
    for form in each_form(usage):
        # gpt-audio: 2.50 in and 10 out, of audio 32 in and 64 out
        assert PRICES.actual_micros("gpt-audio", form) == 100 * 2.5 + 900 * 32 + 50 * 10 + 150 * 64


def test_openais_responses_have_cached_and_reasoning_tokens_inside() -> None:
    usage = ResponseUsage(
        input_tokens=1000,
        input_tokens_details=InputTokensDetails(cached_tokens=600, cache_write_tokens=100),
        output_tokens=200,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=150),
        total_tokens=1200,
    )
    for form in each_form(usage):
        # gpt-6-sol: 2 in, 0.20 cached, 2.50 written, 10 out
        assert PRICES.actual_micros("gpt-6-sol", form) == 300 * 2 + 600 * 0.2 + 100 * 2.5 + 200 * 10


def test_openais_embeddings_only_read() -> None:
    answer = CreateEmbeddingResponse(
        data=[], model="e", object="list", usage=EmbeddingUsage(prompt_tokens=1000, total_tokens=1000)
    )
    for form in each_form(answer.usage):
        assert PRICES.actual_micros("openai/text-embedding-3-small", form) == 20


def anthropic_usage(**more: Any) -> anthropic.types.Usage:
    return anthropic.types.Usage(
        input_tokens=100,
        output_tokens=200,
        cache_read_input_tokens=5000,
        cache_creation_input_tokens=3000,
        cache_creation=anthropic.types.CacheCreation(ephemeral_5m_input_tokens=2000, ephemeral_1h_input_tokens=1000),
        **more,
    )


# claude-opus-4-5: 5 in, 0.50 read from a cache, 6.25 and 10 written for 5m and 1h, 25 out
ANTHROPIC_MICROS = 100 * 5 + 5000 * 0.5 + 2000 * 6.25 + 1000 * 10 + 200 * 25


def test_anthropics_cached_tokens_come_on_top() -> None:
    for form in each_form(anthropic_usage(service_tier="priority", speed="standard", inference_geo="global")):
        assert PRICES.actual_micros("claude-opus-4-5", form) == ANTHROPIC_MICROS


def test_anthropics_searches_batches_and_fast_mode_have_their_prices() -> None:
    searched = anthropic_usage(
        server_tool_use=anthropic.types.ServerToolUsage(web_fetch_requests=9, web_search_requests=3)
    )
    for form in each_form(searched):
        assert PRICES.actual_micros("claude-opus-4-5", form) == ANTHROPIC_MICROS + 30_000
    for form in each_form(anthropic_usage(service_tier="batch")):
        assert PRICES.actual_micros("claude-opus-4-5", form) == ANTHROPIC_MICROS / 2
    for form in each_form(anthropic_usage(speed="fast")):
        assert PRICES.actual_micros("claude-opus-5", form) == ANTHROPIC_MICROS * 2
        with pytest.raises(UnknownModel, match="fast"):
            PRICES.actual_micros("claude-opus-4-5", form)
    for form in each_form(anthropic_usage(inference_geo="us")):
        with pytest.raises(UnknownModel, match="inference_geo=us"):
            PRICES.actual_micros("claude-opus-5", form)


def test_anthropics_last_usage_may_lack_input() -> None:
    whole = anthropic.types.MessageDeltaUsage(input_tokens=100, output_tokens=200, cache_read_input_tokens=5000)
    part = anthropic.types.MessageDeltaUsage(output_tokens=200)

    assert PRICES.actual_micros("claude-opus-4-5", whole) == 100 * 5 + 5000 * 0.5 + 200 * 25
    with pytest.raises(InvalidInput, match="has no input_tokens"):
        PRICES.actual_micros("claude-opus-4-5", part)


def test_anthropic_counts_compactions_on_top() -> None:
    def counts(tokens: int) -> dict[str, Any]:
        return {
            "input_tokens": tokens,
            "output_tokens": 200,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "model": "claude-opus-4-5",
        }

    def usage(kind: str) -> anthropic.types.beta.BetaUsage:
        iterations = [{"type": kind, **counts(5000)}, {"type": "message", **counts(100)}]
        return anthropic.types.beta.BetaUsage.model_validate({**counts(100), "iterations": iterations})

    for form in each_form(usage("message")):
        assert PRICES.actual_micros("claude-opus-4-5", form) == 100 * 5 + 200 * 25
    for form in each_form(usage("compaction")):
        assert PRICES.actual_micros("claude-opus-4-5", form) == 5100 * 5 + 400 * 25
    for kind in "advisor_message", "fallback_message":
        for form in each_form(usage(kind)):
            with pytest.raises(InvalidInput, match=kind):
                PRICES.actual_micros("claude-opus-4-5", form)


def modal(**counts: int) -> list[google.ModalityTokenCount]:
    return [
        google.ModalityTokenCount(modality=google.MediaModality[each.upper()], token_count=count)
        for each, count in counts.items()
    ]


def test_google_counts_thoughts_on_top() -> None:
    usage = google.GenerateContentResponseUsageMetadata(
        prompt_token_count=1000,
        prompt_tokens_details=modal(text=700, audio=300),
        cached_content_token_count=400,
        cache_tokens_details=modal(text=300, audio=100),
        candidates_token_count=50,
        candidates_tokens_details=modal(text=50),
        thoughts_token_count=70,
        tool_use_prompt_token_count=200,
        total_token_count=1320,
    )
    # gemini-2.5-flash: 0.30 in, 0.03 cached, of audio 1 and 0.10; 2.50 out
    expected = math.ceil(600 * 0.3 + 300 * 0.03 + 200 * 1 + 100 * 0.1 + 120 * 2.5)
    for form in each_form(usage):
        assert PRICES.actual_micros("gemini-2.5-flash", form) == expected


def test_google_leaves_out_what_did_not_come_out() -> None:
    usage = google.GenerateContentResponseUsageMetadata(
        prompt_token_count=1000, thoughts_token_count=70, total_token_count=1070
    )
    for form in each_form(usage):
        assert PRICES.actual_micros("gemini-2.5-flash", form) == 300 + 175
    with pytest.raises(InvalidInput, match="neither"):
        PRICES.actual_micros("gemini-2.5-flash", google.GenerateContentResponseUsageMetadata(prompt_token_count=9))


def test_a_large_context_has_googles_price_for_it() -> None:
    for prompt, input_price, output_price in (200_000, 1.25, 10), (200_001, 2.5, 15):
        usage = google.GenerateContentResponseUsageMetadata(
            prompt_token_count=prompt, candidates_token_count=100, total_token_count=prompt + 100
        )
        expected = math.ceil(prompt * input_price + 100 * output_price)
        assert PRICES.actual_micros("gemini-2.5-pro", usage) == expected


def langchains(input_tokens: int, output_tokens: int, came: OutputTokenDetails, **went: int) -> Any:
    message = AIMessage(
        "hello",
        usage_metadata=UsageMetadata(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            total_tokens=input_tokens + output_tokens,
            input_token_details=cast("InputTokenDetails", went),
            output_token_details=came,
        ),
    )
    return message.usage_metadata


@pytest.mark.parametrize(
    ("model", "went", "micros"),
    [
        # claude-opus-4-5: 5 in, 0.50 read from a cache, 6.25 and 10 written for 5m and 1h, 25 out
        ("claude-opus-4-5", {"cache_read": 5000}, 5100 * 5 + 5000 * 0.5 + 200 * 25),
        ("claude-opus-4-5", {"cache_creation": 5000}, 5100 * 5 + 5000 * 6.25 + 200 * 25),
        (
            "claude-opus-4-5",
            {"cache_creation": 0, "ephemeral_1h_input_tokens": 4000, "ephemeral_5m_input_tokens": 1000},
            5100 * 5 + 4000 * 10 + 1000 * 6.25 + 200 * 25,
        ),
        # gemini-2.5-flash: 0.30 in, of audio 1; 2.50 out
        ("gemini-2.5-flash", {"audio": 9000}, 1100 * 0.3 + 9000 * 1 + 200 * 2.5),
    ],
)
def test_langchains_details_have_their_prices(model: str, went: dict[str, int], micros: float) -> None:
    usage = langchains(10_100, 200, OutputTokenDetails(reasoning=150), **went)

    assert PRICES.actual_micros(model, usage) == micros


def test_langchains_audio_and_reasoning_come_out() -> None:
    # gpt-audio: 2.50 in and 10 out, of audio 64 out
    usage = langchains(1000, 200, OutputTokenDetails(audio=150, reasoning=20))
    assert PRICES.actual_micros("gpt-audio", usage) == 1000 * 2.5 + 50 * 10 + 150 * 64


def test_langchains_unknown_and_double_details_are_refused() -> None:
    for went in {"film": 5}, {"cache_creation": 5, "ephemeral_1h_input_tokens": 5}:
        with pytest.raises(InvalidInput, match=r"unknown count|without a ttl"):
            PRICES.actual_micros("gpt-4o", langchains(100, 20, OutputTokenDetails(), **went))


def pydantic_ais(**counts: Any) -> list[Any]:
    usages = RequestUsage(**counts), RunUsage(**counts, requests=1, tool_calls=3)
    return [*usages, *(TypeAdapter(type(each)).dump_python(each) for each in usages)]


def test_pydantic_ais_cached_tokens_are_inside() -> None:
    counts = {
        "input_tokens": 8100,
        "cache_read_tokens": 5000,
        "cache_write_tokens": 3000,
        "cache_write_1h_tokens": 1000,
        "output_tokens": 200,
        "details": {"cache_read_input_tokens": 5000, "input_tokens": 100, "output_tokens": 200},
        "cost": Decimal("0.5"),
    }
    for usage in pydantic_ais(**counts):
        assert PRICES.actual_micros("claude-opus-4-5", usage) == ANTHROPIC_MICROS


def test_pydantic_ais_audio_has_its_own_price() -> None:
    counts = {
        "input_tokens": 1000,
        "input_audio_tokens": 300,
        "cache_read_tokens": 400,
        "cache_audio_read_tokens": 100,
        "output_tokens": 120,
        "output_reasoning_tokens": 70,
        "details": {"audio_prompt_tokens": 300, "text_prompt_tokens": 700, "thoughts_tokens": 70},
    }
    # gemini-2.5-flash: 0.30 in, 0.03 cached, of audio 1 and 0.10; 2.50 out
    expected = math.ceil(400 * 0.3 + 300 * 0.03 + 200 * 1 + 100 * 0.1 + 120 * 2.5)
    for usage in pydantic_ais(**counts):
        assert PRICES.actual_micros("gemini-2.5-flash", usage) == expected


@pytest.mark.parametrize(
    "counts",
    [
        {"unmeasured_requests": 1},
        {"details": {"audio_prompt_tokens": 5}},
        {"details": {"film_tokens": 5}},
        {"audio_seconds": 4.5},
        {"input_tokens": 0, "output_tokens": 0, "details": {"input_tokens": 5}},
        {"cache_read_tokens": 101},
        {"film_tokens": 5},
    ],
)
def test_pydantic_ais_partial_usages_are_refused(counts: dict[str, Any]) -> None:
    for usage in pydantic_ais(**{"input_tokens": 100, "output_tokens": 20, **counts}):
        with pytest.raises(InvalidInput, match="usage"):
            PRICES.actual_micros("gpt-4o", usage)


def test_a_sum_of_several_calls_has_no_price_by_context() -> None:
    usage = RunUsage(requests=2, input_tokens=200_000, output_tokens=100)
    # gemini-2.5-pro: 1.25 in and 10 out, up to a context of 200,000
    assert PRICES.actual_micros("gemini-2.5-pro", usage) == 250_000 + 1000
    usage.incr(RequestUsage(input_tokens=1))
    with pytest.raises(InvalidInput, match="several calls"):
        PRICES.actual_micros("gemini-2.5-pro", usage)
    assert PRICES.actual_micros("gpt-4o", usage) == 200_001 * 2.5 + 0.5 + 1000


def test_litellms_usage_of_anthropic_costs_what_anthropics_own_does(litellm: Any) -> None:
    # Given what LiteLLM itself makes of Anthropic's usage
    usage = litellm.AnthropicConfig().calculate_usage(
        usage_object=anthropic_usage().model_dump(), reasoning_content=None
    )

    assert type(usage) is litellm.Usage
    assert usage.prompt_tokens == 8100
    for form in usage, usage.model_dump():
        assert PRICES.actual_micros("anthropic/claude-opus-4-5", form) == ANTHROPIC_MICROS


def test_litellms_usage_of_google_costs_what_googles_own_does(litellm: Any) -> None:
    metadata = google.GenerateContentResponseUsageMetadata(
        prompt_token_count=1000,
        prompt_tokens_details=modal(text=700, audio=300),
        cached_content_token_count=400,
        cache_tokens_details=modal(text=400),
        candidates_token_count=50,
        thoughts_token_count=70,
        total_token_count=1120,
    )
    answer = {"usageMetadata": metadata.model_dump(mode="json", by_alias=True, exclude_none=True)}
    usage = litellm.VertexGeminiConfig._calculate_usage(answer)

    own = PRICES.actual_micros("gemini/gemini-2.5-flash", metadata)
    assert PRICES.actual_micros("gemini/gemini-2.5-flash", usage) == own


def test_litellm_hands_openrouters_bill_on(litellm: Any) -> None:
    bill = {"cost": 0.016062, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.1}}
    usage = litellm.Usage(prompt_tokens=1000, completion_tokens=200, total_tokens=1200, **bill)

    assert PRICES.actual_micros("openrouter/openai/gpt-4o", usage) == 116_062
    assert PRICES.actual_micros("gpt-4o", usage) == 1000 * 2.5 + 200 * 10


def test_a_stream_whose_usage_litellm_did_not_hear_is_refused(litellm: Any) -> None:
    with pytest.raises(InvalidInput, match="did not report"):
        PRICES.actual_micros("gpt-4o", litellm.Usage())


def test_perplexitys_research_comes_on_top_of_its_tokens() -> None:
    usage = {
        "prompt_tokens": 33,
        "completion_tokens": 7163,
        "total_tokens": 7196,
        "citation_tokens": 20_016,
        "num_search_queries": 30,
        "reasoning_tokens": 157_139,
    }
    # 2 in, 8 out, 3 reasoning, 2 cited, 5,000 for a search
    expected = 33 * 2 + 7163 * 8 + 157_139 * 3 + 20_016 * 2 + 30 * 5000
    assert PRICES.actual_micros("perplexity/sonar-deep-research", usage) == expected
    # A usage of reasoning tokens alone has counted them as output; of its searches at least one is billed.
    del usage["citation_tokens"]
    assert PRICES.actual_micros("perplexity/sonar-deep-research", usage) == 33 * 2 + 7163 * 8 + 5000


@pytest.mark.filterwarnings("ignore:Item:UserWarning")  # Pydantic, of a type of LiteLLM's with fields to read only.
@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o",
        "openai/gpt-4o-mini",
        "gpt-4.1",
        "gpt-5",
        "gpt-5-mini",
        "o3",
        "gpt-6-sol",
        "azure/gpt-4o",
        "anthropic/claude-haiku-4-5",
        "claude-sonnet-4-5",
        "claude-opus-4-7",
        "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "gemini/gemini-2.5-flash",
        "vertex_ai/gemini-2.5-pro",
        "cohere/command-a-03-2025",
    ],
)
def test_litellm_finds_the_same_cost(litellm: Any, model: str) -> None:
    usage = litellm.Usage(
        prompt_tokens=10_000,
        completion_tokens=3000,
        total_tokens=13_000,
        prompt_tokens_details={"cached_tokens": 4001},
        completion_tokens_details={"reasoning_tokens": 1000},
    )
    cost = litellm.completion_cost(litellm.ModelResponse(model=model, usage=usage), model=model)

    # Its sums are floats: they are off by far less than a hundredth of a micro.
    assert PRICES.actual_micros(model, usage) == math.ceil(cost * 1e6 - 0.01)
