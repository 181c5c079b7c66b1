"""What a provider says that a call used, read from its usage object: how many tokens of which kind.

A usage is known by its fields, not by its class, so that no client library is needed: an object or a dict, as the
client gives it or as it stands in the JSON. What is missing, negative or at odds with itself is refused, never
guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple, Protocol, Required, TypeAlias, TypedDict

from daycap.errors import InvalidInput, shown
from daycap.money import MAX_MICROS


class ChatUsage(Protocol):
    """As OpenAI's chat completions and embeddings, LiteLLM and most others give it.

    Cached, cache-written and audio tokens are among `prompt_tokens`, reasoning is among `completion_tokens`.
    """

    @property
    def prompt_tokens(self) -> int: ...


class InputOutputUsage(Protocol):
    """As OpenAI's Responses, where cached tokens are among `input_tokens`, and as Anthropic, where
    `cache_read_input_tokens` and `cache_creation_input_tokens` come on top of them.
    """

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int: ...


class GoogleUsage(Protocol):
    """As Google's `usage_metadata`: thoughts and tool prompts come on top of candidates and prompt."""

    @property
    def prompt_token_count(self) -> int | None: ...
    @property
    def total_token_count(self) -> int | None: ...


AnyUsage: TypeAlias = ChatUsage | InputOutputUsage | GoogleUsage | Mapping[str, object] | None
"""The usage of one call, of any of these shapes. None, which clients have where a provider said nothing, is refused."""


class Call(TypedDict, total=False):
    """What `reserve` must know of a call to hold the most that it can cost, in the words of `worst_case_micros`."""

    model: Required[str]
    input_tokens: Required[int]
    max_output_tokens: Required[int]
    provider: str | None
    service_tier: str | None
    max_web_searches: int


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
    """All that a call used. `service_tier` as the usage names it; empty where it does not, or means the usual."""

    parts: tuple[Part, ...]
    web_searches: int = 0
    service_tier: str = ""

    @property
    def input_tokens(self) -> int:
        """All tokens that went in: the size that decides a price by context."""
        return sum(part.tokens for part in self.parts if part.direction == "input")

    @property
    def output_tokens(self) -> int:
        """All tokens that came out, reasoning included."""
        return sum(part.tokens for part in self.parts if part.direction == "output")


def read_usage(usage: AnyUsage) -> UsedTokens:
    """The tokens that `usage` tells of. Raises `InvalidInput` where it does not say them all, or contradicts itself.

    A usage of no tokens at all is refused too: that is what a stream carries whose usage was not reported.
    """
    fields = _Fields(usage, "usage")
    if fields.has("prompt_token_count"):
        used = _google(fields)
    elif fields.has("prompt_tokens"):
        used = _chat(fields)
    elif fields.has("input_tokens") or fields.has("output_tokens"):
        used = _input_output(fields)
    else:
        raise InvalidInput(
            f"not a usage with all its tokens: {shown(usage, 200)}; it takes prompt_tokens and completion_tokens, "
            "input_tokens and output_tokens, or prompt_token_count and candidates_token_count"
        )
    if not used.input_tokens and not used.output_tokens:
        raise InvalidInput("a usage of no tokens at all: the call's true usage was not reported")
    return used


class _Fields:
    """The fields of an object or a mapping, in snake_case or as JSON's camelCase, and where they stand."""

    def __init__(self, source: object, path: str) -> None:
        if source is not None and isinstance(source, str | bytes | int | float | list | tuple):
            raise InvalidInput(f"{path} is {shown(source, 40)}, not an object with fields")
        self._source = source
        self._path = path

    def has(self, name: str) -> bool:
        """Whether a field of this name has a value."""
        return self._get(name) is not None

    def lacks(self, name: str) -> bool:
        """Whether there is no such field, not even an empty one."""
        if isinstance(self._source, Mapping):
            return name not in self._source and _camel(name) not in self._source
        return not hasattr(self._source, name)

    def count(self, *names: str) -> int:
        """The first of these fields that has a value, 0 if none has."""
        return next((value for name in names if (value := self.optional(name)) is not None), 0)

    def required(self, name: str) -> int:
        """A count that must be there."""
        value = self.optional(name)
        if value is None:
            raise InvalidInput(f"{self._path} has no {name}: what the call cost cannot be told")
        return value

    def optional(self, name: str) -> int | None:
        """A count, None where there is no value. Raises `InvalidInput` for what is not one."""
        value = self._get(name)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value <= MAX_MICROS:
            raise InvalidInput(f"{self._path}.{name} must be an int from 0 to 2**53 - 1, not {shown(value, 40)}")
        return value

    def text(self, name: str) -> str:
        """An enum's value or a string, in lower case; empty where there is none."""
        value = self._get(name)
        value = getattr(value, "value", value)
        return value.lower() if isinstance(value, str) else ""

    def inside(self, *names: str) -> _Fields:
        """The fields of the first of these that is there."""
        name = next((name for name in names if self.has(name)), names[0])
        return _Fields(self._get(name), f"{self._path}.{name}")

    def by_modality(self, name: str) -> dict[str, int]:
        """Google's list of counts, each with its modality. A document is billed as an image."""
        counts: dict[str, int] = {}
        for each in self.each(name):
            modality = each.text("modality").replace("document", "image")
            counts[modality] = counts.get(modality, 0) + each.count("token_count")
        return counts

    def each(self, name: str) -> Iterator[_Fields]:
        """The fields of each in a list."""
        listed = self._get(name)
        for item in listed if isinstance(listed, list | tuple) else ():
            yield _Fields(item, f"{self._path}.{name}[]")

    def _get(self, name: str) -> object:
        if not isinstance(self._source, Mapping):
            return getattr(self._source, name, None)
        return self._source[name] if name in self._source else self._source.get(_camel(name))


@cache
def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))


_MODALITIES = ("audio", "image", "video")


def _chat(usage: _Fields) -> UsedTokens:
    details = usage.inside("prompt_tokens_details")
    prompt = usage.required("prompt_tokens")
    total = usage.optional("total_tokens")
    # An embedding has no completion_tokens, and says with its total that nothing came out.
    completion = 0 if usage.lacks("completion_tokens") and total == prompt else usage.required("completion_tokens")
    # Where the cached ones are not among the details: DeepSeek; Moonshot; Databricks and LiteLLM's older form.
    read = details.count("cached_tokens") or usage.count(
        "prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens"
    )
    written = details.count("cache_write_tokens", "cache_creation_tokens") or usage.count("cache_creation_input_tokens")
    ttls = _ttls(details.inside("cache_creation_token_details", "cache_write_tokens_details"))
    searches = max(each.count("web_search_requests") for each in (usage.inside("server_tool_use"), details))
    research: tuple[Part, ...] = ()
    if usage.has("citation_tokens") and usage.has("reasoning_tokens"):
        # Perplexity's deep research: what it thought, cited and searched comes on top, also of the total.
        on_top = {"reasoning": usage.count("reasoning_tokens"), "citation": usage.count("citation_tokens")}
        research = tuple(Part(tokens, "output", kind) for kind, tokens in on_top.items() if tokens)
        searches = max(searches, usage.count("num_search_queries"))
    return UsedTokens(
        (
            *_input(details, prompt, read, written, ttls),
            *_output(usage.inside("completion_tokens_details"), _whole_output(completion, prompt, total)),
            *research,
        ),
        searches,
        _service_tier(usage),
    )


def _input_output(usage: _Fields) -> UsedTokens:
    details = usage.inside("input_tokens_details", "input_token_details")
    read, written = details.count("cached_tokens", "cache_read_input_tokens"), details.count("cache_write_tokens")
    ttls = _ttls(details.inside("cache_write_tokens_details"))
    prompt = usage.required("input_tokens")
    # Anthropic, and Bedrock in its own words, count what was cached on top.
    ttls_on_top = _ttls(usage.inside("cache_creation"))
    read_on_top = usage.count("cache_read_input_tokens")
    written_on_top = usage.count("cache_creation_input_tokens", "cache_write_input_tokens") or sum(ttls_on_top.values())
    if read_on_top or written_on_top:
        if read or written:
            raise InvalidInput("usage counts cached tokens both among input_tokens and on top of them")
        read, written, ttls = read_on_top, written_on_top, ttls_on_top
        prompt += read + written
    output = _whole_output(usage.required("output_tokens"), prompt, usage.optional("total_tokens"))
    return UsedTokens(
        (
            *_input(details, prompt, read, written, ttls),
            *_output(usage.inside("output_tokens_details", "output_token_details"), output),
            *_compactions(usage),
        ),
        usage.inside("server_tool_use").count("web_search_requests"),
        _service_tier(usage),
    )


def _compactions(usage: _Fields) -> Iterator[Part]:
    """What Anthropic used to summarize the context, which its sums leave out. Raises where other models took part."""
    for iteration in usage.each("iterations"):
        if (kind := iteration.text("type")) == "compaction":
            yield from _input_output(iteration).parts
        elif kind != "message":
            raise InvalidInput(f"usage has an iteration of type {shown(kind, 60)}, which may be another model's")


def _google(usage: _Fields) -> UsedTokens:
    prompt = usage.required("prompt_token_count") + usage.count("tool_use_prompt_token_count")
    thoughts = usage.count("thoughts_token_count")
    total = usage.optional("total_token_count")
    # Where nothing came out but thoughts, Google leaves the candidates out; the total says that it is so.
    candidates = usage.count("candidates_token_count", "response_token_count")
    if total is None and not usage.has("candidates_token_count") and not usage.has("response_token_count"):
        raise InvalidInput("usage has neither candidates_token_count nor total_token_count")
    asked = usage.by_modality("prompt_tokens_details"), usage.by_modality("tool_use_prompt_tokens_details")
    came = usage.by_modality("candidates_tokens_details") or usage.by_modality("response_tokens_details")
    output = _whole_output(candidates + thoughts, prompt, total)
    return UsedTokens(
        (
            *_split(
                "input",
                prompt,
                {"cache_read": usage.count("cached_content_token_count")},
                {each: sum(part.get(each, 0) for part in asked) for each in _MODALITIES},
                usage.by_modality("cache_tokens_details"),
            ),
            *_split("output", output, {"reasoning": thoughts}, {each: came.get(each, 0) for each in _MODALITIES}),
        ),
        service_tier=_service_tier(usage),
    )


def _whole_output(output: int, prompt: int, total: int | None) -> int:
    """What came out, with what the total has beyond both: xAI leaves reasoning out of completion_tokens."""
    return max(output, (total or 0) - prompt)


def _ttls(details: _Fields) -> dict[str, int]:
    """Tokens that were written into a cache, by how long it keeps them where that is not the provider's usual time."""
    return {
        "5m": details.count("ephemeral_5m_input_tokens"),
        "1h": details.count("ephemeral_1h_input_tokens"),
        "12h": details.count("ephemeral_12h_input_tokens", "ttl_12h_tokens"),
    }


def _input(details: _Fields, prompt: int, read: int, written: int, ttls: Mapping[str, int]) -> Iterator[Part]:
    usual = written - sum(ttls.values())
    if usual < 0:
        raise InvalidInput(f"usage has {written} tokens written into a cache, and more than that by their ttl")
    by_type = {"cache_write": usual, **{f"cache_write {ttl}": tokens for ttl, tokens in ttls.items()}}
    by_modality = {each: details.count(f"{each}_tokens") for each in _MODALITIES}
    cached = details.inside("cached_tokens_details")
    read_by_modality = {each: cached.count(f"{each}_tokens") for each in _MODALITIES}
    return _split("input", prompt, {**by_type, "cache_read": read}, by_modality, read_by_modality)


def _output(details: _Fields, output: int) -> Iterator[Part]:
    reasoning = details.count("reasoning_tokens", "thinking_tokens")
    by_modality = {each: details.count(f"{each}_tokens") for each in _MODALITIES}
    return _split("output", output, {"reasoning": reasoning}, by_modality)


def _split(
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
    left = {"text": total - sum(by_modality.values()), **{each: n for each, n in by_modality.items() if n}}
    if left["text"] < 0 or sum(by_type.values()) > total:
        raise InvalidInput(f"usage has {total} {direction} tokens in all, and more than that of single kinds")
    for name, tokens in by_type.items():
        token_type, _, ttl = name.partition(" ")
        known = read_by_modality or {} if name == "cache_read" else {}
        for modality, most in [*known.items(), *dict.fromkeys(left, tokens).items()]:
            taken = min(tokens, most, left.get(modality, 0))
            if taken:
                left[modality] -= taken
                tokens -= taken  # noqa: PLW2901
                yield Part(taken, direction, token_type, modality, ttl)
    for modality, rest in left.items():
        if rest:
            yield Part(rest, direction, "", modality)


_TIERS_OF_TRAFFIC = {"on_demand_priority": "priority", "on_demand_flex": "flex"}


def _service_tier(usage: _Fields) -> str:
    # Anthropic adds a part where the place is asked for; whether there is a price for that is seen where prices are.
    if (place := usage.text("inference_geo")) not in {"", "global", "not_available"}:
        return f"inference_geo={place}"
    if usage.text("speed") == "fast":
        return "fast"
    if (tier := _TIERS_OF_TRAFFIC.get(usage.text("traffic_type"))) is not None:
        return tier
    # Anthropic's "priority" is capacity that was bought in advance, at the usual prices.
    return "batch" if usage.text("service_tier") == "batch" else ""
