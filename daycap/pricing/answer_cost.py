"""Compute a call's cost from its answer: the model that answered, its service tier and its usage."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from daycap.errors import UnknownModel
from daycap.pricing.bills import billed_micros
from daycap.pricing.usage import AnyUsage, PricedCall

if TYPE_CHECKING:
    from daycap.pricing.prices import Prices

_VERSION = re.compile(r"([-@:._]?v?\d[\d.:_-]*|[-:]latest)+")
_LATEST = ("-latest", ":latest")
"""Suffixes of a requested model for which the answer names a dated or numbered version."""


class Answer(NamedTuple):
    """What an answer reports about its cost. `service_tier` is empty for the default, None if not reported."""

    usage: AnyUsage
    models: Collection[str] = ()
    service_tier: str | None = None


@dataclass(slots=True)
class CallPricing:
    """How one call is priced from its usage. Parts that were settled before are deducted."""

    prices: Prices
    model: str
    provider: str | None = None
    service_tier: str | None = None
    settled_micros: int = 0

    def cost_micros(self, usage: AnyUsage) -> int:
        """Return what is still to be charged for a call with this usage. Raises what `Prices.actual_micros` raises."""
        whole = self.prices.actual_micros(self.model, usage, provider=self.provider, service_tier=self.service_tier)
        return max(0, whole - self.settled_micros)


def worst_case_of(prices: Prices, calls: Sequence[PricedCall]) -> int:
    """Return the most that a call can cost, in micros, whichever model answers. Raises as `Prices` does."""
    return max(prices.worst_case_micros(**call) for call in calls)


def cost_of(prices: Prices, calls: Sequence[PricedCall], answer: Answer, names: Mapping[str, str] | None = None) -> int:
    """Return what a call cost, in micros, at the prices of the model that answered.

    If the usage reports what the provider billed, that is the cost, whatever model the answer names. `names` maps
    deployments to models. If the answer names no model or no tier, the most expensive requested one counts. Raises
    `UnknownModel` if another model answered that has no price, and what `Prices.actual_micros` raises.
    """
    for call in calls:
        seller = prices._find(call["model"], call.get("provider")).seller
        if (bill := billed_micros(seller, answer.usage)) is not None:
            return bill
    usage = _with_searches(answer.usage, max(call.get("max_web_searches", 0) for call in calls))
    tiers = {answer.service_tier}
    if answer.service_tier is None and _field(answer.usage, "speed") is None:
        tiers |= {call.get("service_tier") for call in calls}
    return max(
        prices.actual_micros(model, usage, provider=provider, service_tier=tier)
        for model, provider in _answered(prices, calls, answer.models, names or {})
        for tier in tiers
    )


def _with_searches(usage: AnyUsage, most: int) -> AnyUsage:
    """Return the usage with its searches: if it does not report them, the call made as many as it may."""
    if not most or usage is None:
        return usage
    fields: dict[str, Any] = dict(usage) if isinstance(usage, Mapping) else usage.model_dump()  # type: ignore[union-attr]
    details = [fields.get(name) for name in ("server_tool_use", "prompt_tokens_details", "input_tokens_details")]
    if any(isinstance(each, Mapping) and each.get("web_search_requests") is not None for each in details):
        return fields
    return {**fields, "server_tool_use": {"web_search_requests": most}}


def _field(usage: AnyUsage, name: str) -> object:
    return usage.get(name) if isinstance(usage, Mapping) else getattr(usage, name, None)


_Named = tuple[str, str | None]


def _answered(
    prices: Prices, calls: Sequence[PricedCall], models: Collection[str], names: Mapping[str, str]
) -> Iterator[_Named]:
    asked = [(call["model"], call.get("provider")) for call in calls]
    if not models:
        yield from asked
    for answered in models:
        yield _priced_as(prices, asked, names.get(answered, answered))


def _priced_as(prices: Prices, asked: list[_Named], answered: str) -> _Named:
    """Return the name that prices the model that answered: the requested one's, if it is that model."""
    versions = [named for named in asked if _is_version(named[0], answered)]
    own = [named for named in asked if prices._find(*named).own]
    for named in versions:
        if named in own or is_same(named[0], answered):
            return named  # Your own price covers all versions.
    for named in [(name, provider) for model, provider in asked for name in _spellings(model, provider, answered)]:
        try:
            prices._find(*named)
        except UnknownModel:
            continue
        return named
    for named in [*versions, *own]:
        return named  # Your own price applies, whatever your server calls the model.
    raise UnknownModel(answered, asked[0][1], f"it answered a call to {asked[0][0]!r:.100}")


def is_same(asked: str, name: str) -> bool:
    """Return whether `name` is the requested model, with or without its provider."""
    return _rest(asked, name) == ""


def _is_version(asked: str, answered: str) -> bool:
    for alias in _LATEST:
        asked = asked.removesuffix(alias)
    rest = _rest(asked, answered)
    return rest is not None and (not rest or _VERSION.fullmatch(rest) is not None)


def _rest(asked: str, answered: str) -> str | None:
    """Return what `answered` appends to the requested model (provider optional); None if it is another model."""
    asked, answered = asked.lower(), answered.lower()
    while True:
        if answered.startswith(asked):
            return answered[len(asked) :]
        _, slash, asked = asked.partition("/")
        if not slash:
            return None


def _spellings(asked: str, provider: str | None, answered: str) -> Iterator[str]:
    if provider is None and "/" in asked:
        yield f"{asked.partition('/')[0]}/{answered}"
    yield answered
