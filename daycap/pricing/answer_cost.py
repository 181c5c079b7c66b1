"""What a call cost by its answer: the model that answered, the service tier that served it, and its usage."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from daycap.errors import UnknownModel
from daycap.pricing.bills import billed_micros
from daycap.pricing.usage import AnyUsage, Call

if TYPE_CHECKING:
    from daycap.pricing.prices import Prices

_VERSION = re.compile(r"([-@:._]?v?\d[\d.:_-]*|[-:]latest)+")
_LATEST = ("-latest", ":latest")
"""What an answer appends to the model that was asked for: the date or the number of its version."""


class Answer(NamedTuple):
    """What an answer says of its cost. `service_tier` is empty for the usual one, None where it does not say."""

    usage: AnyUsage
    models: Collection[str] = ()
    service_tier: str | None = None


@dataclass(slots=True)
class CallPricing:
    """How one call is priced by its usage. What was settled in parts is deducted from the cost of the whole."""

    prices: Prices
    model: str
    provider: str | None = None
    service_tier: str | None = None
    settled_micros: int = 0

    def cost_micros(self, usage: AnyUsage) -> int:
        """What is still to be charged for a call of this usage. Raises what `Prices.actual_micros` raises."""
        whole = self.prices.actual_micros(self.model, usage, provider=self.provider, service_tier=self.service_tier)
        return max(0, whole - self.settled_micros)


def worst_case_of(prices: Prices, calls: Sequence[Call]) -> int:
    """The most that a call can cost, in micros: that of the dearest model that may answer. Raises as `Prices` does."""
    return max(prices.worst_case_micros(**call) for call in calls)


def cost_of(prices: Prices, calls: Sequence[Call], answer: Answer, names: Mapping[str, str] | None = None) -> int:
    """What a call cost, in micros, at the prices of the model that answered.

    Where the provider tells in the usage what it billed, that is the cost, whatever it calls the model that answered.
    `names` maps a provider's names (deployments) to models. Where the answer names no model or no tier, the dearest
    of those that were asked for counts. Raises `UnknownModel` where another model answered that has no price, and
    what `Prices.actual_micros` raises.
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
    """The usage of a call that may search: where it does not say how often, it did as often as it may."""
    if not most or usage is None:
        return usage
    fields: dict[str, Any] = dict(usage) if isinstance(usage, Mapping) else usage.model_dump()  # type: ignore[union-attr]
    told = [fields.get(name) for name in ("server_tool_use", "prompt_tokens_details", "input_tokens_details")]
    if any(isinstance(each, Mapping) and each.get("web_search_requests") is not None for each in told):
        return fields
    return {**fields, "server_tool_use": {"web_search_requests": most}}


def _field(usage: AnyUsage, name: str) -> object:
    return usage.get(name) if isinstance(usage, Mapping) else getattr(usage, name, None)


_Named = tuple[str, str | None]


def _answered(
    prices: Prices, calls: Sequence[Call], models: Collection[str], names: Mapping[str, str]
) -> Iterator[_Named]:
    asked = [(call["model"], call.get("provider")) for call in calls]
    if not models:
        yield from asked
    for heard in models:
        yield _priced_as(prices, asked, names.get(heard, heard))


def _priced_as(prices: Prices, asked: list[_Named], heard: str) -> _Named:
    """The name by which the model that answered has its price: of one that was asked for, if it is that one."""
    versions = [named for named in asked if _is_version(named[0], heard)]
    own = [named for named in asked if prices._find(*named).own]
    for named in versions:
        if named in own or is_same(named[0], heard):
            return named  # A price that was agreed on is for all versions.
    for named in [(name, provider) for model, provider in asked for name in _spellings(model, provider, heard)]:
        try:
            prices._find(*named)
        except UnknownModel:
            continue
        return named
    for named in [*versions, *own]:
        return named  # Who gives a price of their own knows what their server calls the model.
    raise UnknownModel(heard, asked[0][1], f"it answered a call of {asked[0][0]!r:.100}")


def is_same(asked: str, name: str) -> bool:
    """Whether a name is that of the model that was asked for, with or without its provider."""
    return _rest(asked, name) == ""


def _is_version(asked: str, heard: str) -> bool:
    for alias in _LATEST:
        asked = asked.removesuffix(alias)
    rest = _rest(asked, heard)
    return rest is not None and (not rest or _VERSION.fullmatch(rest) is not None)


def _rest(asked: str, heard: str) -> str | None:
    """What `heard` appends to the model that was asked for, with or without its provider; None for another model."""
    asked, heard = asked.lower(), heard.lower()
    while True:
        if heard.startswith(asked):
            return heard[len(asked) :]
        _, slash, asked = asked.partition("/")
        if not slash:
            return None


def _spellings(asked: str, provider: str | None, heard: str) -> Iterator[str]:
    if provider is None and "/" in asked:
        yield f"{asked.partition('/')[0]}/{heard}"
    yield heard
