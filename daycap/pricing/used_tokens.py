"""The tokens that a call used, by kind. A usage that reports only the total of each kind is split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from daycap.errors import InvalidInput

MODALITIES = ("text", "audio", "image", "video")


class Part(NamedTuple):
    """Tokens of a call that have the same price: their number, and their kind in genai-prices' terms."""

    tokens: int
    direction: str
    token_type: str = ""
    modality: str = ""
    cache_ttl: str = ""

    def is_a(self, dimensions: Mapping[str, str]) -> bool:
        """Return whether these tokens match `dimensions`. Cached audio matches input, audio, and cached too."""
        return all(getattr(self, name) == value for name, value in dimensions.items())


class UsedTokens(NamedTuple):
    """Everything that a call used. `service_tier` is empty for the default tier, or if the usage names none.

    `requests` is the number of calls that the usage sums up; 0 if a sum does not report it.
    """

    parts: tuple[Part, ...]
    web_searches: int = 0
    service_tier: str = ""
    requests: int = 1

    @property
    def input_tokens(self) -> int:
        """All input tokens: the context size that price tiers depend on."""
        return sum(part.tokens for part in self.parts if part.direction == "input")

    @property
    def output_tokens(self) -> int:
        """All output tokens, including reasoning."""
        return sum(part.tokens for part in self.parts if part.direction == "output")


def whole_output(output: int, prompt: int, total: int | None, on_top: int = 0) -> int:
    """Return the output tokens, including those that only the total counts: xAI reports reasoning only there.

    `on_top` is further input, which the total may leave out. Raises `InvalidInput` if the total is too small.
    """
    if total and total < prompt + output:
        raise InvalidInput(f"usage has {total} tokens in all, but {prompt} input and {output} output tokens")
    return max(output, (total or 0) - prompt - on_top)


def by_ttl(written: int, ttls: Mapping[str, int]) -> dict[str, int]:
    """Return cache-written tokens by type and ttl, for `split`. Those without a ttl have the provider's default."""
    usual = written - sum(ttls.values())
    if usual < 0:
        raise InvalidInput(f"usage has {written} cache-written tokens in all, but more by ttl")
    return {"cache_write": usual, **{f"cache_write {ttl}": tokens for ttl, tokens in ttls.items()}}


def split(
    direction: str,
    total: int,
    by_type: Mapping[str, int],
    by_modality: Mapping[str, int],
    read_by_modality: Mapping[str, int] | None = None,
) -> Iterator[Part]:
    """Split `total` tokens by type (with its ttl) and modality. Raises `InvalidInput` if a sum is above the total.

    The usage reports only the sums of each. Tokens of a type count as text as far as there is text: its discount is
    the smallest, so this is the highest possible cost. `read_by_modality` gives the known modalities of cache reads.
    """
    known_read = read_by_modality or {}
    sums = by_type.values(), by_modality.values()
    if any(sum(each) > total for each in sums) or sum(known_read.values()) > by_type.get("cache_read", 0):
        raise InvalidInput(f"usage has {total} {direction} tokens in all, but more of single kinds")
    other = {each: n for each, n in by_modality.items() if n and each != "text"}
    left = {"text": total - sum(other.values()), **other}
    for name, tokens in by_type.items():
        token_type, _, ttl = name.partition(" ")
        known = known_read if name == "cache_read" else {}
        for modality, most in [*known.items(), *dict.fromkeys(left, tokens).items()]:
            taken = min(tokens, most, left.get(modality, 0))
            if taken:
                left[modality] -= taken
                tokens -= taken  # noqa: PLW2901
                yield Part(taken, direction, token_type, modality, ttl)
    for modality, rest in left.items():
        if rest:
            yield Part(rest, direction, "", modality)
