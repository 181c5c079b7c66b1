"""What a call used: tokens by kind, divided where a usage tells the sums of each kind alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from daycap.errors import InvalidInput

MODALITIES = ("text", "audio", "image", "video")


class Part(NamedTuple):
    """Tokens of a call that all cost the same: how many, and what they are, in genai-prices' words."""

    tokens: int
    direction: str
    token_type: str = ""
    modality: str = ""
    cache_ttl: str = ""

    def is_a(self, dimensions: Mapping[str, str]) -> bool:
        """Whether these tokens are of a kind: cached audio is also what is read, and audio, and cached."""
        return all(getattr(self, name) == value for name, value in dimensions.items())


class UsedTokens(NamedTuple):
    """All that a call used. `service_tier` as the usage names it; empty where it does not, or means the usual.

    `requests` is 1, or that of a usage that sums several calls; 0 where a sum does not say of how many.
    """

    parts: tuple[Part, ...]
    web_searches: int = 0
    service_tier: str = ""
    requests: int = 1

    @property
    def input_tokens(self) -> int:
        """All tokens that went in: the size that decides a price by context."""
        return sum(part.tokens for part in self.parts if part.direction == "input")

    @property
    def output_tokens(self) -> int:
        """All tokens that came out, reasoning included."""
        return sum(part.tokens for part in self.parts if part.direction == "output")


def whole_output(output: int, prompt: int, total: int | None, on_top: int = 0) -> int:
    """What came out, with what the total has beyond all: xAI leaves reasoning out of completion_tokens.

    `on_top` went in as well, and a total may leave it out.
    """
    if total and total < prompt + output:
        raise InvalidInput(f"usage has {total} tokens in all, and more than that: {prompt} in and {output} out")
    return max(output, (total or 0) - prompt - on_top)


def by_ttl(written: int, ttls: Mapping[str, int]) -> dict[str, int]:
    """Tokens written into a cache by type and ttl, for `split`; what has no ttl has the provider's usual one."""
    usual = written - sum(ttls.values())
    if usual < 0:
        raise InvalidInput(f"usage has {written} tokens written into a cache, and more than that by their ttl")
    return {"cache_write": usual, **{f"cache_write {ttl}": tokens for ttl, tokens in ttls.items()}}


def split(
    direction: str,
    total: int,
    by_type: Mapping[str, int],
    by_modality: Mapping[str, int],
    read_by_modality: Mapping[str, int] | None = None,
) -> Iterator[Part]:
    """Divide `total` tokens by type (with its ttl) and by modality, where a usage says the sums of each alone.

    What has a type is taken to be text as far as there is text, whose discount is the smallest, so that this is
    the dearest reading; `read_by_modality` is what is known better of those read from a cache.
    """
    known_read = read_by_modality or {}
    sums = by_type.values(), by_modality.values()
    if any(sum(each) > total for each in sums) or sum(known_read.values()) > by_type.get("cache_read", 0):
        raise InvalidInput(f"usage has {total} {direction} tokens in all, and more than that of single kinds")
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
