"""What the provider itself says that a call cost, for those who do: it is the bill, whatever prices say."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from daycap.errors import InvalidAmount, InvalidInput
from daycap.formats import shown
from daycap.money import usd
from daycap.pricing.usage_fields import Fields

_TICKS_PER_USD = 10**10


def billed_micros(seller: str, usage: object) -> int | None:
    """Return what `seller`, a provider as genai-prices names it, billed by this usage, in micros, rounded up.

    None where it does not say, or is none of those that do: another's `cost` may be anybody's estimate. A bill of 0 is
    believed, for that is what free models cost. Raises `InvalidInput` for what is no price.
    """
    bill = _BILLS.get(seller)
    if bill is None:
        return None
    fields = Fields(usage, "usage")
    # Pydantic AI's own usages have a `cost` too, which is its estimate.
    dollars = bill(fields) if fields.lacks("cache_read_tokens") and fields.lacks("details") else None
    try:
        return None if dollars is None else usd(dollars)
    except InvalidAmount as error:
        raise InvalidInput(f"usage tells a cost that is no price: {error}") from error


def _openrouter(usage: Fields) -> Decimal | None:
    """Credits, which are US dollars. With a key of your own that is OpenRouter's fee, and the key is billed as well."""
    cost, own_key = _dollars(usage, "cost"), usage.value("is_byok")
    if cost is None or own_key is False:
        return cost
    upstream = _dollars(usage.inside("cost_details"), "upstream_inference_cost")
    if upstream is None and own_key is not None:
        raise InvalidInput("usage has is_byok, and does not tell what your own key was billed")
    return cost + (upstream or 0)


def _perplexity(usage: Fields) -> Decimal | None:
    return _dollars(usage.inside("cost"), "total_cost")


def _xai(usage: Fields) -> Decimal | None:
    ticks = usage.optional("cost_in_usd_ticks")
    return None if ticks is None else Decimal(ticks) / _TICKS_PER_USD


_BILLS: dict[str, Callable[[Fields], Decimal | None]] = {
    "openrouter": _openrouter,
    "perplexity": _perplexity,
    "x-ai": _xai,
}


def _dollars(fields: Fields, name: str) -> Decimal | None:
    """A number of JSON, as it was written: the shortest decimal that is this float."""
    value = fields.value(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise InvalidInput(f"usage tells a cost that is no price: {name} is {shown(value, 40)}")
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
