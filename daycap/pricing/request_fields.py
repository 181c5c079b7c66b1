"""What the fields of a model request mean for its cost. A field that is not listed here is refused."""

# ruff: noqa: SIM905 (forty names are easier to read as words than as a list of strings)

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from daycap.errors import InvalidInput
from daycap.formats import shown


class Api(NamedTuple):
    """An interface: the fields that limit the output, and the fields whose cost their bytes and that limit bound."""

    limits: tuple[str, ...]
    fields: frozenset[str]


_EVERYWHERE = (
    "model stream stream_options temperature top_p top_k metadata user service_tier speed inference_geo tools "
    "tool_choice cache_control context_management safety_identifier store prompt_cache_key prompt_cache_retention "
    "prompt_cache_options user_profile_id"
).split()

CHAT = Api(
    ("max_completion_tokens", "max_tokens"),
    frozenset(
        (
            "messages n prediction modalities web_search_options functions function_call response_format stop seed "
            "frequency_penalty presence_penalty repetition_penalty min_p logit_bias logprobs top_logprobs "
            "parallel_tool_calls reasoning_effort reasoning verbosity thinking enable_thinking include_reasoning "
            "chat_template_kwargs usage"
        ).split()
        + _EVERYWHERE
    ),
)
RESPONSES = Api(
    ("max_output_tokens",),
    frozenset(
        (
            "input instructions max_tool_calls text reasoning truncation include parallel_tool_calls top_logprobs "
            "conversation previous_response_id prompt"
        ).split()
        + _EVERYWHERE
    ),
)
MESSAGES = Api(
    ("max_tokens",),
    frozenset(
        "messages system stop_sequences thinking output_config output_format mcp_servers container thread".split()
    )
    | frozenset(_EVERYWHERE),
)
EMBEDDINGS = Api((), frozenset("model input dimensions encoding_format user input_type truncate".split()))

OTHER_MODELS = ("fallbacks", "models")
"""Fields that let another model answer."""

KEPT_BY_PROVIDER = (
    "conversation",
    "previous_response_id",
    "prompt",
    "thread",
    "container",
    "mcp_servers",
    "web_search_options",
)
"""Fields that refer to input outside the request."""

USUAL_TIERS = {"auto", "default", "standard", "standard_only"}
"""Service tiers of a request or an answer that have the default prices, or are not known to have others."""


_REASONING = frozenset("context effort enabled exclude generate_summary max_tokens summary".split())
"""Fields of `reasoning`, whose cost is part of the output. Its mode is left out: it may run several calls."""


def refuse_unknown(body: Mapping[str, object], known: Collection[str], allow: Collection[str]) -> None:
    """Raise `InvalidInput` for a field of unknown cost; `allow` names fields that add no cost."""
    for name, value in body.items():
        if value is None or name in allow:
            continue
        if name in OTHER_MODELS:
            raise InvalidInput(f"{name}: another model may answer than the one reserved for; leave it out")
        if name == "modalities" and not (isinstance(value, list) and set(map(str, value)) <= {"text"}):
            raise InvalidInput(f"modalities: daycap can reserve for text only, not {shown(value, 60)}")
        if name not in known:
            raise _unknown(name)
        if name == "reasoning" and isinstance(value, Mapping):
            inside = {f"reasoning.{each}": value[each] for each in value if each not in _REASONING}
            for each, chosen in inside.items():
                if each not in allow and (each, chosen) != ("reasoning.mode", "standard"):
                    raise _unknown(each)


def _unknown(name: str) -> InvalidInput:
    return InvalidInput(
        f"{shown(name, 60)}: daycap does not know what this option adds to the cost; leave it out, or declare that "
        f"it adds nothing: allow=[{shown(name, 60)}]"
    )


_REROUTING = re.compile(
    r"models?|deployments?|fallbacks?|portkey-config|cf-aig-step|http-method|method-override|request-type|service-tier"
)
"""Words in headers that make gateways and servers use another model, tier or method than the request names."""


def refuse_rerouting(headers: Iterable[str], allow: Collection[str]) -> None:
    """Raise `InvalidInput` for a header that may turn the call into one that costs more than was reserved."""
    harmless = {name.lower() for name in allow}
    for name in headers:
        if _REROUTING.search(name.lower()) and name.lower() not in harmless:
            raise InvalidInput(
                f"{shown(name, 60)}: this header may change what the call costs; leave it out, or declare that it "
                f"does not: allow=[{shown(name, 60)}]"
            )


def tier_of(body: Mapping[str, object]) -> str | None:
    """Return the service tier that a request asks for, as `daycap.pricing.usage` names it; None for the default."""
    place = body.get("inference_geo")
    if isinstance(place, str) and place not in {"", "global"}:
        return f"inference_geo={place}"
    tier = "fast" if body.get("speed") == "fast" else body.get("service_tier")
    return tier if isinstance(tier, str) and tier not in USUAL_TIERS else None


def most_rejected(body: Mapping[str, object]) -> int:
    """Return the most tokens of a predicted output that the answer may reject. They are billed as output."""
    prediction = body.get("prediction")
    return 0 if prediction is None else size_of(prediction)


def size_of(value: object) -> int:
    """Return the size of a value's JSON in bytes. Every token has at least one."""
    return len(json.dumps(value, ensure_ascii=False, default=_json_of).encode(errors="replace"))


def _json_of(value: Any) -> object:
    """Convert a pydantic object or class: clients accept these as messages, tools and schemas."""
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        return value.model_json_schema()
    return value.model_dump() if hasattr(value, "model_dump") else repr(value)


def count_of(value: object) -> int:
    """Return a count of tokens, answers or uses. Raises `InvalidInput` if it is none."""
    if type(value) is not int or value < 0:
        raise InvalidInput(f"n and output limits must be counts, not {shown(value, 40)}")
    return value


# --- input ----------------------------------------------------------------------------------------------------

_TEXTS = {
    "custom_tool_call",
    "custom_tool_call_output",
    "function",
    "function_call",
    "function_call_output",
    "input_text",
    "message",
    "output_text",
    "reasoning",
    "redacted_thinking",
    "refusal",
    "summary_text",
    "text",
    "thinking",
    "tool_result",
    "tool_use",
}

_OF_TEXTS = frozenset(
    (
        "role content type text name id status phase refusal tool_calls tool_call_id function_call arguments call_id "
        "input output is_error tool_use_id caller summary encrypted_content thinking signature data thinking_blocks "
        "reasoning reasoning_content reasoning_details citations annotations logprobs parsed cache_control prefix "
        "partial provider_specific_fields"
    ).split()
)
"""Fields of a message or a part of it: text, and metadata."""


def not_text(content: object) -> Iterator[str]:
    """Yield what in messages may be more tokens than it has bytes."""
    if isinstance(content, list):
        for each in content:
            yield from not_text(each)
    elif isinstance(content, Mapping):
        kind = content.get("type")
        if kind is None and content.get("role") is None:
            yield "content without a type"  # OpenAI treats a bare id as a reference to an item.
        elif kind is not None and not (isinstance(kind, str) and kind in _TEXTS):
            yield f"content of type {shown(kind, 60)}"
        elif kind == "reasoning" and not content.get("encrypted_content"):
            yield "reasoning without its encrypted_content"  # OpenAI looks it up by its id.
        yield from (shown(name, 60) for name, value in content.items() if value is not None and name not in _OF_TEXTS)
        for name in ("content", "output"):
            yield from not_text(content.get(name))


_SEARCHING = re.compile(r"\b(?:search-(?:preview|api)|sonar)\b", re.IGNORECASE)


def searches_by_itself(model: str) -> bool:
    """Return whether a model runs billed web searches on every call, even if the request asks for none."""
    return _SEARCHING.search(model) is not None


def added_by_provider(body: Mapping[str, object], models: Iterable[str]) -> Iterator[str]:
    """Yield what in a request lets the provider add input: content it stores, and tools it runs itself.

    `models` are those that may answer; some search the web on every call.
    """
    yield from (f"what {shown(model, 60)} finds on the web" for model in models if searches_by_itself(model))
    yield from (name for name in KEPT_BY_PROVIDER if body.get(name) is not None)
    if _compacts(body.get("context_management")):
        yield "context_management"
    for kind in _hosted_tools(body):
        yield f"a tool of type {shown(kind, 60)}"


def _compacts(management: object) -> bool:
    """Return whether the provider may summarize the input, which is another call. Dropping parts of it is not."""
    edits = management.get("edits") if isinstance(management, Mapping) else management
    kinds = [each.get("type") if isinstance(each, dict) else None for each in edits] if isinstance(edits, list) else []
    return not all(isinstance(kind, str) and kind.startswith("clear_") for kind in kinds)


# --- tools that the provider runs ------------------------------------------------------------------------------

_SEARCH = re.compile(r"web_search(_.*)?")
_FETCH = re.compile(r"web_fetch(_.*)?")


def _tools(body: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    tools = body.get("tools")
    for tool in () if tools is None else tools if isinstance(tools, list) else [tools]:
        yield tool if isinstance(tool, Mapping) else {}


def _hosted_tools(body: Mapping[str, object]) -> Iterator[object]:
    for tool in _tools(body):
        kind = tool.get("type")
        # Anthropic's function tools have a name but no type; Google's have neither.
        if kind not in ("function", "custom") and not (kind is None and "name" in tool):
            yield kind if kind is not None else next(iter(tool), None)


def most_searches(body: Mapping[str, object], default: int | None, allow: Collection[str]) -> int:
    """Return the most web searches that the provider may run. Raises `InvalidInput` if nothing limits them.

    Also raises it for other tools that the provider runs, unless `allow` names them: their cost is unknown.
    """
    most = 0 if body.get("web_search_options") is None else 1
    for tool in _tools(body):
        kind = str(tool.get("type"))
        if _SEARCH.fullmatch(kind):
            bounds = [each for each in (tool.get("max_uses"), body.get("max_tool_calls"), default) if each is not None]
            if not bounds:
                raise InvalidInput(
                    f"a tool of type {shown(kind, 60)}: nothing limits how often it searches; set its max_uses "
                    "(Anthropic), the request's max_tool_calls (OpenAI), or max_web_searches for all calls"
                )
            most += count_of(bounds[0])
    for hosted in _hosted_tools(body):
        kind = str(hosted)
        if not (_SEARCH.fullmatch(kind) or _FETCH.fullmatch(kind) or kind in allow):
            raise InvalidInput(
                f"a tool of type {shown(kind, 60)}: daycap does not know what it adds to the cost; leave it out, or "
                f"declare that it adds nothing but tokens: allow=[{shown(kind, 60)}]"
            )
    return most
