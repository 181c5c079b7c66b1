"""No name has a lower price than another list of prices gives it: over all of LiteLLM's models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from daycap import DaycapError, UnknownModel
from daycap.prices import Prices
from daycap.pricing import rates

PEAK = datetime(2026, 11, 24, 2, tzinfo=UTC)
"""When DeepSeek asks most, which is what LiteLLM has for all hours."""

KINDS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "input_cost_per_token": ({}, {}),
    "output_cost_per_token": ({}, {}),
    "cache_read_input_token_cost": ({"cached_tokens": 1}, {}),
    "cache_creation_input_token_cost": ({"cache_write_tokens": 1}, {}),
    "input_cost_per_audio_token": ({"audio_tokens": 1}, {}),
    "input_cost_per_image_token": ({"image_tokens": 1}, {}),
    "output_cost_per_audio_token": ({}, {"audio_tokens": 1}),
    "output_cost_per_image_token": ({}, {"image_tokens": 1}),
    "output_cost_per_reasoning_token": ({}, {"reasoning_tokens": 1}),
}
ONE_PERCENT = Decimal("0.99")

KNOWN = {
    # Nobody writes audio into a model that draws, nor pictures into an embedding of text; and what writes into a cache
    # costs is not known to genai-prices for a model that is not sold any more.
    ("gemini-2.5-flash-image", "input_cost_per_audio_token"),
    ("embed-v4.0", "input_cost_per_image_token"),
    ("claude-3-opus-20240229-v1:0", "cache_creation_input_token_cost"),
}


@pytest.fixture(scope="module")
def models() -> dict[str, dict[str, Any]]:
    # Not imported: it would fetch the newest.
    package = find_spec("litellm")
    assert package is not None
    assert package.origin is not None
    text = Path(package.origin).with_name("model_prices_and_context_window_backup.json").read_text(encoding="utf-8")
    listed: dict[str, dict[str, Any]] = json.loads(text, parse_float=Decimal)
    del listed["sample_spec"]
    return listed


def priced(prices: Prices, name: str, provider: str | None, key: str, size: int) -> Decimal | None:
    """What a million tokens of this kind cost, in dollars; None without a price."""
    went, came = (dict.fromkeys(fields, size) for fields in KINDS[key])
    out = size if key.startswith("output") else 0
    usage = {"prompt_tokens": size, "completion_tokens": out, "prompt_tokens_details": went}
    try:
        cost = prices.actual_micros(name, {**usage, "completion_tokens_details": came}, provider=provider)
        if out:
            cost -= prices.actual_micros(name, {**usage, "completion_tokens": 0}, provider=provider)
    except DaycapError:
        return None
    return Decimal(cost) / size


def cheaper(models: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str | None, str, Decimal, Decimal]]:
    prices = Prices(now=lambda: PEAK)
    for name, listed in models.items():
        for provider in None, listed.get("litellm_provider"):
            for key, price in listed.items():
                base, _, above = key.partition("_above_")
                if base not in KINDS or not price or not re.fullmatch(r"(\d+k_tokens)?", above):
                    continue
                size = int(above.removesuffix("k_tokens")) * 1000 + 1 if above else 10_000
                ours = priced(prices, name, provider, base, size)
                if ours is None:
                    break
                if ours < price * 10**6 * ONE_PERCENT:
                    yield name, provider, key, ours, price * 10**6


def test_no_name_is_priced_below_litellms_price(models: dict[str, dict[str, Any]]) -> None:
    found = [
        each for each in cheaper(models) if not any(each[0].endswith(name) and key == each[2] for name, key in KNOWN)
    ]

    assert found == []


@pytest.mark.parametrize("seller", rates._OTHER_PRICES)
def test_each_price_that_is_refused_would_be_too_low(
    seller: str, models: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = rates._OTHER_PRICES[seller]
    monkeypatch.delitem(rates._OTHER_PRICES, seller)
    names = {name: each for name, each in models.items() if re.search(rf"(?:^|[/.])(?:{pattern})$", name.lower())}

    assert any(cheaper(names))


@pytest.mark.parametrize(
    "name",
    [
        "bedrock/nowhere-9/anthropic.claude-3-5-sonnet-20240620-v1:0",
        "bedrock/us-east-1/meta.llama3-8b-instruct-v1:0",
        "bedrock/invoke/eu-west-2/mistral.mistral-7b-instruct-v0:2",
        "bedrock/arn:aws:bedrock:eu-west-2:1:inference-profile/us.amazon.nova-lite-v1:0",
        "bedrock/eu.amazon.nova-lite-v1:0",
        "bedrock/us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "bedrock/amazon.nova-lite-v1:0-fast",
        "azure_ai/deepseek-r1",
        "azure_ai/grok-3-mini",
        "azure/us/o4-mini",
        "azure/o4-mini-fast",
        "gemini-3.8-flash-cyber",
        "gemini/gemini-2.5-pro-exp-03-25",
        "claude-opus-4-5-fast",
        "claude-opus-4-5-20251101-v2",
        "anthropic.claude-v2:1",
        "mistral/magistral-medium-latest",
        "deepseek/deepseek-v4-flash-vision-exp",
        "gpt-4o-audio-preview-2024-12-17",
    ],
)
def test_a_name_that_is_only_like_a_models_is_refused(name: str) -> None:
    with pytest.raises(UnknownModel):
        Prices.default().worst_case_micros(name, input_tokens=1, max_output_tokens=1)


def test_a_name_that_two_models_have_is_refused() -> None:
    # Perplexity's Agent API calls another model what LiteLLM calls Sonar.
    with pytest.raises(UnknownModel, match="it may be any of"):
        Prices.default().worst_case_micros(
            "perplexity/sonar", provider="perplexity", input_tokens=1, max_output_tokens=1
        )


@pytest.mark.parametrize(
    ("name", "dollars"),
    [
        ("claude-opus-4-5", 5),
        ("claude-opus-4-5-20251101", 5),
        ("claude-sonnet-4-20250514", 3),
        ("vertex_ai/claude-opus-4-5@20251101", 5),
        ("vertex_ai/claude-opus-4-5@default", 5),
        ("bedrock/anthropic.claude-opus-4-5-20251101-v1:0", 5.5),
        ("bedrock/us.anthropic.claude-3-5-sonnet-20240620-v1:0", 3),
        ("bedrock/converse/eu.anthropic.claude-opus-4-5-20251101-v1:0", 5.5),
        ("bedrock/global.anthropic.claude-opus-4-5-20251101-v1:0", 5),
        ("bedrock/us.meta.llama3-3-70b-instruct-v1:0", 0.72),
        ("azure/gpt-4o-2024-08-06", 2.5),
        ("azure_ai/claude-opus-4-5", 5),
        ("gemini-3.8-flash", 0.75),
        ("gemini-2.5-flash-lite-preview-09-2025", 0.1),
        ("openai/ft:gpt-4o-2024-08-06:acme::7p4lURel", 3.75),
        ("gpt-5-nano-2025-08-07", 0.05),
        ("gpt-5-20250807", 1.25),
    ],
)
def test_a_name_with_a_version_is_the_models(name: str, dollars: float) -> None:
    usage = {"prompt_tokens": 100_000, "completion_tokens": 0}
    assert Prices.default().actual_micros(name, usage) == dollars * 100_000


def test_a_price_holds_up_to_the_context_that_it_is_for() -> None:
    name, prices = "bedrock/global.anthropic.claude-sonnet-4-5-20250929-v1:0", Prices.default()
    assert prices.actual_micros(name, {"prompt_tokens": 200_000, "completion_tokens": 1}) == 600_015
    with pytest.raises(UnknownModel, match="more than 200000 tokens"):
        prices.actual_micros(name, {"prompt_tokens": 200_001, "completion_tokens": 1})
    with pytest.raises(UnknownModel, match="more than 200000 tokens"):
        prices.worst_case_micros(name, input_tokens=200_001, max_output_tokens=1)


def test_a_sellers_own_price_goes_before_the_makers() -> None:
    # Google has no price for Anthropic's searches; Anthropic has.
    usage = {"input_tokens": 1, "output_tokens": 1, "server_tool_use": {"web_search_requests": 1}}
    assert Prices.default().actual_micros("claude-fable-5", usage) > 10_000
    with pytest.raises(UnknownModel, match="web searches"):
        Prices.default().actual_micros("vertex_ai/claude-fable-5", usage)
