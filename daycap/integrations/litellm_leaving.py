"""What a call of LiteLLM may cost by the request that it became, where that leaves.

Arguments do not tell it all: LiteLLM's settings, hooks and prompts, its aliases and drop lists change the request. So
a callback looks at the request just before it is sent. LiteLLM swallows an `Exception` of a callback and sends all the
same, but not a `BaseException`: that unwinds the call, which is then held for as it would leave, and made again.
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
    """The request was not sent: `asked` is what has to be held for it, `error` why it cannot be sent at all.

    `other_sent`: another request of the same call had left before.
    """

    def __init__(self, asked: Asked, error: DaycapError | None, *, other_sent: bool) -> None:
        self.asked = asked
        self.error = error
        self.other_sent = other_sent


class _Leaving:
    """Looks at the requests of one call as they leave, and lets those pass that the hold is enough for."""

    def __init__(self, asked: Asked, held_micros: int) -> None:
        self._asked = asked
        self._held_micros = held_micros
        self._sent = False

    def look(self, details: Mapping[str, Any]) -> None:
        """Raises `NotSent`."""
        asked = self._asked
        error: DaycapError | None = None
        try:
            asked = as_sent(asked, details)
            enough = asked.worst_case_micros <= self._held_micros
            if not enough and self._sent:
                error = InvalidInput("LiteLLM would send a second request in this call without a hold")
        except DaycapError as refused:
            enough, error = False, refused
        except Exception as failed:  # LiteLLM would swallow it, and send.
            enough, error = False, InvalidInput(f"a request of LiteLLM's could not be read: {shown(failed, 200)}")
        if not enough:
            raise NotSent(asked, error, other_sent=self._sent)
        self._sent = True


class _Watch(CustomLogger):
    """LiteLLM calls it just before it sends a request, in the context of the call."""

    def log_pre_api_call(self, model: str, messages: Any, kwargs: Any) -> None:
        if (leaving := _leaving.get()) is not None:
            leaving.look(kwargs)


_leaving: ContextVar[_Leaving | None] = ContextVar("daycap_leaving", default=None)
_watch = _Watch()


@contextmanager
def watched(asked: Asked, held_micros: int) -> Iterator[None]:
    """Around a call of LiteLLM's: no request leaves that is dearer than what is held for it. Raises `NotSent`."""
    if _watch not in litellm.input_callback:
        litellm.input_callback.insert(0, _watch)
    token = _leaving.set(_Leaving(asked, held_micros))
    try:
        yield
    finally:
        _leaving.reset(token)


def as_sent(asked: Asked, details: Mapping[str, Any]) -> Asked:
    """What is asked for by the request that leaves; `details` is what LiteLLM tells its callbacks."""
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
    """The call of a model that was not asked for. A provider's own spelling, in the body alone, may have no price."""
    for model in (spelled(call["model"], name), name):
        other = PricedCall(**{**call, "model": model})
        if has_price(asked.prices, other):
            yield other
            return
    if not is_inside:
        raise InvalidInput(f"LiteLLM would send the call of {call['model']} to {shown(name, 100)}, which has no price")


def _url(base: object) -> object:
    """The OpenAI client's is in parts."""
    return getattr(base, "path", base)


def _body(sent: object) -> dict[str, Any] | None:
    """The JSON object that is sent, with what `extra_body` puts over it; None for a mock, or another form."""
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
    """The largest of these counts in a body, however its provider spells them and wherever it has them."""
    found = []
    for name, value in body.items():
        plain = name.replace("_", "").lower()
        if plain in names and value is not None:
            found.append(count_of(value))
        elif plain in _WITHIN and isinstance(value, Mapping):
            found += [each for each in [_largest(value, names)] if each is not None]
    return max(found, default=None)
