"""Read a provider's usage object: how many tokens of each kind a call used.

A usage is recognized by its fields, not its class, so no client library is needed. It may be the client's object, a
dict, or parsed JSON. A usage that is incomplete, negative or inconsistent, or that has an unknown count, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, Required, TypeAlias, TypedDict

from daycap.errors import InvalidInput
from daycap.formats import shown
from daycap.pricing.usage_fields import Fields, agreed
from daycap.pricing.used_tokens import MODALITIES, Part, UsedTokens, by_ttl, split, whole_output


class ChatUsage(Protocol):
    """The usage of OpenAI's chat completions and embeddings, of LiteLLM and of most others.

    `prompt_tokens` includes cached, cache-written and audio tokens; `completion_tokens` includes reasoning.
    """

    @property
    def prompt_tokens(self) -> int: ...


class InputOutputUsage(Protocol):
    """The usage of OpenAI's Responses, LangChain and Pydantic AI, where `input_tokens` includes cached tokens, and of
    Anthropic and Bedrock, where `cache_read_input_tokens` and `cache_creation_input_tokens` are added to it.
    """

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int: ...


class GoogleUsage(Protocol):
    """Google's `usage_metadata`: thoughts and tool prompts are added to candidates and prompt."""

    @property
    def prompt_token_count(self) -> int | None: ...
    @property
    def total_token_count(self) -> int | None: ...


AnyUsage: TypeAlias = ChatUsage | InputOutputUsage | GoogleUsage | Mapping[str, object] | None
"""The usage of one call, in any of these shapes. None, as clients have it if the provider sent no usage, is refused."""


class PricedCall(TypedDict, total=False):
    """The arguments of `worst_case_micros`, from which `reserve` computes the most that a call can cost."""

    model: Required[str]
    input_tokens: Required[int]
    max_output_tokens: Required[int]
    provider: str | None
    service_tier: str | None
    max_web_searches: int


def read_usage(usage: AnyUsage) -> UsedTokens:
    """Return the tokens that `usage` counts. Raises `InvalidInput` if it is incomplete or contradicts itself.

    A usage with no input tokens is refused too: every call has some, so the true usage was not reported.
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
            f"not a complete usage: {shown(usage, 200)}; expected prompt_tokens and completion_tokens, "
            "input_tokens and output_tokens, or prompt_token_count and candidates_token_count"
        )
    fields.refuse_unread()
    if not used.input_tokens:
        raise InvalidInput("usage has no input tokens: the provider did not report the call's true usage")
    return used


_GOOGLES_NUMBERS = {1: "text", 2: "image", 3: "video", 4: "audio", 5: "document"}
"""Google's modalities as its proto enum numbers them; 0 is unspecified."""


def _chat(usage: Fields) -> UsedTokens:
    details = usage.inside("prompt_tokens_details")
    prompt = usage.required("prompt_tokens")
    total = usage.optional("total_tokens")
    # An embedding has no completion_tokens; its total shows that there was no output.
    completion = 0 if usage.lacks("completion_tokens") and total == prompt else usage.required("completion_tokens")
    agreed(prompt, usage.count("input_tokens"))
    agreed(completion, usage.count("output_tokens"))
    # Providers that report cached tokens outside the details: DeepSeek; Moonshot; Databricks and older LiteLLM.
    read = agreed(
        details.count("cached_tokens"),
        usage.count("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens"),
    )
    if read + usage.count("prompt_cache_miss_tokens") > prompt:
        raise InvalidInput(f"usage has {prompt} input tokens in all, but more cached and uncached ones")
    written = agreed(
        details.count("cache_write_tokens", "cache_creation_tokens"), usage.count("cache_creation_input_tokens")
    )
    ttls = _ttls(details.inside("cache_creation_token_details", "cache_write_tokens_details"))
    searches = agreed(_searches(usage), details.count("web_search_requests"))
    # LiteLLM's fields for Gemini: the prompt already includes what the tools read.
    details.ignore("tool_use_tokens", "initial_prompt_tokens")
    thought = usage.count("reasoning_tokens")
    research: tuple[Part, ...] = ()
    if thought and usage.has("citation_tokens"):
        # Perplexity's deep research adds reasoning, citations and searches to the counts, and to the total.
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
"""Prices, not counts. `daycap.pricing.bills` reads them if the provider itself reports them."""


def _searches(usage: Fields) -> int:
    """Count web searches, which are billed per search. Fetches and tool searches cost only their tokens."""
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
    # If LangChain knows the ttl, it reports the tokens only under that ttl and leaves out cache_creation.
    if langchains := {ttl: tokens for ttl, tokens in _ttls(details).items() if tokens}:
        if written:
            raise InvalidInput("usage counts cache-written tokens both with and without a ttl")
        written, ttls = sum(langchains.values()), langchains
    # Anthropic and Bedrock count cached tokens on top of input_tokens.
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
            raise InvalidInput("usage counts cached tokens both within input_tokens and on top of them")
        read, written, ttls = read_on_top, written_on_top, ttls_on_top
    usage.ignore(*_BILLED)
    return UsedTokens(
        (*_input(details, prompt + on_top, read, written, ttls), *_output(outputs, output, tier), *_compactions(usage)),
        _searches(usage),
        tier.rstrip("_") or _service_tier(usage),
    )


def _langchains_tier(details: Fields, outputs: Fields, prompt: int) -> str:
    """Return the prefix of LangChain's details for a service tier. The bare tier name counts uncached tokens."""
    tier = next((tier for tier in ("priority", "flex") if details.has(tier) or outputs.has(tier)), "")
    if tier and details.count(tier) + details.count(f"{tier}_cache_read") != prompt:
        raise InvalidInput(f"usage has {prompt} input tokens in all, but another number for service tier {tier}")
    outputs.ignore(tier)
    return tier and f"{tier}_"


def _compactions(usage: Fields) -> Iterator[Part]:
    """Yield the tokens that Anthropic spent on summarizing the context, which its totals leave out.

    Raises `InvalidInput` if another model may have taken part.
    """
    for iteration in usage.each("iterations"):
        kind = iteration.text("type")
        if kind not in ("compaction", "message"):
            raise InvalidInput(f"usage has an iteration of type {shown(kind, 60)}, which another model may have run")
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
"""The provider's own counts, which Pydantic AI keeps in `details`, and the count that must include each of them."""

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
"""The provider's counts that other counts always include, or that cost nothing."""


def _pydantic_ai(usage: Fields) -> UsedTokens:
    """Read Pydantic AI's RequestUsage or RunUsage. Wider counts include narrower ones; names are genai-prices'.

    Their `cost` is Pydantic AI's own estimate and is ignored.
    """
    if usage.count("unmeasured_requests"):
        raise InvalidInput("usage has unmeasured_requests, so it is incomplete")
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
            raise InvalidInput(f"usage.details has {raw}, which {counted} does not include")
    details.ignore(*_PRICED_ELSEWHERE)
    usage.ignore("tool_calls", "cost")
    requests = 1 if usage.lacks("requests") else usage.count("requests")
    return UsedTokens(parts, searches, requests=requests)


def _google(usage: Fields) -> UsedTokens:
    alone, by_tools = usage.required("prompt_token_count"), usage.count("tool_use_prompt_token_count")
    thoughts = usage.count("thoughts_token_count")
    total = usage.optional("total_token_count")
    # Google omits the candidates if the output was only thoughts; the total confirms that.
    candidates = usage.count("candidates_token_count", "response_token_count")
    if total is None and not usage.has("candidates_token_count") and not usage.has("response_token_count"):
        raise InvalidInput("usage has neither candidates_token_count nor total_token_count")
    inputs = _by_modality(usage, "prompt_tokens_details"), _by_modality(usage, "tool_use_prompt_tokens_details")
    outputs = _by_modality(usage, "candidates_tokens_details"), _by_modality(usage, "response_tokens_details")
    output = max(candidates + thoughts, whole_output(candidates, alone, total, by_tools))
    return UsedTokens(
        (
            *split(
                "input",
                alone + by_tools,
                {"cache_read": usage.count("cached_content_token_count")},
                {each: sum(part.get(each, 0) for part in inputs) for each in MODALITIES},
                _by_modality(usage, "cache_tokens_details"),
            ),
            *split("output", output, {"reasoning": thoughts}, outputs[0] or outputs[1]),
        ),
        service_tier=_service_tier(usage),
    )


def _by_modality(usage: Fields, name: str) -> dict[str, int]:
    """Read Google's list of counts by modality: a name, or a member or number of its proto enum.

    A document is billed as an image.
    """
    counts: dict[str, int] = {}
    for each in usage.each(name):
        raw, tokens = each.value("modality"), each.count("token_count")
        raw = getattr(raw, "name", raw)
        modality = _GOOGLES_NUMBERS.get(raw, "") if type(raw) is int else str(raw).lower()
        modality = modality.replace("document", "image")
        if tokens and modality not in MODALITIES:
            raise InvalidInput(f"usage.{name} has {tokens} tokens of unknown modality {shown(raw, 40)}")
        if tokens:
            counts[modality] = counts.get(modality, 0) + tokens
    return counts


def _ttls(details: Fields) -> dict[str, int]:
    """Count cache-written tokens by ttl, where it is not the provider's default."""
    details.count("ephemeral_30m_input_tokens", "ttl_30m_tokens")  # OpenAI's default.
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
    # The output includes predicted tokens, rejected ones too: they are billed.
    if details.count("accepted_prediction_tokens") + details.count("rejected_prediction_tokens") > output:
        raise InvalidInput(f"usage has {output} output tokens in all, but more predicted ones")
    return split("output", output, {"reasoning": reasoning}, _modalities(details))


def _modalities(details: Fields) -> dict[str, int]:
    """Count tokens by modality, under OpenAI's or LangChain's names."""
    return {each: details.count(f"{each}_tokens", each) for each in MODALITIES}


_TIERS_OF_TRAFFIC = {"on_demand_priority": "priority", "on_demand_flex": "flex"}


def _service_tier(usage: Fields) -> str:
    # Anthropic charges extra for a requested location. Whether there is a price for it is checked with the prices.
    if (place := usage.text("inference_geo")) not in {"", "global", "not_available"}:
        return f"inference_geo={place}"
    if usage.text("speed") == "fast":
        return "fast"
    if (tier := _TIERS_OF_TRAFFIC.get(usage.text("traffic_type"))) is not None:
        return tier
    # Anthropic's "priority" is capacity bought in advance, at the default prices.
    return "batch" if usage.text("service_tier") == "batch" else ""
