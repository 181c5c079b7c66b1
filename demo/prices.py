"""Real prices, offline: the package genai-prices carries them."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from functools import cache
from typing import NamedTuple

from genai_prices import Usage, calc_price

_MILLION = 1_000_000


class Model(NamedTuple):
    """A model as genai-prices knows it."""

    provider: str
    name: str


CHEAP = Model("openai", "gpt-5-mini")
DEAR = Model("anthropic", "claude-opus-4-5")


def cost_micros(model: Model, input_tokens: int, output_tokens: int) -> int:
    """What a call costs, in micros, rounded up. The models above cost the same for every token of a kind."""
    input_price, output_price = _prices(model)
    return int((input_tokens * input_price + output_tokens * output_price).to_integral_value(ROUND_CEILING))


@cache
def _prices(model: Model) -> tuple[Decimal, Decimal]:
    """US dollars for a million tokens read and written, which is micros for one. Looked up once: it is slow."""
    prices = calc_price(
        Usage(input_tokens=_MILLION, output_tokens=_MILLION), model_ref=model.name, provider_id=model.provider
    )
    return prices.input_price, prices.output_price
