"""Compute a call's worst-case cost before it, and its actual cost from its usage, in whole micros.

Needs genai-prices (`pip install "daycap[prices]"`), which bundles the prices of many providers. Nothing is downloaded.
Arithmetic is exact, in Decimal; only the result is rounded, upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Context, Decimal, localcontext
from pathlib import Path
from typing import NamedTuple

try:
    from genai_prices.data_snapshot import DataSnapshot, get_snapshot
    from genai_prices.types import TieredPrices
except ImportError as error:
    raise ImportError(f'daycap.prices needs genai-prices: pip install "daycap[prices]" ({error})') from error

from daycap.errors import InvalidInput
from daycap.formats import shown
from daycap.money import MAX_MICROS, MICROS_PER_USD, micros
from daycap.pricing.bills import billed_micros
from daycap.pricing.own import OwnPrice, read_own_prices
from daycap.pricing.rates import KINDS, ModelRates, Rates, find_model, find_seller
from daycap.pricing.usage import AnyUsage, read_usage
from daycap.pricing.used_tokens import Part, UsedTokens

_MOST_REMEMBERED = 1024
_DIGITS = 200
_KNOWN_TTLS = {"", *(kind.get("cache_ttl", "") for kind in KINDS.values())}


class _Remembered(NamedTuple):
    """The models looked up in a snapshot. Replaced together with it."""

    snapshot: DataSnapshot
    models: dict[tuple[str, str | None], ModelRates]


class Prices:
    """The prices of models: your own, which take precedence, and those of genai-prices. Thread-safe.

    `now` returns the time, for prices that change with the date or the hour.
    """

    def __init__(
        self, own: Iterable[OwnPrice] = (), *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._own = tuple(own)
        self._now = now
        self._remembered = _Remembered(get_snapshot(), {})

    @classmethod
    def default(cls) -> Prices:
        """Return the prices that genai-prices bundles."""
        return cls()

    @classmethod
    def from_file(cls, path: str | Path) -> Prices:
        """Return prices with your own from a file first; see `read_own_prices`. Raises `InvalidSetting`."""
        return cls(read_own_prices(path))

    def worst_case_micros(
        self,
        model: str,
        *,
        input_tokens: int,
        max_output_tokens: int,
        provider: str | None = None,
        service_tier: str | None = None,
        max_web_searches: int = 0,
    ) -> int:
        """Return the most that a call can cost within these limits, in micros, rounded up.

        `input_tokens` includes cached tokens, `max_output_tokens` includes reasoning. Each token is counted at the
        highest price that it may have: written to a long-lived cache, as audio, in the largest context reached, at
        the most expensive hour. `service_tier` is what the request asks for ("priority", "flex", "batch", "fast").
        The provider may serve it at the default tier, so that price counts too.

        Raises `UnknownModel`, `InvalidInput` if a number is not a count, and `InvalidAmount` above 2**53 - 1 micros.
        """
        tokens = {
            "input": _count("input_tokens", input_tokens),
            "output": _count("max_output_tokens", max_output_tokens),
        }
        searches = _count("max_web_searches", max_web_searches)
        found = self._find(model, provider)
        found.refuse_larger(tokens["input"])
        possible = found.possible(self._now(), _tier(service_tier))
        with _exact():
            cost = sum(
                count * _dearest(found, possible, direction, tokens["input"])
                for direction, count in tokens.items()
                if count
            )
            return _rounded_up(cost + max(_besides(found, rates, searches) for rates in possible))

    def actual_micros(
        self, model: str, usage: AnyUsage, *, provider: str | None = None, service_tier: str | None = None
    ) -> int:
        """Return the actual cost of a call, in micros, rounded up: the provider's bill, else usage times price.

        `usage` is the usage object of OpenAI (chat completions, Responses, embeddings), Anthropic, Google, LiteLLM,
        LangChain or Pydantic AI, or a dict of its fields; see `daycap.pricing.usage`. If OpenRouter, xAI or
        Perplexity report what they billed, that is the cost, even with your own prices; see `daycap.pricing.bills`.
        `service_tier` is the one in the response: OpenAI reports it beside the usage.

        Raises `UnknownModel`, `InvalidInput` for an incomplete usage, and `InvalidAmount`.
        """
        found = self._find(model, provider)
        if (bill := billed_micros(found.seller, usage)) is not None:
            return bill
        used = read_usage(usage)
        found.refuse_larger(used.input_tokens)
        rates = found.at(self._now(), used.service_tier or _tier(service_tier))
        if used.requests != 1:
            _refuse_by_call(rates, used)
        with _exact():
            cost = sum(part.tokens * _price(found, rates, part, used.input_tokens) for part in used.parts)
            return _rounded_up(cost + _besides(found, rates, used.web_searches))

    def _find(self, model: str, provider: str | None) -> ModelRates:
        names: tuple[object, object] = model, provider
        if not isinstance(names[0], str) or not isinstance(names[1], str | None):
            raise InvalidInput(f"model and provider must be strings, not {shown(names, 100)}")
        snapshot = get_snapshot()
        remembered = self._remembered
        if remembered.snapshot is not snapshot:
            remembered = self._remembered = _Remembered(snapshot, {})
        found = remembered.models.get((model, provider))
        if found is None:
            found = self._look_up(snapshot, model, provider)
            if len(remembered.models) >= _MOST_REMEMBERED:
                remembered.models.clear()
            remembered.models[model, provider] = found
        return found

    def _look_up(self, snapshot: DataSnapshot, model: str, provider: str | None) -> ModelRates:
        names = [model] if provider is None else [model, f"{provider}/{model}"]
        for own in self._own:
            if any(own.matches(name) for name in names):
                seller, _ = find_seller(snapshot, model, provider)
                return own.rates(model, provider)._replace(seller=seller.id if seller else "")
        return find_model(snapshot, model, provider)


def _exact() -> AbstractContextManager[Context]:
    # Independent of the caller's context, and with enough digits that nothing is rounded.
    return localcontext(prec=_DIGITS, rounding=ROUND_CEILING)


def _rounded_up(cost: Decimal) -> int:
    return micros(int(cost.to_integral_value()))


def _count(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_MICROS:
        raise InvalidInput(f"{name} must be an int from 0 to 2**53 - 1, not {shown(value, 40)}")
    return value


def _tier(service_tier: object) -> str:
    if not isinstance(service_tier, str | None):
        raise InvalidInput(f"service_tier must be a string, not {shown(service_tier, 40)}")
    return (service_tier or "").lower()


def _price(found: ModelRates, rates: Rates, part: Part, size: int) -> Decimal:
    """Return the price of one such token, in micros, in a context of `size`: that of the closest priced kind."""
    if part.cache_ttl not in _KNOWN_TTLS and not found.own:
        raise found.unknown(f"none for tokens cached for {part.cache_ttl}")
    closest = max((key for key in rates if key in KINDS and part.is_a(KINDS[key])), key=_closeness, default=None)
    if closest is None:
        raise found.unknown(f"none for {part.direction} tokens")
    *_, price = _reached(rates[closest], size)
    return price


def _refuse_by_call(rates: Rates, used: UsedTokens) -> None:
    """Raise `InvalidInput` for a sum of calls if a price depends on each call's size or on their number."""
    by_size = (price.tiers for price in rates.values() if isinstance(price, TieredPrices))
    if "requests_kcount" in rates or any(used.input_tokens > tier.start for tiers in by_size for tier in tiers):
        raise InvalidInput("usage sums several calls, but this model's price depends on each: finalize each call")


def _closeness(key: str) -> int:
    return len(KINDS[key])


def _dearest(found: ModelRates, possible: list[Rates], direction: str, size: int) -> Decimal:
    """Return the highest price of any token of this direction, in micros, in a context of at most `size`."""
    prices = [
        price
        for rates in possible
        for key, each in rates.items()
        if key in KINDS and KINDS[key]["direction"] == direction
        for price in _reached(each, size)
    ]
    if not prices:
        raise found.unknown(f"none for {direction} tokens")
    return max(prices)


def _reached(price: Decimal | TieredPrices, size: int) -> Iterator[Decimal]:
    """Yield the prices up to a context of `size` tokens. The last one applies to all tokens of that context."""
    if isinstance(price, Decimal):
        yield price
    else:
        yield price.base
        yield from (tier.price for tier in price.tiers if tier.start < size)


def _besides(found: ModelRates, rates: Rates, searches: int) -> Decimal:
    """Return what a call costs besides its tokens, in micros: a fee per request, and its web searches."""
    searches = found.searches_of(rates, searches)
    if searches and "web_searches_kcount" not in rates:
        raise found.unknown("none for web searches")
    # Neither price depends on the context size.
    request, search = (rates.get(key) for key in ("requests_kcount", "web_searches_kcount"))
    return sum(
        (
            count * price * MICROS_PER_USD / 1000
            for count, price in ((1, request), (searches, search))
            if isinstance(price, Decimal)
        ),
        start=Decimal(0),
    )
