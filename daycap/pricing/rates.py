"""What a model charges: found by its name in genai-prices, and which of its prices hold at a time."""

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
    """One model's prices of all times and service tiers. Own prices have one, whatever the service tier.

    `seller` is the provider as genai-prices calls it, empty for one that it does not know; `largest` the context, in
    tokens, up to which the prices hold.
    """

    model: str
    provider: str | None
    info: ModelInfo
    variants: tuple[PriceVariant, ...] = ()
    own: bool = False
    seller: str = ""
    largest: int | None = None

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

    def searches_of(self, rates: Rates, told: int) -> int:
        """How many searches on the web a call is billed for, of which it tells `told`. Some models search each time.

        Not where each call has a price of its own, nor against prices that the operator gave.
        """
        itself = searches_by_itself(self.model) and "requests_kcount" not in rates
        return max(told, int(itself and not (self.own and "web_searches_kcount" not in rates)))

    def refuse_larger(self, context: int) -> None:
        """Raises `UnknownModel` for a context of more tokens than there are prices for."""
        if self.largest is not None and context > self.largest:
            raise self.unknown(f"none for a context of more than {self.largest} tokens")

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

_OTHER_THAN_MAKERS = {"azure": {"deepseek", "moonshotai", "x-ai"}}
"""Whose models a seller has at prices of its own, though genai-prices takes the maker's for them."""

_OTHER_PRICES = {
    # Other regions, and GovCloud, cost more.
    "aws": r"us-gov\..*|(?:eu|jp)\.amazon\.nova-2-lite.*",
    # Azure asks more than OpenAI.
    "azure": r"ada|gpt-4-turbo(?:-2024-04-09)?|gpt-3\.5-turbo-instruct-0914|gpt-audio.*|gpt-oss-.*"
    r"|gpt-4o(?:-mini)?-audio-preview.*|text-embedding-(?:ada-002|3-small|3-large)",
    # Vertex AI asks more than Google's AI Studio, and both are one provider here.
    "google": r"gemini-2\.0-flash|claude-3-5-haiku.*",
    # The price of audio is missing, which is many times that of text.
    "openai": r"gpt-4o(?:-mini)?-audio-preview.*",
    # An outdated price: lists of prices contradict each other.
    "cloudflare": r"(?:@cf/cloudflare/)?clef-flash|@cf/meta/llama-2-7b-chat-fp16|@cf/mistral/mistral-7b-instruct-v0\.1",
    "deepseek": r"deepseek-(?:chat|reasoner|r1).*|deepseek-v3\.2",
    "fireworks": r"accounts/fireworks/models/(?:gemma-3-27b-it|deepseek-v4-flash-0731|deepseek-v4-pro)",
    "mistral": r"mistral-medium|open-mistral-nemo|mistral-nemo",
    "together": r"meta-llama/llama-3\.3-70b-instruct-turbo",
    "x-ai": r"grok-code-fast.*",
}
"""Names that genai-prices has a price for which is too low, or may be: a test compares it with LiteLLM's prices."""

_LARGEST_CONTEXTS = {
    "aws": (r"(?:[a-z]+\.)?(?:anthropic\.)?claude-sonnet-4(?:-5)?-20.*", 200_000),
    "google": (r"gemini-3-pro-image.*", 200_000),
    "openai": (r"gpt-5\.6-cyber", 272_000),
}
"""Up to which context genai-prices' price holds, where it leaves out that a larger one costs more."""

_ROUTE = re.compile(r"(?:converse|converse_like|invoke|chat|responses|models)/")
"""What may stand between provider and model, to say which interface is meant."""


def find_model(snapshot: DataSnapshot, model: str, provider: str | None) -> ModelRates:
    """Return the model in genai-prices. `provider`, or what stands before the first slash, must be one that it knows.

    Raises `UnknownModel`: for a model of an unknown provider, and for one that is only like a model with a price.
    """
    seller, name = find_seller(snapshot, model, provider)
    if seller is None:
        raise UnknownModel(model, provider, "its provider is not a known one, or must be told: provider/model")
    found: list[tuple[ModelInfo, Provider]] = []
    for each in _spellings(snapshot, seller, name):
        sold = _sold(snapshot, seller, each)
        if sold is not None and all(sold[0] is not info for info, _ in found):
            found.append(sold)
    if len(found) > 1:
        raise UnknownModel(model, provider, f"it may be any of {', '.join(info.id for info, _ in found)}")
    for info, maker in found:
        # What one provider sells of another's has the other's usual prices, not its service tiers.
        variants = tuple(info.price_variants or ()) if maker is seller else ()
        pattern, largest = _LARGEST_CONTEXTS.get(seller.id, ("", 0))
        limit = largest if any(re.fullmatch(pattern, each) for each in _spellings(snapshot, seller, name)) else None
        return ModelRates(model, provider, info, variants, seller=seller.id, largest=limit)
    raise UnknownModel(model, provider, f"genai-prices has no price of {seller.id} that is surely this model's")


def _sold(snapshot: DataSnapshot, seller: Provider, name: str) -> tuple[ModelInfo, Provider] | None:
    """The model of this name, and whose price it is: the seller's own, else the maker's."""
    for maker in (seller, *_resold_by(snapshot, seller)):
        info = maker.find_model(name)
        if info is not None and _is_named(info, name, seller.id):
            return info, maker
    return None


def find_seller(snapshot: DataSnapshot, model: str, provider: str | None) -> tuple[Provider | None, str]:
    """Return who sells the model, None if unknown, and what it is called there."""
    before, slash, after = model.lower().partition("/")
    if provider is not None:
        return _provider(snapshot, provider), model.lower()
    return (_provider(snapshot, before), after) if slash else (_whose(snapshot, before), before)


def provider_of_url(url: str) -> str | None:
    """Return the provider whose API has this URL, None if it is nobody's that is known."""
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
# genai-prices finds a model by clauses such as "starts with gemini-3.8-flash", which a dearer relative (-cyber) and
# another region (eu-west-2/...) fulfil as well. So what the clause says must be all of the name but for a version.

_VERSION = re.compile(r"(?:[-@](?:20\d{6}|20\d\d-\d\d-\d\d|\d\d-20\d\d|\d\d-\d\d|\d{4}|\d{3}))?")
"""A date or a number of a release, such as `-20250929`, `@20250929`, `-2025-08-07`, `-09-2025`, `-0613`, `-001`."""

_VERSIONS = {
    "aws": re.compile(_VERSION.pattern + r"(?:-v\d+)?(?::\d+)?"),
    "google": re.compile(_VERSION.pattern + r"(?:@default)?"),
}
"""Bedrock's versions come after that, as in `-v1:0`; Vertex AI names its default one."""

_PLACES = re.compile(r"(?:us\.)?(?:amazon\.)?")
_PLACES_OF_REGIONAL = re.compile(r"(?:(?:us|eu|apac)\.)?(?:anthropic\.)?")
"""What may stand before a model of Bedrock: inference profiles of the same price, and the maker. Never a region, and
never GovCloud, whose prices are higher."""

_CUT_DATE = re.compile(r"[-@](?:20\d\d-?|0)?$")
"""The beginning of a date, where a clause ends with it: `claude-sonnet-4-2025`, `gpt-5-nano-`."""


def _is_named(info: ModelInfo, name: str, seller: str) -> bool:
    """Whether the name is the model's, and not just one that genai-prices' clause for it happens to match."""
    if re.fullmatch(_OTHER_PRICES.get(seller, ""), name):
        return False
    if name.startswith("ft:"):
        name = ":".join(name.split(":")[:2])  # Of a fine-tuned model whose it is comes after that.
    version = _VERSIONS.get(seller, _VERSION)
    before = _PLACES_OF_REGIONAL if info.id.startswith("regional.") else _PLACES
    for said in {info.id.lower(), *_said(info.match, name)}:
        for own in {said, _CUT_DATE.sub("", said)}:
            place, found, rest = name.partition(own)
            if found and version.fullmatch(rest) and (not place or (seller == "aws" and before.fullmatch(place))):
                return True
    return False


def _said(clause: MatchLogic, name: str) -> Iterator[str]:
    """The names that a clause is of: those in it, and this one if a pattern of it is for all of the name."""
    match clause:
        case ClauseOr():
            for each in clause.or_:
                yield from _said(each, name)
        case ClauseAnd():
            for each in clause.and_:
                yield from _said(each, name)
        case ClauseRegex():
            if re.fullmatch(clause.regex, name, re.IGNORECASE):
                yield name
        case _:
            yield from (str(value).lower() for value in vars(clause).values())
