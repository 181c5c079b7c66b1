"""Read the cost that some providers report themselves. It is the bill, and takes precedence over any price."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from daycap.errors import InvalidAmount, InvalidInput
from daycap.formats import shown
from daycap.money import usd
from daycap.pricing.usage_fields import Fields

_TICKS_PER_USD = 10**10


def billed_micros(seller: str, usage: object) -> int | None:
    """Return what `seller` (genai-prices' provider id) billed according to `usage`, in micros, rounded up.

    Returns None if it reports no bill, or is not known to: another's `cost` may be an estimate. A bill of 0 is valid:
    free models cost that. Raises `InvalidInput` if the reported cost is not an amount.
    """
    bill = _BILLS.get(seller)
    if bill is None:
        return None
    fields = Fields(usage, "usage")
    # Pydantic AI's usages have a `cost` too, which is an estimate.
    dollars = bill(fields) if fields.lacks("cache_read_tokens") and fields.lacks("details") else None
    try:
        return None if dollars is None else usd(dollars)
    except InvalidAmount as error:
        raise InvalidInput(f"usage reports an invalid cost: {error}") from error


def _openrouter(usage: Fields) -> Decimal | None:
    """Read credits, which are US dollars. With your own key they are OpenRouter's fee; the key is billed as well."""
    cost, own_key = _dollars(usage, "cost"), usage.value("is_byok")
    if cost is None or own_key is False:
        return cost
    upstream = _dollars(usage.inside("cost_details"), "upstream_inference_cost")
    if upstream is None and own_key is not None:
        raise InvalidInput("usage has is_byok, but does not report what your own key was billed")
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
    """Read a JSON number as it was written: the shortest decimal that equals this float."""
    value = fields.value(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise InvalidInput(f"usage reports an invalid cost: {name} is {shown(value, 40)}")
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
