"""Find a model by name in genai-prices, and the prices that apply at a given time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple, TypeAlias

from genai_prices.data_snapshot import DataSnapshot, get_snapshot
from genai_prices.data_units import unit_data
from genai_prices.types import (
    ClauseAnd,
    ClauseOr,
    ClauseRegex,
    MatchLogic,
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
from daycap.pricing.request_fields import searches_by_itself

Rates: TypeAlias = Mapping[str, Decimal | TieredPrices]
"""Prices in US dollars by genai-prices' price keys: `input_mtok` is for a million input tokens."""

Constraint: TypeAlias = StartDateConstraint | TimeOfDateConstraint | None
"""When a price applies; None: always."""

UNITS = {unit.price_key: unit for unit in UnitRegistry(unit_data).units.values()}
"""What each price key counts, and how many of it the price covers."""

KINDS = {
    key: {name: value for name, value in unit.dimensions.items() if name != "family"}
    for key, unit in UNITS.items()
    if unit.dimensions["family"] == "tokens"
}
"""The price keys of tokens, with the dimensions of those tokens. More dimensions mean a more specific price."""

_TOLD_BY_USAGE = {"tokens", "requests", "tool_calls"}
_NOT_DEARER = {"", "auto", "batch", "default", "flex", "on_demand", "scale", "standard", "standard_only"}
_AHEAD = timedelta(days=1)
"""A hold belongs to one day, so a price that starts later cannot apply to its call."""


class ModelRates(NamedTuple):
    """One model's prices for all times and service tiers. Your own price applies to every service tier.

    `seller` is genai-prices' id of the provider, empty if unknown. `largest` is the largest context, in tokens, to
    which the prices apply.
    """

    model: str
    provider: str | None
    info: ModelInfo
    variants: tuple[PriceVariant, ...] = ()
    own: bool = False
    seller: str = ""
    largest: int | None = None

    def at(self, now: datetime, service_tier: str) -> Rates:
        """Return the prices at `now`. Raises `UnknownModel`, also if a premium service tier has no price."""
        special: dict[str, Decimal | TieredPrices] = {}
        for variant in self._variants(service_tier, now):
            if _holds(variant.constraint, now):
                special = {**_given(variant.prices), **special}
        return self._usable({**_given(self.info.get_prices(now)), **special})

    def possible(self, now: datetime, service_tier: str) -> list[Rates]:
        """Return all prices that may apply within a day from `now`: the default ones and those of `service_tier`."""
        usual = [self._usable(_given(prices)) for prices in self._usual(now)]
        special = [each.prices for each in self._variants(service_tier, now) if _may_hold(each.constraint, now)]
        return usual + [{**rates, **_given(prices)} for rates in usual for prices in special]

    def unknown(self, what: str) -> UnknownModel:
        """Return the error for a missing price."""
        return UnknownModel(self.model, self.provider, what)

    def searches_of(self, rates: Rates, told: int) -> int:
        """Return how many web searches a call that reports `told` is billed for. Some models search on every call.

        Those searches are not added if the price is per call, or if your own price has none for them.
        """
        itself = searches_by_itself(self.model) and "requests_kcount" not in rates
        return max(told, int(itself and not (self.own and "web_searches_kcount" not in rates)))

    def refuse_larger(self, context: int) -> None:
        """Raise `UnknownModel` if there is no price for a context of so many tokens."""
        if self.largest is not None and context > self.largest:
            raise self.unknown(f"none for a context of more than {self.largest} tokens")

    def _usual(self, now: datetime) -> Iterator[ModelPrice]:
        if isinstance(self.info.prices, ModelPrice):
            yield self.info.prices
            return
        # The last one that applies wins; one for certain hours leaves the other hours to those before it.
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
            raise self.unknown("genai-prices knows the model, but not what it costs")
        for key in rates:
            if key not in UNITS or UNITS[key].dimensions["family"] not in _TOLD_BY_USAGE:
                raise self.unknown(f"it is also billed by {key}, which a usage does not report")
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
"""LiteLLM's and Google's (`models/...`) names of providers, by genai-prices' ids. An exact list: `openai_like`, say,
may be any server."""

_OTHER_THAN_MAKERS = {"azure": {"deepseek", "moonshotai", "x-ai"}}
"""Makers whose models a seller prices itself, although genai-prices falls back to the maker's price."""

_OTHER_PRICES = {
    # Other regions and GovCloud cost more.
    "aws": r"us-gov\..*|(?:eu|jp)\.amazon\.nova-2-lite.*",
    # Azure charges more than OpenAI.
    "azure": r"ada|gpt-4-turbo(?:-2024-04-09)?|gpt-3\.5-turbo-instruct-0914|gpt-audio.*|gpt-oss-.*"
    r"|gpt-4o(?:-mini)?-audio-preview.*|text-embedding-(?:ada-002|3-small|3-large)",
    # Vertex AI charges more than Google's AI Studio; genai-prices treats both as one provider.
    "google": r"gemini-2\.0-flash|claude-3-5-haiku.*",
    # The audio price is missing; it is many times the text price.
    "openai": r"gpt-4o(?:-mini)?-audio-preview.*",
    # Outdated prices: price lists contradict each other.
    "cloudflare": r"(?:@cf/cloudflare/)?clef-flash|@cf/meta/llama-2-7b-chat-fp16|@cf/mistral/mistral-7b-instruct-v0\.1",
    "deepseek": r"deepseek-(?:chat|reasoner|r1).*|deepseek-v3\.2",
    "fireworks": r"accounts/fireworks/models/(?:gemma-3-27b-it|deepseek-v4-flash-0731|deepseek-v4-pro)",
    "mistral": r"mistral-medium|open-mistral-nemo|mistral-nemo",
    "together": r"meta-llama/llama-3\.3-70b-instruct-turbo",
    "x-ai": r"grok-code-fast.*",
}
"""Names whose price in genai-prices is or may be too low. A test compares it with LiteLLM's prices."""

_LARGEST_CONTEXTS = {
    "aws": (r"(?:[a-z]+\.)?(?:anthropic\.)?claude-sonnet-4(?:-5)?-20.*", 200_000),
    "google": (r"gemini-3-pro-image.*", 200_000),
    "openai": (r"gpt-5\.6-cyber", 272_000),
}
"""The largest context for genai-prices' price, where it omits that a larger one costs more."""

_ROUTE = re.compile(r"(?:converse|converse_like|invoke|chat|responses|models)/")
"""Interface names that may stand between provider and model."""


def find_model(snapshot: DataSnapshot, model: str, provider: str | None) -> ModelRates:
    """Return the model in genai-prices. `provider`, or the part before the first slash, must be known to it.

    Raises `UnknownModel` for an unknown provider, and for a name that only resembles a priced model's.
    """
    seller, name = find_seller(snapshot, model, provider)
    if seller is None:
        raise UnknownModel(model, provider, "its provider is unknown; name one as provider/model")
    found: list[tuple[ModelInfo, Provider]] = []
    for each in _spellings(snapshot, seller, name):
        sold = _sold(snapshot, seller, each)
        if sold is not None and all(sold[0] is not info for info, _ in found):
            found.append(sold)
    if len(found) > 1:
        raise UnknownModel(model, provider, f"it may be any of {', '.join(info.id for info, _ in found)}")
    for info, maker in found:
        # A resold model has its maker's default prices, but not its service tiers.
        variants = tuple(info.price_variants or ()) if maker is seller else ()
        pattern, largest = _LARGEST_CONTEXTS.get(seller.id, ("", 0))
        limit = largest if any(re.fullmatch(pattern, each) for each in _spellings(snapshot, seller, name)) else None
        return ModelRates(model, provider, info, variants, seller=seller.id, largest=limit)
    raise UnknownModel(model, provider, f"genai-prices has no price of {seller.id} that is definitely this model's")


def _sold(snapshot: DataSnapshot, seller: Provider, name: str) -> tuple[ModelInfo, Provider] | None:
    """Return the model of this name and whose price it is: the seller's own, else the maker's."""
    for maker in (seller, *_resold_by(snapshot, seller)):
        info = maker.find_model(name)
        if info is not None and _is_named(info, name, seller.id):
            return info, maker
    return None


def find_seller(snapshot: DataSnapshot, model: str, provider: str | None) -> tuple[Provider | None, str]:
    """Return the seller of the model, None if unknown, and its name there."""
    before, slash, after = model.lower().partition("/")
    if provider is not None:
        return _provider(snapshot, provider), model.lower()
    return (_provider(snapshot, before), after) if slash else (_whose(snapshot, before), before)


def provider_of_url(url: str) -> str | None:
    """Return the provider whose API has this URL, None if unknown."""
    known = (each.id for each in get_snapshot().providers if re.match(each.api_pattern, url))
    return next(known, None)


def _provider(snapshot: DataSnapshot, name: str) -> Provider | None:
    wanted = name.strip().lower()
    wanted = _LITELLM.get(wanted, wanted)
    return next((each for each in snapshot.providers if each.id == wanted), None)


def _whose(snapshot: DataSnapshot, name: str) -> Provider | None:
    return next((each for each in snapshot.providers if each.model_match and each.model_match.is_match(name)), None)


def _resold_by(snapshot: DataSnapshot, seller: Provider) -> Iterator[Provider]:
    makers = set(seller.fallback_model_providers or ()) - _OTHER_THAN_MAKERS.get(seller.id, set())
    return (each for each in snapshot.providers if each.id in makers)


def _spellings(snapshot: DataSnapshot, known: Provider, name: str) -> Iterator[str]:
    yield name
    before, slash, rest = name.partition("/")
    if slash and _provider(snapshot, before) is known:
        yield rest
    if (route := _ROUTE.match(name)) is not None:
        yield name[route.end() :]


# --- whether a name is the model's own --------------------------------------------------------------------------
# genai-prices finds a model by clauses such as "starts with gemini-3.8-flash", which also match a more expensive
# relative (-cyber) and another region (eu-west-2/...). So the clause must cover the whole name except for a version.

_VERSION = re.compile(r"(?:[-@](?:20\d{6}|20\d\d-\d\d-\d\d|\d\d-20\d\d|\d\d-\d\d|\d{4}|\d{3}))?")
"""A release's date or number, such as `-20250929`, `@20250929`, `-2025-08-07`, `-09-2025`, `-0613`, `-001`."""

_VERSIONS = {
    "aws": re.compile(_VERSION.pattern + r"(?:-v\d+)?(?::\d+)?"),
    "google": re.compile(_VERSION.pattern + r"(?:@default)?"),
}
"""Bedrock appends its own version, as in `-v1:0`; Vertex AI has a default one."""

_PLACES = re.compile(r"(?:us\.)?(?:amazon\.)?")
_PLACES_OF_REGIONAL = re.compile(r"(?:(?:us|eu|apac)\.)?(?:anthropic\.)?")
"""Prefixes of a Bedrock model: inference profiles at the same price, and the maker. Never a region or GovCloud, whose
prices are higher."""

_CUT_DATE = re.compile(r"[-@](?:20\d\d-?|0)?$")
"""The start of a date at the end of a clause: `claude-sonnet-4-2025`, `gpt-5-nano-`."""


def _is_named(info: ModelInfo, name: str, seller: str) -> bool:
    """Return whether `name` is the model's own, not just one that genai-prices' clause happens to match."""
    if re.fullmatch(_OTHER_PRICES.get(seller, ""), name):
        return False
    if name.startswith("ft:"):
        name = ":".join(name.split(":")[:2])  # The owner of a fine-tuned model follows.
    version = _VERSIONS.get(seller, _VERSION)
    before = _PLACES_OF_REGIONAL if info.id.startswith("regional.") else _PLACES
    for known in {info.id.lower(), *_names_in(info.match, name)}:
        for own in {known, _CUT_DATE.sub("", known)}:
            place, found, rest = name.partition(own)
            if found and version.fullmatch(rest) and (not place or (seller == "aws" and before.fullmatch(place))):
                return True
    return False


def _names_in(clause: MatchLogic, name: str) -> Iterator[str]:
    """Yield the names in a clause, and `name` itself if a pattern in it matches all of it."""
    match clause:
        case ClauseOr():
            for each in clause.or_:
                yield from _names_in(each, name)
        case ClauseAnd():
            for each in clause.and_:
                yield from _names_in(each, name)
        case ClauseRegex():
            if re.fullmatch(clause.regex, name, re.IGNORECASE):
                yield name
        case _:
            yield from (str(value).lower() for value in vars(clause).values())
