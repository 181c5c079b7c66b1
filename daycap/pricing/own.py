"""Read a file of your own prices: for models that genai-prices does not know, and for negotiated prices."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice

from daycap.errors import InvalidSetting
from daycap.formats import shown
from daycap.money import decimal_of
from daycap.pricing.rates import ModelRates

_DEAREST_USD = Decimal(10**6)
_FINEST = -12


class OwnPrice(NamedTuple):
    """The price of every model whose name matches the pattern."""

    pattern: str
    price: ModelPrice

    def matches(self, name: str) -> bool:
        """Return whether the pattern matches this name, ignoring case."""
        return fnmatchcase(name.lower(), self.pattern.lower())

    def rates(self, model: str, provider: str | None) -> ModelRates:
        """Return this price as the rates of a requested model."""
        return ModelRates(model, provider, ModelInfo(self.pattern, ClauseEquals(model), prices=self.price), own=True)


def read_own_prices(path: str | Path) -> tuple[OwnPrice, ...]:
    """Read the prices in a file, TOML or (with suffix .json) JSON, in order: the first match counts.

    The file has one table for each pattern of model names, in which `*` and `?` are wildcards; case is ignored.
    Prices are US dollars. Per million tokens: `input` and `output` (required), `cached_input` and `cache_write`
    (default: as input), `reasoning` (default: as output). Per call: `request` (default: 0). Per web search:
    `web_search` (without it, calls that search are refused). Raises `InvalidSetting` naming the file and the place.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"DAYCAP_PRICES_FILE={path}: cannot be read: {error}") from error
    try:
        tables = _parse(text, is_json=path.suffix.lower() == ".json")
        if not isinstance(tables, Mapping):
            raise ValueError("must be an object of prices by model")
        return tuple(_own_price(pattern, table) for pattern, table in tables.items())
    except (ValueError, RecursionError) as error:
        raise InvalidSetting(f"DAYCAP_PRICES_FILE={path}: {error}") from error


def _parse(text: str, *, is_json: bool) -> object:
    # Decimal, so that 0.1 is exactly a tenth.
    if not is_json:
        return tomllib.loads(text, parse_float=Decimal)
    return json.loads(text, parse_float=Decimal, parse_constant=Decimal, object_pairs_hook=_without_doubles)


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    seen: dict[str, object] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"[{key}] appears twice")
        seen[key] = value
    return seen


_PRICE_KEYS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "reasoning": "output_reasoning_mtok",
    "request": "requests_kcount",
    "web_search": "web_searches_kcount",
}
_FOR_ONE = {"request", "web_search"}


def _own_price(pattern: str, table: object) -> OwnPrice:
    if not isinstance(table, Mapping):
        raise ValueError(f'{shown(pattern, 100)} must be a table of prices: ["{pattern}"] and then input, output')
    if unknown := [key for key in table if key not in _PRICE_KEYS]:
        raise ValueError(
            f'["{pattern}"] has the unknown key {shown(unknown[0], 60)}; use {", ".join(_PRICE_KEYS)}; '
            "quote a model name with dots"
        )
    if missing := [key for key in ("input", "output") if key not in table]:
        raise ValueError(f'["{pattern}"] has no {missing[0]}')
    dollars = {key: _dollars(pattern, key, value) for key, value in table.items()}
    for_a_thousand = {key: value * 1000 if key in _FOR_ONE else value for key, value in dollars.items()}
    return OwnPrice(
        pattern,
        ModelPrice(**{_PRICE_KEYS[key]: value for key, value in for_a_thousand.items()}),
    )


def _dollars(pattern: str, key: str, value: object) -> Decimal:
    amount = decimal_of(value) if isinstance(value, str) else Decimal(value) if type(value) is int else value
    if isinstance(amount, Decimal) and amount.is_finite() and 0 <= amount <= _DEAREST_USD:
        exponent = amount.as_tuple().exponent
        if isinstance(exponent, int) and exponent >= _FINEST:
            return amount
    raise ValueError(
        f'["{pattern}"] {key} = {shown(value, 40)} must be US dollars from 0 to a million, with at most 12 decimals'
    )
