"""Real prices, offline, from the package genai-prices."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from functools import cache
from typing import NamedTuple

from genai_prices import Usage, calc_price

_TOKENS = 1_000
"""The tokens of a price lookup. Some models cost more above 200,000 tokens; the demo uses the price below that."""


class Model(NamedTuple):
    """A model as genai-prices knows it."""

    provider: str
    name: str


OPUS = Model("anthropic", "claude-opus-4-5")
SONNET = Model("anthropic", "claude-sonnet-4-5")
HAIKU = Model("anthropic", "claude-haiku-4-5")
GPT = Model("openai", "gpt-5")
MINI = Model("openai", "gpt-5-mini")
FLASH = Model("google", "gemini-2.5-flash")


def cost_micros(model: Model, input_tokens: int, output_tokens: int) -> int:
    """Return the cost of a call in micros, rounded up."""
    input_price, output_price = _prices(model)
    return int((input_tokens * input_price + output_tokens * output_price).to_integral_value(ROUND_CEILING))


@cache
def _prices(model: Model) -> tuple[Decimal, Decimal]:
    """Return the prices of one input and one output token in micros. Cached: a lookup is slow."""
    usage = Usage(input_tokens=_TOKENS, output_tokens=_TOKENS)
    prices = calc_price(usage, model_ref=model.name, provider_id=model.provider)
    return prices.input_price * 1_000_000 / _TOKENS, prices.output_price * 1_000_000 / _TOKENS
