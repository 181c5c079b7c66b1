"""What the fields of a request to a model mean for its cost. What is not on a list here is refused, never guessed."""

# ruff: noqa: SIM905 (forty names are easier to read as words than as a list of strings)

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from daycap.errors import InvalidInput
from daycap.formats import shown


class Api(NamedTuple):
    """An interface: the fields that limit what comes out, and all that cost no more than their bytes and that limit."""

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
"""Fields that stand for input which is not in the request."""

USUAL_TIERS = {"auto", "default", "standard", "standard_only"}
"""Of a request or an answer: the usual prices, or not known to be others."""


_REASONING = frozenset("context effort enabled exclude generate_summary max_tokens summary".split())
"""Fields of `reasoning`, which costs as much as comes out. Its mode may make one call more than that."""


def refuse_unknown(body: Mapping[str, object], known: Collection[str], allow: Collection[str]) -> None:
    """Raise `InvalidInput` for a field whose cost is not known; `allow` names those that cost nothing more."""
    for name, value in body.items():
        if value is None or name in allow:
            continue
        if name in OTHER_MODELS:
            raise InvalidInput(f"{name}: another model may answer than the one that is held for; leave it out")
        if name == "modalities" and not (isinstance(value, list) and set(map(str, value)) <= {"text"}):
            raise InvalidInput(f"modalities: only text can be held for, not {shown(value, 60)}")
        if name not in known:
            raise _unknown(name)
        if name == "reasoning" and isinstance(value, Mapping):
            inside = {f"reasoning.{each}": value[each] for each in value if each not in _REASONING}
            for each, chosen in inside.items():
                if each not in allow and (each, chosen) != ("reasoning.mode", "standard"):
                    raise _unknown(each)


def _unknown(name: str) -> InvalidInput:
    return InvalidInput(
        f"{shown(name, 60)}: what this option adds to the cost of a call is not known; leave it out, or say that it "
        f"adds nothing: allow=[{shown(name, 60)}]"
    )


_REROUTING = re.compile(
    r"models?|deployments?|fallbacks?|portkey-config|cf-aig-step|http-method|method-override|request-type|service-tier"
)
"""Words of headers by which gateways and servers take another model, tier or method than the request names."""


def refuse_rerouting(headers: Iterable[str], allow: Collection[str]) -> None:
    """Raise `InvalidInput` for a header by which another call may be made than the one that is held for."""
    harmless = {name.lower() for name in allow}
    for name in headers:
        if _REROUTING.search(name.lower()) and name.lower() not in harmless:
            raise InvalidInput(
                f"{shown(name, 60)}: this header may change what the call costs; leave it out, or say that it does "
                f"not: allow=[{shown(name, 60)}]"
            )


def tier_of(body: Mapping[str, object]) -> str | None:
    """The service tier that a request asks for, None for the usual one: as `daycap.pricing.usage` names them."""
    place = body.get("inference_geo")
    if isinstance(place, str) and place not in {"", "global"}:
        return f"inference_geo={place}"
    tier = "fast" if body.get("speed") == "fast" else body.get("service_tier")
    return tier if isinstance(tier, str) and tier not in USUAL_TIERS else None


def most_rejected(body: Mapping[str, object]) -> int:
    """The most tokens of a predicted output that the answer does not use. They are billed as if they had come out."""
    prediction = body.get("prediction")
    return 0 if prediction is None else size_of(prediction)


def size_of(value: object) -> int:
    """The bytes of a value's JSON: no token is of less than one."""
    return len(json.dumps(value, ensure_ascii=False, default=_json_of).encode(errors="replace"))


def _json_of(value: Any) -> object:
    """Clients take objects and classes of pydantic for messages, tools and schemas."""
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        return value.model_json_schema()
    return value.model_dump() if hasattr(value, "model_dump") else repr(value)


def count_of(value: object) -> int:
    """A count of tokens, answers or uses. Raises `InvalidInput`."""
    if type(value) is not int or value < 0:
        raise InvalidInput(f"n and the most tokens that come out are counts, not {shown(value, 40)}")
    return value


# --- what goes in ---------------------------------------------------------------------------------------------

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
"""What a message or a part of it may have: text, and what is about it."""


def not_text(content: object) -> Iterator[str]:
    """What of messages may stand for more tokens than it has bytes."""
    if isinstance(content, list):
        for each in content:
            yield from not_text(each)
    elif isinstance(content, Mapping):
        kind = content.get("type")
        if kind is None and content.get("role") is None:
            yield "content without a type"  # To OpenAI an id alone is a reference to an item.
        elif kind is not None and not (isinstance(kind, str) and kind in _TEXTS):
            yield f"content of type {shown(kind, 60)}"
        elif kind == "reasoning" and not content.get("encrypted_content"):
            yield "reasoning without its encrypted_content"  # It is looked up by its id.
        yield from (shown(name, 60) for name, value in content.items() if value is not None and name not in _OF_TEXTS)
        for name in ("content", "output"):
            yield from not_text(content.get(name))


_SEARCHING = re.compile(r"\b(?:search-(?:preview|api)|sonar)\b", re.IGNORECASE)


def searches_by_itself(model: str) -> bool:
    """Whether a model searches on the web at each call, for a price, though nothing in the request asks for it."""
    return _SEARCHING.search(model) is not None


def added_by_provider(body: Mapping[str, object], models: Iterable[str]) -> Iterator[str]:
    """What of a request lets its provider add to what goes in: what it keeps, and tools that it runs itself.

    `models` may answer; some of them search the web whatever the request is.
    """
    yield from (f"what {shown(model, 60)} finds on the web" for model in models if searches_by_itself(model))
    yield from (name for name in KEPT_BY_PROVIDER if body.get(name) is not None)
    if _compacts(body.get("context_management")):
        yield "context_management"
    for kind in _hosted_tools(body):
        yield f"a tool of type {shown(kind, 60)}"


def _compacts(management: object) -> bool:
    """Whether the provider may summarize what goes in, which is a call of its own; to leave some of it out is none."""
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
        # Anthropic's own have no type but a name; Google's have neither.
        if kind not in ("function", "custom") and not (kind is None and "name" in tool):
            yield kind if kind is not None else next(iter(tool), None)


def most_searches(body: Mapping[str, object], default: int | None, allow: Collection[str]) -> int:
    """The most searches on the web that the provider may make. Raises `InvalidInput` where nothing bounds them.

    Also for other tools that the provider runs, unless `allow` names them: what those cost is not known.
    """
    most = 0 if body.get("web_search_options") is None else 1
    for tool in _tools(body):
        kind = str(tool.get("type"))
        if _SEARCH.fullmatch(kind):
            bounds = [each for each in (tool.get("max_uses"), body.get("max_tool_calls"), default) if each is not None]
            if not bounds:
                raise InvalidInput(
                    f"a tool of type {shown(kind, 60)}: nothing bounds how often it searches; give it max_uses "
                    "(Anthropic), the request max_tool_calls (OpenAI), or max_web_searches for all calls"
                )
            most += count_of(bounds[0])
    for hosted in _hosted_tools(body):
        kind = str(hosted)
        if not (_SEARCH.fullmatch(kind) or _FETCH.fullmatch(kind) or kind in allow):
            raise InvalidInput(
                f"a tool of type {shown(kind, 60)}: what it adds to the cost of a call is not known; leave it out, or "
                f"say that it adds nothing but tokens: allow=[{shown(kind, 60)}]"
            )
    return most
