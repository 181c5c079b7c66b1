"""Read a request to a provider: the models that may answer, and the most input and output tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from daycap.errors import InvalidInput
from daycap.formats import shown
from daycap.pricing.request_fields import (
    CHAT,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    Api,
    added_by_provider,
    count_of,
    most_rejected,
    most_searches,
    not_text,
    refuse_unknown,
    tier_of,
)
from daycap.pricing.usage import PricedCall

TokenCounter: TypeAlias = Callable[[Mapping[str, object]], int]
"""Returns the most input tokens of a request, given its JSON."""


class Bounds(NamedTuple):
    """The operator's limits for calls whose requests set none; see `MeteredTransport`."""

    count_tokens: TokenCounter | None = None
    max_output_tokens: int | None = None
    max_web_searches: int | None = None
    allow: frozenset[str] = frozenset()
    models: Mapping[str, str] = {}


_CALLS = {"/chat/completions": CHAT, "/responses": RESPONSES, "/embeddings": EMBEDDINGS, "/messages": MESSAGES}
_FREE_METHODS = {"GET", "HEAD", "OPTIONS", "DELETE"}
_FREE_PATHS = ("/messages/count_tokens", "/responses/input_tokens", "/moderations", "/cancel")
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")


def costs_nothing(method: str, path: str) -> bool:
    """Return whether no provider bills such a request."""
    return method in _FREE_METHODS or path.endswith(_FREE_PATHS)


def may_be_a_call(path: str) -> bool:
    """Return whether the request's body must be read."""
    return _api(path) is not None


def _api(path: str) -> Api | None:
    # OpenAI only stores the messages of its threads.
    path = path.rstrip("/").lower()
    return next((api for end, api in _CALLS.items() if path.endswith(end) and "/threads/" not in path), None)


def calls_of(path: str, content: bytes, bounds: Bounds) -> tuple[PricedCall, ...]:
    """Return the arguments of the request's worst case, for each model that may answer; none if it is not metered.

    Raises `InvalidInput` if input or output has no limit, for a field of unknown cost, and for an ambiguous body.
    """
    api = _api(path)
    if api is None:
        return ()
    body = _json_object(content)
    refuse_unknown(body, {*api.fields, *api.limits}, bounds.allow)
    searches = most_searches(body, bounds.max_web_searches, bounds.allow)
    models = tuple(_models(path, body, bounds.models))
    most_in = _most_in(body, models, len(content)) if bounds.count_tokens is None else bounds.count_tokens(body)
    most_out = 0 if api is EMBEDDINGS else _most_out(body, api, bounds.max_output_tokens)
    calls = []
    for model in models:
        call = PricedCall(model=model, input_tokens=most_in, max_output_tokens=most_out)
        if searches:
            call["max_web_searches"] = searches
        if (tier := tier_of(body)) is not None:
            call["service_tier"] = tier
        calls.append(call)
    return tuple(calls)


def deployment_of(path: str) -> str | None:
    """Return the deployment that a path names. Azure then ignores the model in the body."""
    found = _DEPLOYMENT.search(path)
    return None if found is None else found[1]


def _models(path: str, body: Mapping[str, object], models: Mapping[str, str]) -> Iterator[str]:
    asked, deployment = body.get("model"), deployment_of(path)
    if deployment is not None and deployment in models:
        yield models[deployment]
        return
    if not isinstance(asked, str | None) or not (asked or deployment):
        raise InvalidInput(f"{path}: the request must name its model as a string")
    for name in dict.fromkeys(name for name in (deployment, asked) if name):
        yield models.get(name, name)


def _json_object(content: bytes) -> Mapping[str, object]:
    try:
        body = json.loads(content.decode(), object_pairs_hook=_without_doubles)
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"a call's body must be plain JSON in UTF-8: {shown(error, 100)}") from None
    if not isinstance(body, dict):
        raise InvalidInput("a call's body must be a JSON object")
    return body


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        double = next(name for at, (name, _) in enumerate(pairs) if name in dict(pairs[:at]))
        raise InvalidInput(f"a call's body has {shown(double, 60)} twice; servers differ in which one they use")
    return fields


def _most_out(body: Mapping[str, object], api: Api, default: int | None) -> int:
    given = [value for name in api.limits if (value := body.get(name)) is not None]
    answers = 1 if body.get("n") is None else body["n"]
    most = given or ([] if default is None else [default])
    if not most:
        raise InvalidInput(
            f"the call to {shown(body.get('model'), 100)} has no output limit: set its "
            f"{' or '.join(api.limits)}, or the transport's max_output_tokens"
        )
    return (max(map(count_of, most)) + most_rejected(body)) * count_of(answers)


# Providers wrap messages in a template, and add a prompt of up to about 800 tokens if there are tools.
_TEMPLATE_TOKENS = 64
_TOOLS_TOKENS = 1024
_WITH_A_PROMPT = ("tools", "functions", "response_format", "output_format", "output_config")


def _most_in(body: Mapping[str, object], models: Iterable[str], size: int) -> int:
    """Return the most input tokens: every token has at least a byte. Raises `InvalidInput` where that fails."""
    if unbounded := next(_unbounded(body, models), None):
        raise InvalidInput(
            f"{unbounded} may be more tokens than bytes, or cost more than tokens: give the transport count_tokens, "
            "which returns the most input tokens"
        )
    return size + (_TOOLS_TOKENS if any(body.get(name) for name in _WITH_A_PROMPT) else _TEMPLATE_TOKENS)


def _unbounded(body: Mapping[str, object], models: Iterable[str]) -> Iterator[str]:
    yield from added_by_provider(body, models)
    yield from not_text([body.get(name) for name in ("messages", "input", "system", "instructions")])
