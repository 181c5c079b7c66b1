"""Check the request that a LiteLLM call sends against its hold.

The arguments do not determine the request: LiteLLM's settings, hooks, prompts, aliases and drop lists change it. So a
callback checks the request just before it is sent. LiteLLM swallows a callback's `Exception` and sends the request
anyway, but a `BaseException` unwinds the call. The real request is then reserved, and the call made again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import litellm
from litellm.integrations.custom_logger import CustomLogger

from daycap.errors import DaycapError, InvalidInput
from daycap.formats import shown
from daycap.integrations.litellm_calls import Asked, deployments, has_price, longest_answer, spelled, uncounted
from daycap.pricing.answer_cost import is_same
from daycap.pricing.request_fields import count_of, most_rejected, tier_of
from daycap.pricing.usage import PricedCall


class NotSent(BaseException):
    """A request was stopped before it was sent. Reserve `asked` and try again, unless `error` says why it cannot be.

    `other_sent`: another request of the same call was sent before.
    """

    def __init__(self, asked: Asked, error: DaycapError | None, *, other_sent: bool) -> None:
        self.asked = asked
        self.error = error
        self.other_sent = other_sent


class _Guard:
    """Lets the requests of one call pass if its hold covers them."""

    def __init__(self, asked: Asked, held_micros: int) -> None:
        self._asked = asked
        self._held_micros = held_micros
        self._sent = False

    def check(self, details: Mapping[str, Any]) -> None:
        """Raise `NotSent` unless the request may be sent."""
        asked = self._asked
        error: DaycapError | None = None
        try:
            asked = as_sent(asked, details)
            enough = asked.worst_case_micros <= self._held_micros
            if not enough and self._sent:
                error = InvalidInput("LiteLLM would send a second request in this call without a hold")
        except DaycapError as refused:
            enough, error = False, refused
        except Exception as failed:  # LiteLLM would swallow it and send the request.
            enough, error = False, InvalidInput(f"cannot read LiteLLM's request: {shown(failed, 200)}")
        if not enough:
            raise NotSent(asked, error, other_sent=self._sent)
        self._sent = True


class _Watch(CustomLogger):
    """LiteLLM calls this just before it sends a request, in the context of the call."""

    def log_pre_api_call(self, model: str, messages: Any, kwargs: Any) -> None:
        if (guard := _guard.get()) is not None:
            guard.check(kwargs)


_guard: ContextVar[_Guard | None] = ContextVar("daycap_guard", default=None)
_watch = _Watch()


@contextmanager
def watched(asked: Asked, held_micros: int) -> Iterator[None]:
    """Guard a LiteLLM call: raises `NotSent` instead of sending a request that may cost more than its hold."""
    if _watch not in litellm.input_callback:
        litellm.input_callback.insert(0, _watch)
    token = _guard.set(_Guard(asked, held_micros))
    try:
        yield
    finally:
        _guard.reset(token)


def as_sent(asked: Asked, details: Mapping[str, Any]) -> Asked:
    """Return the call as it is actually sent. `details` are the arguments of LiteLLM's callbacks."""
    sent = details.get("additional_args") or {}
    body = _body(sent.get("complete_input_dict"))
    names = [name for name in (details.get("model"), *deployments(_url(sent.get("api_base")))) if name]
    if body is None:
        return asked
    if isinstance(inside := body.get("model"), str):
        names.append(inside)
    first = asked.calls[0]
    most_out = _largest(body, _LIMIT_FIELDS)
    if most_out is None:
        most_out = longest_answer(first["model"], first.get("provider"))
    most_out = (most_out + most_rejected(body)) * (_largest(body, _ANSWER_FIELDS) or 1)
    most_in = first["input_tokens"]
    if asked.counted_bytes is not None:
        most_in = max(most_in, asked.counted + uncounted(body, asked.counted_bytes))
    tier = tier_of(body) or first.get("service_tier")
    limits: Any = {"input_tokens": most_in, "max_output_tokens": most_out, "service_tier": tier}
    calls = [PricedCall(**{**call, **limits}) for call in asked.calls]
    for name in names:
        if not any(is_same(known, name) for known in (asked.named, *(call["model"] for call in calls))):
            calls.extend(_other(asked, calls[0], name, is_inside=name == inside != details.get("model")))
    return asked._replace(calls=tuple(calls))


def _other(asked: Asked, call: PricedCall, name: str, *, is_inside: bool) -> Iterator[PricedCall]:
    """Yield the call of a model other than the requested one. A name that is only in the body may have no price."""
    for model in (spelled(call["model"], name), name):
        other = PricedCall(**{**call, "model": model})
        if has_price(asked.prices, other):
            yield other
            return
    if not is_inside:
        raise InvalidInput(f"LiteLLM would send the call of {call['model']} to {shown(name, 100)}, which has no price")


def _url(base: object) -> object:
    """Return the URL's path if it is the OpenAI client's URL object."""
    return getattr(base, "path", base)


def _body(sent: object) -> dict[str, Any] | None:
    """Return the JSON object that is sent, with `extra_body` merged in; None for a mock or another format."""
    if isinstance(sent, str | bytes):
        try:
            sent = json.loads(sent)
        except ValueError:
            return None
    if not isinstance(sent, Mapping) or not sent:
        return None
    extra = sent.get("extra_body")
    body = {**sent, **extra} if isinstance(extra, Mapping) else dict(sent)
    return {name: value for name, value in body.items() if value is not None and name != "extra_body"}


_LIMIT_FIELDS = {
    "maxcompletiontokens",
    "maxgenlen",
    "maxnewtokens",
    "maxoutputtokens",
    "maxtokencount",
    "maxtokens",
    "maxtokenstosample",
    "numpredict",
}
_ANSWER_FIELDS = {"bestof", "candidatecount", "n", "numcompletions", "numgenerations", "numresults"}
_WITHIN = {"generationconfig", "input", "inferenceconfig", "options", "parameters", "textgenerationconfig"}


def _largest(body: Mapping[str, Any], names: Collection[str]) -> int | None:
    """Return the largest of these counts in a body, however the provider spells and nests them."""
    found = []
    for name, value in body.items():
        plain = name.replace("_", "").lower()
        if plain in names and value is not None:
            found.append(count_of(value))
        elif plain in _WITHIN and isinstance(value, Mapping):
            found += [each for each in [_largest(value, names)] if each is not None]
    return max(found, default=None)
