"""What a request to a provider asks for: the model, and the most tokens that can go in and come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from daycap.errors import InvalidInput, shown
from daycap.usage import Call

TokenCounter: TypeAlias = Callable[[Mapping[str, object]], int]
"""The most tokens that can go in, by the JSON of a request."""


class AgentCall(NamedTuple):
    """A call, and whose it is."""

    agent: str
    call: Call


_CALLS = ("/chat/completions", "/responses", "/embeddings", "/messages")
_FREE_METHODS = {"GET", "HEAD", "OPTIONS", "DELETE"}
_FREE_PATHS = ("/messages/count_tokens", "/responses/input_tokens", "/moderations", "/cancel")


def costs_nothing(method: str, path: str) -> bool:
    """Whether providers surely bill nothing for such a request."""
    return method in _FREE_METHODS or path.endswith(_FREE_PATHS)


def may_be_a_call(path: str) -> bool:
    """Whether the request's body is worth a look."""
    return path.rstrip("/").endswith(_CALLS)


def call_of(path: str, content: bytes, max_output_tokens: int | None, count_tokens: TokenCounter | None) -> Call | None:
    """What `reserve` must know of the call that a request makes; None if it makes none that is known.

    Raises `InvalidInput` where there is no bound on what goes in or on what comes out.
    """
    body = _json_object(content)
    model = body.get("model")
    if not isinstance(model, str):
        return None
    if other := next((name for name in OTHER_MODELS if body.get(name) is not None), None):
        raise InvalidInput(f"{other}: another model may answer than the one that is held for")
    embeds = path.rstrip("/").endswith("/embeddings")
    call = Call(
        model=model,
        input_tokens=_most_in(body, len(content)) if count_tokens is None else count_tokens(body),
        max_output_tokens=0 if embeds else _most_out(body, max_output_tokens),
    )
    if (tier := tier_of(body)) is not None:
        call["service_tier"] = tier
    return call


def tier_of(body: Mapping[str, object]) -> str | None:
    """The service tier that a request asks for, None for the usual one: as `daycap.usage` names them."""
    place = body.get("inference_geo")
    if isinstance(place, str) and place not in {"", "global"}:
        return f"inference_geo={place}"
    tier = "fast" if body.get("speed") == "fast" else body.get("service_tier")
    return tier if isinstance(tier, str) and tier not in USUAL_TIERS else None


OTHER_MODELS = ("fallbacks", "models")
"""Fields of a request that let another model answer."""

USUAL_TIERS = {"auto", "default", "standard", "standard_only"}
"""Of a request or an answer: the usual prices, or not known to be others."""


def _json_object(content: bytes) -> Mapping[str, object]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _most_out(body: Mapping[str, object], default: int | None) -> int:
    given = [
        value
        for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")
        if (value := body.get(name)) is not None
    ]
    answers = 1 if body.get("n") is None else body["n"]
    most = given or ([] if default is None else [default])
    if not most:
        raise InvalidInput(
            f"the call of {shown(body.get('model'), 100)} does not say how much may come out: give it max_tokens, "
            "max_completion_tokens or max_output_tokens, or the transport max_output_tokens"
        )
    return (max(map(_count, most)) + most_rejected(body)) * _count(answers)


def most_rejected(body: Mapping[str, object]) -> int:
    """The most tokens of a predicted output that the answer does not use. They are billed as if they had come out."""
    prediction = body.get("prediction")
    return 0 if prediction is None else len(json.dumps(prediction, ensure_ascii=False).encode(errors="replace"))


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise InvalidInput(f"n and the most tokens that come out are counts, not {shown(value, 40)}")
    return value


# What providers put around messages, and before the first where there are tools: some 800 tokens at the most.
_TEMPLATE_TOKENS = 64
_TOOLS_TOKENS = 1024

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
_KEPT_BY_PROVIDER = (
    "conversation",
    "previous_response_id",
    "prompt",
    "thread",
    "container",
    "mcp_servers",
    "web_search_options",
)


def _most_in(body: Mapping[str, object], size: int) -> int:
    """No token is of less than a byte; but there must be nothing that stands for more than its bytes."""
    if unbounded := next(_unbounded(body), None):
        raise InvalidInput(
            f"{unbounded} may be more tokens than bytes, or cost more than tokens: give the transport count_tokens, "
            "which says the most that can go in"
        )
    return size + (_TOOLS_TOKENS if body.get("tools") else _TEMPLATE_TOKENS)


def _unbounded(body: Mapping[str, object]) -> Iterator[str]:
    yield from added_by_provider(body)
    yield from _not_text([body.get(name) for name in ("messages", "input", "system")])


def added_by_provider(body: Mapping[str, object]) -> Iterator[str]:
    """What of a request lets its provider add to what goes in: what it keeps, and tools that it runs itself."""
    yield from (name for name in _KEPT_BY_PROVIDER if body.get(name) is not None)
    if _compacts(body.get("context_management")):
        yield "context_management"
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind is not None and kind not in ("function", "custom"):
            yield f"a tool of type {shown(kind, 60)}"


def _compacts(management: object) -> bool:
    """Whether the provider may summarize what goes in, which is a call of its own; to leave some of it out is none."""
    edits = management.get("edits") if isinstance(management, dict) else management
    kinds = [each.get("type") if isinstance(each, dict) else None for each in edits] if isinstance(edits, list) else []
    return not all(isinstance(kind, str) and kind.startswith("clear_") for kind in kinds)


def _not_text(content: object) -> Iterator[str]:
    if isinstance(content, list):
        for each in content:
            yield from _not_text(each)
    elif isinstance(content, dict):
        kind = content.get("type")
        if kind is None and content.get("role") is None:
            yield "content without a type"  # To OpenAI an id alone is a reference to an item.
        elif kind is not None and not (isinstance(kind, str) and kind in _TEXTS):
            yield f"content of type {shown(kind, 60)}"
        elif kind == "reasoning" and not content.get("encrypted_content"):
            yield "reasoning without its encrypted_content"  # It is looked up by its id.
        if content.get("audio") is not None:
            yield "audio"
        for name in ("content", "output"):
            yield from _not_text(content.get(name))
