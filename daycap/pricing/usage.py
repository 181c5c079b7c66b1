"""What a provider says that a call used, read from its usage object: how many tokens of which kind.

A usage is known by its fields, not by its class, so that no client library is needed: an object or a dict, as the
client gives it or as it stands in the JSON. It is believed only whole: what is missing, negative, at odds with itself
or a count that is not known here is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, Required, TypeAlias, TypedDict

from daycap.errors import InvalidInput
from daycap.formats import shown
from daycap.pricing.usage_fields import Fields, agreed
from daycap.pricing.used_tokens import MODALITIES, Part, UsedTokens, by_ttl, split, whole_output


class ChatUsage(Protocol):
    """As OpenAI's chat completions and embeddings, LiteLLM and most others give it.

    Cached, cache-written and audio tokens are among `prompt_tokens`, reasoning is among `completion_tokens`.
    """

    @property
    def prompt_tokens(self) -> int: ...


class InputOutputUsage(Protocol):
    """As OpenAI's Responses, LangChain and Pydantic AI, where cached tokens are among `input_tokens`, and as Anthropic
    and Bedrock, where `cache_read_input_tokens` and `cache_creation_input_tokens` come on top of them.
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


def read_usage(usage: AnyUsage) -> UsedTokens:
    """Return the tokens that `usage` counts. Raises `InvalidInput` where that is not all, or it contradicts itself.

    A usage without any input is refused too: there is no such call, so that its true usage was not reported.
    """
    fields = Fields(usage, "usage")
    if fields.has("prompt_token_count"):
        used = _google(fields)
    elif fields.has("prompt_tokens"):
        used = _chat(fields)
    elif any(not fields.lacks(name) for name in _OF_PYDANTIC_AI):
        used = _pydantic_ai(fields)
    elif fields.has("input_tokens") or fields.has("output_tokens"):
        used = _input_output(fields)
    else:
        raise InvalidInput(
            f"not a usage with all its tokens: {shown(usage, 200)}; it takes prompt_tokens and completion_tokens, "
            "input_tokens and output_tokens, or prompt_token_count and candidates_token_count"
        )
    fields.refuse_unread()
    if not used.input_tokens:
        raise InvalidInput("a usage of no input tokens: the call's true usage was not reported")
    return used


_GOOGLES_NUMBERS = {1: "text", 2: "image", 3: "video", 4: "audio", 5: "document"}
"""Google's modalities as its proto enum numbers them; 0 is unspecified."""


def _chat(usage: Fields) -> UsedTokens:
    details = usage.inside("prompt_tokens_details")
    prompt = usage.required("prompt_tokens")
    total = usage.optional("total_tokens")
    # An embedding has no completion_tokens, and says with its total that nothing came out.
    completion = 0 if usage.lacks("completion_tokens") and total == prompt else usage.required("completion_tokens")
    agreed(prompt, usage.count("input_tokens"))
    agreed(completion, usage.count("output_tokens"))
    # Where the cached ones are not among the details: DeepSeek; Moonshot; Databricks and LiteLLM's older form.
    read = agreed(
        details.count("cached_tokens"),
        usage.count("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens"),
    )
    if read + usage.count("prompt_cache_miss_tokens") > prompt:
        raise InvalidInput(f"usage has {prompt} input tokens in all, and more than that cached and not cached")
    written = agreed(
        details.count("cache_write_tokens", "cache_creation_tokens"), usage.count("cache_creation_input_tokens")
    )
    ttls = _ttls(details.inside("cache_creation_token_details", "cache_write_tokens_details"))
    searches = agreed(_searches(usage), details.count("web_search_requests"))
    # LiteLLM's, of Gemini: what its tools read is among the prompt, of whose first part it tells the size as well.
    details.ignore("tool_use_tokens", "initial_prompt_tokens")
    thought = usage.count("reasoning_tokens")
    research: tuple[Part, ...] = ()
    if thought and usage.has("citation_tokens"):
        # Perplexity's deep research: what it thought, cited and searched comes on top, also of the total.
        on_top = {"reasoning": thought, "citation": usage.count("citation_tokens")}
        research = tuple(Part(tokens, "output", kind) for kind, tokens in on_top.items() if tokens)
        searches = max(searches, usage.count("num_search_queries"))
    usage.ignore("num_search_queries")
    usage.ignore(*_BILLED)
    return UsedTokens(
        (
            *_input(details, prompt, read, written, ttls),
            *_output(usage.inside("completion_tokens_details"), whole_output(completion, prompt, total)),
            *research,
        ),
        searches,
        _service_tier(usage),
    )


_BILLED = ("cost", "cost_details", "cost_in_usd_ticks")
"""What `daycap.pricing.bills` reads where it is the provider's own price; a price is no count."""


def _searches(usage: Fields) -> int:
    """Web searches, each of which is paid for. Fetches and searches for tools cost their tokens only."""
    tools = usage.inside("server_tool_use")
    tools.ignore("web_fetch_requests", "tool_search_requests")
    return tools.count("web_search_requests")


def _input_output(usage: Fields) -> UsedTokens:
    details = usage.inside("input_tokens_details", "input_token_details")
    outputs = usage.inside("output_tokens_details", "output_token_details")
    prompt, output = usage.required("input_tokens"), usage.required("output_tokens")
    tier = _langchains_tier(details, outputs, prompt)
    read = details.count("cached_tokens", "cache_read_input_tokens", f"{tier}cache_read")
    written = details.count("cache_write_tokens", "cache_creation")
    ttls = _ttls(details.inside("cache_write_tokens_details"))
    # LangChain counts what it knows the ttl of only there, and then has no cache_creation.
    if langchains := {ttl: tokens for ttl, tokens in _ttls(details).items() if tokens}:
        if written:
            raise InvalidInput("usage counts tokens written into a cache both with their ttl and without")
        written, ttls = sum(langchains.values()), langchains
    # Anthropic, and Bedrock in its own words, count what was cached on top.
    ttls_on_top = _ttls(usage.inside("cache_creation"))
    for each in usage.each("cache_details"):
        ttls_on_top[each.text("ttl")] = ttls_on_top.get(each.text("ttl"), 0) + each.count("input_tokens")
    read_on_top = usage.count("cache_read_input_tokens", "cache_read_input_token_count")
    written_on_top = usage.count(
        "cache_creation_input_tokens", "cache_write_input_tokens", "cache_write_input_token_count"
    ) or sum(ttls_on_top.values())
    on_top = read_on_top + written_on_top
    output = whole_output(output, prompt, usage.optional("total_tokens"), on_top)
    if on_top:
        if read or written:
            raise InvalidInput("usage counts cached tokens both among input_tokens and on top of them")
        read, written, ttls = read_on_top, written_on_top, ttls_on_top
    usage.ignore(*_BILLED)
    return UsedTokens(
        (*_input(details, prompt + on_top, read, written, ttls), *_output(outputs, output, tier), *_compactions(usage)),
        _searches(usage),
        tier.rstrip("_") or _service_tier(usage),
    )


def _langchains_tier(details: Fields, outputs: Fields, prompt: int) -> str:
    """What LangChain puts before its details of a service tier, whose name alone counts what was not cached."""
    tier = next((tier for tier in ("priority", "flex") if details.has(tier) or outputs.has(tier)), "")
    if tier and details.count(tier) + details.count(f"{tier}_cache_read") != prompt:
        raise InvalidInput(f"usage has {prompt} input tokens in all, and not as many of service tier {tier}")
    outputs.ignore(tier)
    return tier and f"{tier}_"


def _compactions(usage: Fields) -> Iterator[Part]:
    """What Anthropic used to summarize the context, which its sums leave out. Raises where other models took part."""
    for iteration in usage.each("iterations"):
        kind = iteration.text("type")
        if kind not in ("compaction", "message"):
            raise InvalidInput(f"usage has an iteration of type {shown(kind, 60)}, which may be another model's")
        parts = _input_output(iteration).parts
        if kind == "compaction":
            yield from parts


_OF_PYDANTIC_AI = ("cache_read_tokens", "cache_write_tokens", "unmeasured_requests", "details")
_DETAILS_OF_PYDANTIC_AI = {
    "audio_prompt_tokens": "input_audio_tokens",
    "image_prompt_tokens": "input_image_tokens",
    "video_prompt_tokens": "input_video_tokens",
    "audio_cache_tokens": "cache_audio_read_tokens",
    "image_cache_tokens": "cache_image_read_tokens",
    "video_cache_tokens": "cache_video_read_tokens",
    "audio_candidates_tokens": "output_audio_tokens",
    "image_candidates_tokens": "output_image_tokens",
    "video_candidates_tokens": "output_video_tokens",
    "audio_tokens": "output_audio_tokens",
    "image_tokens": "output_image_tokens",
    "cached_tokens": "cache_read_tokens",
    "cached_content_tokens": "cache_read_tokens",
    "cache_read_input_tokens": "cache_read_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
    "ephemeral_1h_input_tokens": "cache_write_1h_tokens",
    "web_search_requests": "web_searches",
}
"""What the provider's own figures, which Pydantic AI keeps as `details`, must have become for it to be priced."""

_PRICED_ELSEWHERE = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "reasoning_tokens",
    "thinking_tokens",
    "thoughts_tokens",
    "tool_use_prompt_tokens",
    "text_prompt_tokens",
    "text_cache_tokens",
    "text_candidates_tokens",
    "text_tool_use_prompt_tokens",
    "accepted_prediction_tokens",
    "rejected_prediction_tokens",
    "web_fetch_requests",
    "tool_search_requests",
)
"""Of the same figures: those that are among the counts whatever Pydantic AI made of them, or cost nothing."""


def _pydantic_ai(usage: Fields) -> UsedTokens:
    """Pydantic AI's RequestUsage and RunUsage: named as in genai-prices, and each count is among the wider ones.

    Their `cost` is Pydantic AI's own estimate.
    """
    if usage.count("unmeasured_requests"):
        raise InvalidInput("usage has unmeasured_requests: it does not tell all that was used")
    prompt, output = usage.required("input_tokens"), usage.required("output_tokens")
    ttls = {ttl: usage.count(f"cache_write_{ttl}_tokens") for ttl in ("5m", "1h")}
    types = {
        **by_ttl(usage.count("cache_write_tokens"), ttls),
        "cache_read": usage.count("cache_read_tokens"),
        "tool": usage.count("input_tool_tokens"),
    }
    parts = (
        *split(
            "input",
            prompt,
            types,
            {each: usage.count(f"input_{each}_tokens") for each in MODALITIES},
            {each: usage.count(f"cache_{each}_read_tokens") for each in MODALITIES},
        ),
        *split(
            "output",
            output,
            {"reasoning": usage.count("output_reasoning_tokens")},
            {each: usage.count(f"output_{each}_tokens") for each in MODALITIES},
        ),
    )
    searches = usage.count("web_searches")
    details = usage.inside("details")
    for raw, counted in _DETAILS_OF_PYDANTIC_AI.items():
        if details.count(raw) > usage.count(counted):
            raise InvalidInput(f"usage.details has {raw}, of which {counted} does not tell")
    details.ignore(*_PRICED_ELSEWHERE)
    usage.ignore("tool_calls", "cost")
    requests = 1 if usage.lacks("requests") else usage.count("requests")
    return UsedTokens(parts, searches, requests=requests)


def _google(usage: Fields) -> UsedTokens:
    alone, by_tools = usage.required("prompt_token_count"), usage.count("tool_use_prompt_token_count")
    thoughts = usage.count("thoughts_token_count")
    total = usage.optional("total_token_count")
    # Where nothing came out but thoughts, Google leaves the candidates out; the total says that it is so.
    candidates = usage.count("candidates_token_count", "response_token_count")
    if total is None and not usage.has("candidates_token_count") and not usage.has("response_token_count"):
        raise InvalidInput("usage has neither candidates_token_count nor total_token_count")
    asked = _by_modality(usage, "prompt_tokens_details"), _by_modality(usage, "tool_use_prompt_tokens_details")
    came = _by_modality(usage, "candidates_tokens_details"), _by_modality(usage, "response_tokens_details")
    output = max(candidates + thoughts, whole_output(candidates, alone, total, by_tools))
    return UsedTokens(
        (
            *split(
                "input",
                alone + by_tools,
                {"cache_read": usage.count("cached_content_token_count")},
                {each: sum(part.get(each, 0) for part in asked) for each in MODALITIES},
                _by_modality(usage, "cache_tokens_details"),
            ),
            *split("output", output, {"reasoning": thoughts}, came[0] or came[1]),
        ),
        service_tier=_service_tier(usage),
    )


def _by_modality(usage: Fields, name: str) -> dict[str, int]:
    """Google's list of counts, each with its modality: a name, or a member or a number of its proto enum.

    A document is billed as an image.
    """
    counts: dict[str, int] = {}
    for each in usage.each(name):
        told, tokens = each.value("modality"), each.count("token_count")
        told = getattr(told, "name", told)
        modality = _GOOGLES_NUMBERS.get(told, "") if type(told) is int else str(told).lower()
        modality = modality.replace("document", "image")
        if tokens and modality not in MODALITIES:
            raise InvalidInput(f"usage.{name} has {tokens} tokens of modality {shown(told, 40)}, which is not known")
        if tokens:
            counts[modality] = counts.get(modality, 0) + tokens
    return counts


def _ttls(details: Fields) -> dict[str, int]:
    """Tokens that were written into a cache, by how long it keeps them where that is not the provider's usual time."""
    details.count("ephemeral_30m_input_tokens", "ttl_30m_tokens")  # OpenAI's usual time.
    return {
        "5m": details.count("ephemeral_5m_input_tokens"),
        "1h": details.count("ephemeral_1h_input_tokens"),
        "12h": details.count("ephemeral_12h_input_tokens", "ttl_12h_tokens"),
    }


def _input(details: Fields, prompt: int, read: int, written: int, ttls: Mapping[str, int]) -> Iterator[Part]:
    cached = details.inside("cached_tokens_details")
    return split(
        "input", prompt, {**by_ttl(written, ttls), "cache_read": read}, _modalities(details), _modalities(cached)
    )


def _output(details: Fields, output: int, tier: str = "") -> Iterator[Part]:
    reasoning = details.count("reasoning_tokens", "thinking_tokens", f"{tier}reasoning")
    # Of a predicted output: what was not used is billed as well, and is among what came out.
    if details.count("accepted_prediction_tokens") + details.count("rejected_prediction_tokens") > output:
        raise InvalidInput(f"usage has {output} output tokens in all, and more than that predicted")
    return split("output", output, {"reasoning": reasoning}, _modalities(details))


def _modalities(details: Fields) -> dict[str, int]:
    """As OpenAI names them, and as LangChain does."""
    return {each: details.count(f"{each}_tokens", each) for each in MODALITIES}


_TIERS_OF_TRAFFIC = {"on_demand_priority": "priority", "on_demand_flex": "flex"}


def _service_tier(usage: Fields) -> str:
    # Anthropic adds a part where the place is asked for; whether there is a price for that is seen where prices are.
    if (place := usage.text("inference_geo")) not in {"", "global", "not_available"}:
        return f"inference_geo={place}"
    if usage.text("speed") == "fast":
        return "fast"
    if (tier := _TIERS_OF_TRAFFIC.get(usage.text("traffic_type"))) is not None:
        return tier
    # Anthropic's "priority" is capacity that was bought in advance, at the usual prices.
    return "batch" if usage.text("service_tier") == "batch" else ""
