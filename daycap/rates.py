"""What a model charges: found by its name in genai-prices, and which of its prices hold at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple, TypeAlias

from genai_prices.data_snapshot import DataSnapshot
from genai_prices.data_units import unit_data
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.units import UnitRegistry

from daycap.errors import UnknownModel

Rates: TypeAlias = Mapping[str, Decimal | TieredPrices]
"""Prices in US dollars by genai-prices' price keys: `input_mtok` is for a million tokens that are read."""

Constraint: TypeAlias = StartDateConstraint | TimeOfDateConstraint | None
"""When a price holds; None: always."""

UNITS = {unit.price_key: unit for unit in UnitRegistry(unit_data).units.values()}
"""What each price key counts, and for how many of it the price is."""

KINDS = {
    key: {name: value for name, value in unit.dimensions.items() if name != "family"}
    for key, unit in UNITS.items()
    if unit.dimensions["family"] == "tokens"
}
"""The price keys of tokens, and of which tokens: the more is said of them, the closer the price."""

_TOLD_BY_USAGE = {"tokens", "requests", "tool_calls"}
_NOT_DEARER = {"", "auto", "batch", "default", "flex", "on_demand", "scale", "standard", "standard_only"}
_AHEAD = timedelta(days=1)
"""A hold belongs to one day, so a price that begins later cannot be its call's."""


class ModelRates(NamedTuple):
    """One model's prices of all times and service tiers. Own prices have one, whatever the service tier."""

    model: str
    provider: str | None
    info: ModelInfo
    variants: tuple[PriceVariant, ...] = ()
    own: bool = False

    def at(self, now: datetime, service_tier: str) -> Rates:
        """The prices that hold at `now`. Raises `UnknownModel`, also for a dearer service tier without prices."""
        special: dict[str, Decimal | TieredPrices] = {}
        for variant in self._variants(service_tier, now):
            if _holds(variant.constraint, now):
                special = {**_given(variant.prices), **special}
        return self._usable({**_given(self.info.get_prices(now)), **special})

    def possible(self, now: datetime, service_tier: str) -> list[Rates]:
        """All prices that may hold from `now` on for a day, those of `service_tier` besides the usual ones."""
        usual = [self._usable(_given(prices)) for prices in self._usual(now)]
        special = [each.prices for each in self._variants(service_tier, now) if _may_hold(each.constraint, now)]
        return usual + [{**rates, **_given(prices)} for rates in usual for prices in special]

    def unknown(self, what: str) -> UnknownModel:
        """The error for a price that is missing."""
        return UnknownModel(self.model, self.provider, what)

    def _usual(self, now: datetime) -> Iterator[ModelPrice]:
        if isinstance(self.info.prices, ModelPrice):
            yield self.info.prices
            return
        # The last that holds counts; one that holds at some hours leaves the others to those before it.
        for each in reversed(self.info.prices):
            if _may_hold(each.constraint, now):
                yield each.prices
                if not _at_some_hour(each.constraint) and _holds(each.constraint, now):
                    return
        yield self.info.prices[0].prices

    def _variants(self, service_tier: str, now: datetime) -> list[PriceVariant]:
        if self.own:
            return []
        variants = [each for each in self.variants if all(value == service_tier for value in each.when.values())]
        begun = any(_at_some_hour(each.constraint) or _holds(each.constraint, now) for each in variants)
        if not begun and service_tier not in _NOT_DEARER:
            raise self.unknown(f"none for service_tier {service_tier!r:.40}")
        return variants

    def _usable(self, rates: Rates) -> Rates:
        if not rates and self.info.id.endswith(":free"):
            return {"input_mtok": Decimal(0), "output_mtok": Decimal(0)}
        if not rates:
            raise self.unknown("genai-prices knows it, but not what it costs")
        for key in rates:
            if key not in UNITS or UNITS[key].dimensions["family"] not in _TOLD_BY_USAGE:
                raise self.unknown(f"it is billed by {key} too, which no count of tokens tells")
        return rates


def _given(prices: ModelPrice) -> dict[str, Decimal | TieredPrices]:
    return {key: price for key, price in vars(prices).items() if price is not None}


def _at_some_hour(constraint: Constraint) -> bool:
    return isinstance(constraint, TimeOfDateConstraint)


def _holds(constraint: Constraint, now: datetime) -> bool:
    return constraint is None or constraint.active(now)


def _may_hold(constraint: Constraint, now: datetime) -> bool:
    return _at_some_hour(constraint) or _holds(constraint, now + _AHEAD)


# --- finding a model ------------------------------------------------------------------------------------------

_LITELLM = {
    "amazon_nova": "aws",
    "anthropic_text": "anthropic",
    "azure_ai": "azure",
    "azure_text": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "codestral": "mistral",
    "cohere_chat": "cohere",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "github_copilot": "github-copilot",
    "models": "google",
    "moonshot": "moonshotai",
    "text-completion-codestral": "mistral",
    "text-completion-openai": "openai",
    "together_ai": "together",
    "vertex_ai": "google",
    "vertex_ai_beta": "google",
    "voyage": "voyageai",
    "xai": "x-ai",
}
"""How LiteLLM, and Google's own `models/...`, write the providers that genai-prices calls otherwise. A list and no
likeness: `openai_like` is anybody's server."""

_ROUTE = re.compile(r"(?:converse|converse_like|invoke|chat|responses|models)/")
"""What may stand between provider and model, to say which interface is meant."""


def find_model(snapshot: DataSnapshot, model: str, provider: str | None) -> ModelRates:
    """The model in genai-prices. `provider` or what stands before the first slash must be one that it knows.

    Raises `UnknownModel`: a model of an unknown provider is not taken for another's of the same name.
    """
    before, slash, after = model.lower().partition("/")
    if provider is None and slash:
        known, name = _provider(snapshot, before), after
    elif provider is None:
        known, name = _whose(snapshot, before), before
    else:
        known, name = _provider(snapshot, provider), model.lower()
    if known is None:
        raise UnknownModel(model, provider, "its provider is not a known one, or must be told: provider/model")
    for each in _spellings(snapshot, known, name):
        info = known.find_model(each, all_providers=snapshot.providers)
        if info is not None:
            # What one provider sells of another's has the other's usual prices, not its service tiers.
            its_own = any(info is one for one in known.models)
            return ModelRates(model, provider, info, tuple(info.price_variants or ()) if its_own else ())
    raise UnknownModel(model, provider, f"genai-prices has no such model of {known.id}")


def _provider(snapshot: DataSnapshot, name: str) -> Provider | None:
    wanted = name.strip().lower()
    wanted = _LITELLM.get(wanted, wanted)
    return next((each for each in snapshot.providers if each.id == wanted), None)


def _whose(snapshot: DataSnapshot, name: str) -> Provider | None:
    return next((each for each in snapshot.providers if each.model_match and each.model_match.is_match(name)), None)


def _spellings(snapshot: DataSnapshot, known: Provider, name: str) -> Iterator[str]:
    yield name
    before, slash, rest = name.partition("/")
    if slash and _provider(snapshot, before) is known:
        yield rest
    if (route := _ROUTE.match(name)) is not None:
        yield name[route.end() :]
