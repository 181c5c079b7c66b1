"""The source of the calls: a trace of inference calls in a CSV file, or a synthetic day from a seed."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from daycap.errors import InvalidInput

_DAY_S = 86_400
_MOST_TOKENS = 10_000_000

_BURSTS = 24
_BURST_S = 180.0
_IN_BURSTS = 0.4
_INPUT_TOKENS = (6.63, 0.99, 16_000)
_OUTPUT_TOKENS = (5.02, 0.75, 1_000)
"""Mean and standard deviation of ln(tokens), and the maximum of tokens, as in an hour of conversations with a public
service (Azure Public Dataset, AzureLLMInferenceDataset2023)."""


class Call(NamedTuple):
    """One inference call: its arrival in seconds, and its input and output tokens."""

    at_s: float
    input_tokens: int
    output_tokens: int


def read_trace(path: Path) -> list[Call]:
    """Read the calls of a CSV file with columns TIMESTAMP, ContextTokens, GeneratedTokens. The first is at second 0.

    Raises `InvalidInput`, which names the line that is not a call.
    """
    calls = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for row in _lines_of(rows, path):
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"]).replace(tzinfo=UTC)
                calls.append(Call(at.timestamp(), _tokens(row["ContextTokens"]), _tokens(row["GeneratedTokens"])))
            except (KeyError, TypeError, ValueError) as error:
                reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
                raise InvalidInput(f"{path.name}, line {rows.line_num}: {reason}") from None
    if not calls:
        raise InvalidInput(f"{path.name} has no calls")
    calls.sort()
    first_s = calls[0].at_s
    return [call._replace(at_s=call.at_s - first_s) for call in calls]


def _lines_of(rows: csv.DictReader[str], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{path.name} is not a CSV file: {error}") from None


def synthetic_day(seed: int, count: int) -> list[Call]:
    """Generate `count` calls of one day: fewer at night, bursts of a few minutes, log-normal tokens. Deterministic."""
    rng = random.Random(f"day {seed}")  # noqa: S311  (not for secrets)
    bursts = [rng.uniform(0, _DAY_S) for _ in range(_BURSTS)]
    return sorted(
        Call(_arrival_s(rng, bursts), _draw_tokens(rng, *_INPUT_TOKENS), _draw_tokens(rng, *_OUTPUT_TOKENS))
        for _ in range(count)
    )


def thinned(calls: Sequence[Call], count: int) -> list[Call]:
    """Return at most `count` of the calls, evenly picked, so that bursts remain."""
    if len(calls) <= count:
        return list(calls)
    return [calls[i * len(calls) // count] for i in range(count)]


def _tokens(text: str) -> int:
    number = int(text)
    if not 0 <= number <= _MOST_TOKENS:
        raise ValueError(f"{number} is not a number of tokens")
    return number


def _arrival_s(rng: random.Random, bursts: Sequence[float]) -> float:
    if rng.random() < _IN_BURSTS:
        return min(max(rng.gauss(rng.choice(bursts), _BURST_S), 0), _DAY_S)
    return rng.triangular(0, _DAY_S, _DAY_S * 0.6)


def _draw_tokens(rng: random.Random, mean: float, deviation: float, most: int) -> int:
    return min(max(1, round(rng.lognormvariate(mean, deviation))), most)
