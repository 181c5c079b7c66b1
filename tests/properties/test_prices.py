"""What a call costs is never more than its worst case, and is what genai-prices says: over all of its models."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
    Usage,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from daycap import MAX_MICROS, UnknownModel
from daycap.prices import Prices
from daycap.pricing.usage import read_usage

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
PROFILE = settings(max_examples=50_000 if THOROUGH else 400, derandomize=not THOROUGH, database=None, deadline=None)
TIERS = ["", "priority", "flex", "batch", "fast"]


def models() -> Iterator[tuple[Provider, ModelInfo]]:
    for provider in get_snapshot().providers:
        for model in provider.models:
            # Some are hidden: an earlier one is found by their id.
            if provider.find_model(model.id) is model:
                yield provider, model


def conditions(model: ModelInfo) -> list[ConditionalPrice]:
    return model.prices if isinstance(model.prices, list) else [ConditionalPrice(prices=model.prices)]


def is_rare(model: ModelInfo) -> bool:
    """Whether it has a price by the hour or by the context, or for a kind of token that few have one for."""
    return any(
        isinstance(each.constraint, TimeOfDateConstraint)
        or any(isinstance(price, TieredPrices) for price in vars(each.prices).values())
        or any(
            kind in key for key in vars(each.prices) for kind in ("audio", "image", "video", "reasoning", "requests")
        )
        for each in conditions(model)
    )


MODELS = list(models())
RARE = [found for found in MODELS if is_rare(found[1])]
tokens = st.one_of(st.integers(0, 1000), st.integers(0, 250_000), st.integers(0, 2_000_000))
minutes = st.integers(0, 24 * 60).map(lambda count: timedelta(minutes=count))


@st.composite
def models_and_times(draw: st.DrawFn) -> tuple[Provider, ModelInfo, datetime]:
    """Any model, the rare ones often; at any time, often on the day before one of its prices begins."""
    provider, model = draw(st.one_of(st.sampled_from(MODELS), st.sampled_from(RARE)))
    days = [
        each.constraint.start_date for each in conditions(model) if isinstance(each.constraint, StartDateConstraint)
    ]
    day = draw(st.sampled_from([date(2024, 1, 1), date(2027, 1, 1), *days]))
    return provider, model, datetime.combine(day, time(), tzinfo=UTC) - draw(minutes)


@st.composite
def chat_usages(draw: st.DrawFn) -> dict[str, Any]:
    """A usage as OpenAI and LiteLLM write it, with any division of its tokens."""
    read, written, fresh, audio, image = (draw(st.one_of(st.just(0), tokens)) for _ in range(5))
    prompt = read + written + fresh + audio + image
    reasoning, plain, spoken, drawn = (draw(st.one_of(st.just(0), tokens)) for _ in range(4))
    return {
        "prompt_tokens": prompt + (not prompt),
        "completion_tokens": reasoning + plain + spoken + drawn,
        "prompt_tokens_details": {
            "cached_tokens": read,
            "cache_write_tokens": written,
            "cache_creation_token_details": {"ephemeral_1h_input_tokens": draw(st.integers(0, written))},
            "audio_tokens": audio,
            "image_tokens": image,
        },
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": spoken, "image_tokens": drawn},
        "server_tool_use": {"web_search_requests": draw(st.integers(0, 3))},
    }


@st.composite
def anthropic_usages(draw: st.DrawFn) -> dict[str, Any]:
    short, long, rest = (draw(st.one_of(st.just(0), tokens)) for _ in range(3))
    return {
        "input_tokens": draw(st.integers(1, 300_000)),
        "output_tokens": draw(tokens),
        "cache_read_input_tokens": draw(tokens),
        "cache_creation_input_tokens": short + long + rest,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
        "service_tier": draw(st.sampled_from(["standard", "priority", "batch"])),
    }


@st.composite
def google_usages(draw: st.DrawFn) -> dict[str, Any]:
    asked = {modality: draw(tokens) for modality in ("TEXT", "AUDIO", "IMAGE", "VIDEO", "DOCUMENT")}
    cached = {modality: draw(st.integers(0, count)) for modality, count in asked.items()}
    return {
        "prompt_token_count": 1 + sum(asked.values()),
        "cached_content_token_count": sum(cached.values()),
        "candidates_token_count": draw(tokens),
        "thoughts_token_count": draw(tokens),
        "tool_use_prompt_token_count": draw(tokens),
        "prompt_tokens_details": [{"modality": each, "token_count": count} for each, count in asked.items()],
        "cache_tokens_details": [{"modality": each, "token_count": count} for each, count in cached.items()],
    }


@PROFILE
@given(
    models_and_times(),
    st.one_of(chat_usages(), anthropic_usages(), google_usages()),
    minutes,
    st.sampled_from(TIERS),
    st.integers(0, 1000),
)
def test_a_call_never_costs_more_than_its_worst_case(
    found: tuple[Provider, ModelInfo, datetime], usage: dict[str, Any], took: timedelta, tier: str, spare: int
) -> None:
    # Given a call within its limits, of any model at any time, that ends within a day
    provider, model, now = found
    used = read_usage(usage)
    limits: dict[str, Any] = {
        "input_tokens": used.input_tokens + spare,
        "max_output_tokens": used.output_tokens + spare,
        "max_web_searches": used.web_searches,
        "service_tier": used.service_tier or tier,
    }
    try:
        worst = Prices(now=lambda: now).worst_case_micros(model.id, provider=provider.id, **limits)
    except UnknownModel:
        # Then it is either refused before it
        return

    # Or its cost is known afterwards, whatever service tier served it, and was foreseen
    ended = Prices(now=lambda: now + took)
    for served in {tier, "default"}:
        actual = ended.actual_micros(model.id, usage, provider=provider.id, service_tier=served)
        assert 0 <= actual <= worst <= MAX_MICROS


@PROFILE
@given(models_and_times(), chat_usages())
def test_a_call_costs_what_genai_prices_says(
    found: tuple[Provider, ModelInfo, datetime], usage: dict[str, Any]
) -> None:
    # Given a usage of which genai-prices needs not be told what was cached of which kind
    provider, model, now = found
    asked, came = usage["prompt_tokens_details"], usage["completion_tokens_details"]
    asked["audio_tokens"] = asked["image_tokens"] = 0
    try:
        actual = Prices(now=lambda: now).actual_micros(model.id, usage, provider=provider.id)
    except UnknownModel:
        return

    # When genai-prices is asked the same
    price = model.calc_price(
        Usage(
            input_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
            cache_read_tokens=asked["cached_tokens"],
            cache_write_tokens=asked["cache_write_tokens"],
            cache_write_1h_tokens=asked["cache_creation_token_details"]["ephemeral_1h_input_tokens"],
            output_reasoning_tokens=came["reasoning_tokens"],
            output_audio_tokens=came["audio_tokens"],
            output_image_tokens=came["image_tokens"],
            web_searches=usage["server_tool_use"]["web_search_requests"],
        ),
        provider,
        genai_request_timestamp=now,
    )

    # Then it says the same, rounded up; its `requests` it bills by itself
    assert actual == math.ceil(price.total_price * Decimal(10**6))


def test_nearly_all_models_can_be_priced_by_their_tokens() -> None:
    # Given a usage with cached and reasoning tokens, and one that only reads, for what is without output
    details = {"cached_tokens": 100_000, "cache_write_tokens": 20_000}
    chat = {
        "prompt_tokens": 250_000,
        "completion_tokens": 5000,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": 3000},
    }
    embedding = {"prompt_tokens": 250_000, "total_tokens": 250_000}
    prices = Prices.default()
    priced = 0

    for provider, model in MODELS:
        for usage, most_out in (chat, 5000), (embedding, 0):
            try:
                worst = prices.worst_case_micros(
                    model.id, provider=provider.id, input_tokens=250_000, max_output_tokens=most_out
                )
            except UnknownModel:
                continue
            assert 0 <= prices.actual_micros(model.id, usage, provider=provider.id) <= worst
            priced += 1
            break

    assert priced > 0.95 * len(MODELS) > 2000
