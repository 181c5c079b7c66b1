"""Estimate the most that a LiteLLM call may cost, from its arguments. See also `litellm_sent`."""

# ruff: noqa: SIM905 (names are easier to read as words than as a list of strings)

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import litellm
from litellm.constants import openai_compatible_providers
from litellm.types.utils import is_litellm_owned_kwarg

from daycap.errors import InvalidInput, UnknownModel
from daycap.integrations.http_calls import deployment_of
from daycap.pricing.answer_cost import is_same, worst_case_of
from daycap.pricing.prices import Prices
from daycap.pricing.request_fields import (
    CHAT,
    MESSAGES,
    RESPONSES,
    added_by_provider,
    count_of,
    most_rejected,
    most_searches,
    not_text,
    refuse_rerouting,
    refuse_unknown,
    size_of,
    tier_of,
)
from daycap.pricing.usage import PricedCall
from daycap.protocol.labels import Labels, call_labels

CountInput: TypeAlias = Callable[[str, list[Any], Mapping[str, Any]], int]
"""Returns the most input tokens, given the model, the messages and all other arguments of a call."""


class Bounds(NamedTuple):
    """The operator's limits for calls; see `Metered`."""

    count_input: CountInput
    max_web_searches: int | None
    allow: frozenset[str]
    labels: Labels = ()


class Asked(NamedTuple):
    """A call before it is sent: the agent that pays, its labels, and one priced call for each model that may answer.

    `named` is the requested model. `counted` of the input tokens cover `counted_bytes` of the request: its messages
    and tools.
    """

    agent: str
    labels: Mapping[str, str]
    named: str
    calls: tuple[PricedCall, ...]
    prices: Prices
    counted: int
    counted_bytes: int | None

    @property
    def worst_case_micros(self) -> int:
        """The most that the call can cost. Raises `UnknownModel`."""
        return worst_case_of(self.prices, self.calls)


# --- by the arguments -------------------------------------------------------------------------------------------

_MORE_CALLS = (
    "fallbacks",
    "context_window_fallback_dict",
    "fastest_response",
    "model_list",
    "num_retries",
    "max_retries",
    "retry_policy",
    "silent_model",
)
"""Arguments that make LiteLLM send several requests in one call, although only one is reserved."""

_HARMLESS = frozenset(
    (
        "timeout base_url api_version organization project extra_headers extra_body additional_drop_params drop_params "
        "azure_ad_token aws_access_key_id aws_secret_access_key aws_session_token aws_region_name aws_session_name "
        "aws_profile_name aws_role_name aws_web_identity_token aws_sts_endpoint aws_bedrock_runtime_endpoint "
        "aws_external_id vertex_project vertex_location vertex_credentials safety_settings mock_delay mock_tool_calls"
    ).split()
)
"""Settings and providers' arguments that do not change the cost, or whose effect shows in the request sent."""

_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def asked_of(model: str, messages: list[Any], call: Mapping[str, Any], prices: Prices, bounds: Bounds) -> Asked:
    """Return the most that a call's arguments allow it to cost. Raises `InvalidInput` if there is no limit."""
    extra = call.get("extra_body")
    extra = extra if isinstance(extra, Mapping) else {}
    body = {**call, **extra}
    _refuse_more_calls({**call, **extra})
    known = {name for name in body if is_litellm_owned_kwarg(name) and name != "azure"}
    refuse_unknown(body, {*CHAT.fields, *_LIMITS, *_HARMLESS, *known}, bounds.allow)
    for headers in (call.get("extra_headers"), call.get("headers")):
        refuse_rerouting(headers or {}, bounds.allow)
    messages = [_plain(each) for each in messages]
    model = litellm.model_alias_map.get(model, model)
    by_litellm = bounds.count_input is count_input
    if by_litellm and (added := next(_unbounded(body, model, messages), None)):
        raise InvalidInput(
            f"{added}: LiteLLM does not count the input that this adds; pass a count_input that returns the maximum"
        )
    model_info = call.get("model_info")
    base = call.get("base_model") or (model_info.get("base_model") if isinstance(model_info, Mapping) else None)
    provider = call.get("custom_llm_provider")
    counted = bounds.count_input(model, messages, call)
    counted_bytes = _size(messages, call) if by_litellm else None
    most_in = counted
    if counted_bytes is not None:
        most_in += uncounted({**body, "messages": messages}, counted_bytes)
        most_in += 0 if _is_openai_like(model, provider) else _WRAPPING_TOKENS * (1 + len(messages))
    asked = PricedCall(
        model=_priced_name(model, base),
        input_tokens=most_in,
        max_output_tokens=_most_out(model, provider, call, extra),
        provider=provider,
        service_tier=tier_of(body),
        max_web_searches=most_searches(body, bounds.max_web_searches, bounds.allow),
    )
    others = deployments(call.get("api_base"), call.get("base_url"), getattr(call.get("client"), "base_url", None))
    names = [asked["model"], *(spelled(model, name) for name in others if not is_same(model, name))]
    if asked["model"] != model and has_price(prices, PricedCall(**{**asked, "model": model})):
        names.append(model)  # Whatever its base model is declared to be.
    if isinstance(other := extra.get("model"), str):
        names.append(spelled(model, other))
    calls = tuple(PricedCall(**{**asked, "model": name}) for name in dict.fromkeys(names))
    labels = {"model": _resolved(asked["model"], provider)[0], **dict(bounds.labels), **_own_labels(call)}
    return Asked(_agent(call), labels, model, calls, prices, counted, counted_bytes)


def _refuse_more_calls(call: Mapping[str, Any]) -> None:
    more = [name for name in (*_MORE_CALLS, "models") if call.get(name)]
    more += [f"litellm.{name}" for name in ("num_retries", "model_fallbacks") if getattr(litellm, name, None)]
    if more:
        raise InvalidInput(f"{', '.join(more)}: would make calls without a hold; use a metered router")


def _unbounded(body: Mapping[str, Any], model: str, messages: list[Any]) -> Iterator[str]:
    yield from added_by_provider(body, [model])
    yield from not_text(messages)


def _own_labels(call: Mapping[str, Any]) -> Mapping[str, str]:
    metadata = call.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
    return dict(call_labels(labels if labels is not None else {}))


def _agent(call: Mapping[str, Any]) -> str:
    metadata = call.get("metadata")
    agent = metadata.get("agent") if isinstance(metadata, Mapping) else None
    agent = agent if agent is not None else call.get("user")
    if not isinstance(agent, str):
        raise InvalidInput('no agent given: pass metadata={"agent": "agent-7"} or user="agent-7"')
    return agent


def _plain(message: Any) -> Any:
    """Return `message` as a dict. A message taken from an answer is an object of LiteLLM."""
    return message.model_dump(exclude_none=True) if hasattr(message, "model_dump") else message


def has_price(prices: Prices, call: PricedCall) -> bool:
    """Return whether the worst case of this call is known."""
    try:
        prices.worst_case_micros(**call)
    except UnknownModel:
        return False
    return True


def _priced_name(model: str, base: object) -> str:
    """Return the name to price by: the base model that a deployment declares, with the provider's prefix."""
    return spelled(model, base) if isinstance(base, str) and base else model


def spelled(model: str, name: str) -> str:
    """Return the name of another model with the provider's prefix of this one."""
    provider, slash, _ = model.partition("/")
    return f"{provider}/{name}" if slash and not name.startswith(f"{provider}/") else name


def deployments(*urls: object) -> list[str]:
    found = (deployment_of(f"{url}/") for url in urls if url is not None)
    return [name for name in found if name is not None]


# --- how much goes in, and out ----------------------------------------------------------------------------------

_TEXTS = {"messages", "input", "instructions", "system", "text", "tools", "functions"}
_TEXTS |= {"response_format", "output_config", "output_format"}
_NO_TEXT = (CHAT.fields | RESPONSES.fields | MESSAGES.fields | _HARMLESS | frozenset(_LIMITS)) - _TEXTS
"""Fields whose value is not part of the prompt."""

_WRAPPING_TOKENS = 64
"""Bytes of fields around each message in formats other than OpenAI's."""


def count_input(model: str, messages: list[Any], call: Mapping[str, Any]) -> int:
    """Return LiteLLM's own count for messages and tools: accurate for some models, a guess for others.

    Other parts of the prompt (schemas, functions) are counted separately, one token per byte.
    """
    return int(
        litellm.token_counter(
            model=model, messages=messages, tools=call.get("tools"), tool_choice=call.get("tool_choice")
        )
    )


def _size(messages: list[Any], call: Mapping[str, Any]) -> int:
    tools = call.get("tools")
    return size_of({"messages": messages} if tools is None else {"messages": messages, "tools": tools})


def uncounted(body: Mapping[str, Any], counted_bytes: int) -> int:
    """Return the most tokens in a body besides the counted ones: one for each other byte."""
    texts = {
        name: value
        for name, value in body.items()
        if value is not None and name not in _NO_TEXT and not is_litellm_owned_kwarg(name)
    }
    return max(0, size_of(texts) - counted_bytes)


def _is_openai_like(model: str, provider: str | None) -> bool:
    return _resolved(model, provider)[1] in {"openai", "azure", *openai_compatible_providers}


def _resolved(model: str, provider: str | None) -> tuple[str, str | None]:
    try:
        name, found, *_ = litellm.get_llm_provider(model, custom_llm_provider=provider)
    except Exception:  # LiteLLM raises no narrower class.
        return model, None
    return name, found


def _most_out(model: str, provider: str | None, call: Mapping[str, Any], extra: Mapping[str, Any]) -> int:
    """Return the most output tokens over all `n` answers. `extra` overrides the call's own arguments."""
    dropped = {*(call.get("additional_drop_params") or ()), *(name for name in extra if extra[name] is None)}
    given = [
        count_of(each[name])
        for each in (call, extra)
        for name in _LIMITS
        if name not in dropped and each.get(name) is not None
    ]
    most = max(given) if given else longest_answer(model, provider)
    answers = max(count_of(each.get("n") or 1) for each in (call, extra))
    return (most + most_rejected({**call, **extra})) * answers


def longest_answer(model: str, provider: str | None) -> int:
    try:
        info: Mapping[str, Any] = litellm.get_model_info(model, provider)
    except Exception:  # LiteLLM raises no narrower class.
        info = {}
    most = info.get("max_output_tokens") or info.get("max_tokens")
    if not most:
        raise InvalidInput(f"LiteLLM does not know the output limit of {model}; pass max_tokens")
    return int(most)
