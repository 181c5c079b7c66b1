"""Where an answer tells what its provider billed, that is the cost; nobody else's figure is believed."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from daycap import InvalidInput
from daycap.prices import Prices
from daycap.pricing.bills import billed_micros

TOKENS = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
MODEL = "openrouter/openai/gpt-4o"
BY_TOKENS = 450
"""What they cost of gpt-4o by its price."""


def cost(usage: dict[str, Any], model: str = MODEL, provider: str | None = None) -> int:
    return Prices.default().actual_micros(model, {**TOKENS, **usage}, provider=provider)


@pytest.mark.parametrize(
    ("dollars", "micros"),
    [
        (0.016062, 16_062),
        (0.1, 100_000),
        (0.0000001, 1),
        (7.5e-05, 75),
        (1, 1_000_000),
        (Decimal("0.0160621"), 16_063),
        (0, 0),
        (0.0, 0),
        (None, BY_TOKENS),
    ],
)
def test_openrouters_cost_is_the_bill(dollars: object, micros: int) -> None:
    assert cost({"cost": dollars}) == cost({"cost": dollars}, "openai/gpt-4o", "openrouter") == micros


@pytest.mark.parametrize("bad", [-0.1, -1, float("nan"), float("inf"), True, "0.1", {}, 1e10, Decimal("NaN")])
def test_a_cost_that_is_no_price_is_refused(bad: object) -> None:
    with pytest.raises(InvalidInput, match="invalid cost"):
        cost({"cost": bad})


def test_with_a_key_of_your_own_both_bill() -> None:
    usage = {"cost": 0.95, "is_byok": True, "cost_details": {"upstream_inference_cost": 19}}

    assert cost(usage) == 19_950_000
    assert cost({**usage, "is_byok": None}) == 19_950_000
    assert cost({**usage, "is_byok": False}) == 950_000
    assert cost({"cost": 0.95, "cost_details": {"upstream_inference_cost": None}}) == 950_000
    with pytest.raises(InvalidInput, match="your own key"):
        cost({"cost": 0.95, "is_byok": True})


def test_xais_ticks_are_the_bill() -> None:
    assert cost({"cost_in_usd_ticks": 37_756_001}, "xai/grok-4") == 3776
    assert cost({"cost_in_usd_ticks": 0}, "grok-4") == 0
    # Of the bill its searches are a part, which a usage without one could not tell the price of.
    assert cost({"cost_in_usd_ticks": 10**10, "num_sources_used": 5}, "xai/grok-4") == 1_000_000
    with pytest.raises(InvalidInput, match="unknown count"):
        cost({"num_sources_used": 5}, "xai/grok-4")
    with pytest.raises(InvalidInput, match="cost_in_usd_ticks"):
        cost({"cost_in_usd_ticks": 1.5}, "xai/grok-4")


def test_perplexitys_total_is_the_bill() -> None:
    billed = {"cost": {"input_tokens_cost": 0.0001, "request_cost": 0.005, "total_cost": 0.0051}}
    assert cost(billed, "perplexity/sonar-pro") == 5100


@pytest.mark.parametrize("model", ["gpt-4o", "openai/gpt-4o", "azure/gpt-4o"])
def test_nobody_elses_cost_is_believed(model: str) -> None:
    assert cost({"cost": 0.01, "cost_in_usd_ticks": 7, "cost_details": {"x": 1}}, model) == BY_TOKENS


def test_pydantic_ais_estimate_is_no_bill() -> None:
    usage = {"input_tokens": 100, "output_tokens": 20, "cache_read_tokens": 0, "cost": Decimal("0.5")}
    assert billed_micros("openrouter", usage) is None


def test_the_bill_goes_before_own_prices(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('["openrouter/new"]\ninput = 1\noutput = 1\n')
    prices = Prices.from_file(file)

    assert prices.actual_micros("openrouter/new", TOKENS) == 120
    assert prices.actual_micros("openrouter/new", {**TOKENS, "cost": 0.5}) == 500_000
