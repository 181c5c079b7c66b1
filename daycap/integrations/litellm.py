"""LiteLLM within a cap: each chat completion is reserved before it is sent, and charged by its usage.

Needs litellm and genai-prices (`pip install "daycap[litellm]"`). LiteLLM's callbacks are not enough: it logs what a
callback raises before a call, and sends the call anyway (only asynchronous calls can be refused, but not their
retries). No callback hears of a cancelled task or a dropped stream, and those for success run later, in other threads.
So this module wraps the call itself, and gives the wrapped call to LiteLLM's Router through `Router.from_config`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Collection, Mapping
from queue import SimpleQueue
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

try:
    import litellm
    from litellm import exceptions
    from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
    from litellm.router import Router, router_arguments
    from litellm.router_config import build_router_config
    from litellm.router_python_host import PythonHost
except ImportError as error:
    raise ImportError(f'daycap.litellm needs LiteLLM: pip install "daycap[litellm]" ({error})') from error

from daycap.errors import DaycapError, InvalidInput, Refused
from daycap.integrations.litellm_calls import Asked, Bounds, CountInput, asked_of, count_input
from daycap.integrations.litellm_sent import NotSent, watched
from daycap.pricing.answer_cost import Answer, cost_of
from daycap.pricing.request_fields import USUAL_TIERS
from daycap.protocol.labels import call_labels
from daycap.wallet.aio import AsyncWallet
from daycap.wallet.hold import BaseHold
from daycap.wallet.metering import sending
from daycap.wallet.sync import Wallet

logger = logging.getLogger("daycap")

W = TypeVar("W", Wallet, AsyncWallet)

NOT_BILLED = (
    exceptions.AuthenticationError,
    exceptions.PermissionDeniedError,
    exceptions.NotFoundError,
    exceptions.RateLimitError,
    exceptions.UnsupportedParamsError,
    exceptions.BudgetExceededError,
)
"""A call that failed with one of these errors definitely cost nothing, so its hold is released: the provider (401, 403,
404, 429) or LiteLLM rejected it before a model ran. After any other error the provider may bill, even after a
BadRequestError (400): some bill a prompt that their content filter rejects."""

_HELPERS = (
    "calculate_retry_after",
    "get_llm_provider",
    "get_model_info",
    "get_supported_openai_params",
    "register_model",
    "should_retry",
    "token_counter",
)
"""The functions of LiteLLM that a Router calls and that cost no money."""


class _Metered(Generic[W]):
    """What `Metered` and `AsyncMetered` share."""

    _op: ClassVar[str]

    def __init__(
        self,
        wallet: W,
        *,
        count_input: CountInput = count_input,
        max_web_searches: int | None = None,
        allow: Collection[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._wallet: W = wallet
        self._bounds = Bounds(count_input, max_web_searches, frozenset(allow), call_labels(labels or {}))
        self._abandoned = _Abandoned()

    def router(self, *args: Any, **kwargs: Any) -> Router:
        """Return a `litellm.Router` with these arguments, which reserves and charges each attempt separately.

        It serves chat completions only, synchronous or asynchronous like this object; anything else raises
        `InvalidInput`. An attempt that daycap refuses is not retried, but the Router tries its fallbacks, which may
        cost less.
        """
        router: Router = Router.from_config(build_router_config(router_arguments(*args, **kwargs)), _Host(self))
        return router

    def _prepare(self, model: str, messages: list[Any], call: dict[str, Any]) -> Asked:
        """Return who pays and what the call may cost. Changes `call` so that it sends one request and reports usage."""
        asked = asked_of(model, messages, call, self._wallet.prices, self._bounds)
        call["max_retries"] = 0
        if call.get("stream"):
            call["stream_options"] = {**(call.get("stream_options") or {}), "include_usage": True}
            self._abandoned.watch()
        return asked

    def _answered(self, pending: _Pending, answer: Any) -> Any:
        if isinstance(answer, CustomStreamWrapper):
            return MeteredStream.of(answer, pending, self._abandoned)
        pending.settle(_answer_of(answer))
        return answer


class Metered(_Metered[Wallet]):
    """LiteLLM's chat completions, paid from a `Wallet`. Threads may share it."""

    _op = "completion"

    def completion(self, model: str, messages: list[Any], **call: Any) -> Any:
        """Call `litellm.completion` with the same arguments. Returns its response or stream.

        The agent in `metadata={"agent": ...}` pays, or else the one in `user=`. The call reserves its worst case: the
        input by `count_input`, and for each of `n` answers `max_completion_tokens` or `max_tokens`, or else the
        model's longest answer. A stream is charged by its final usage, or its whole hold if it ends without one.

        The call's labels are those of this object and those in `metadata={"labels": {"tool": "search"}}`. The label
        `model` is by default the requested model, without LiteLLM's prefix for the provider.

        Raises the errors of `Wallet.reserve` before anything is sent, and those of LiteLLM. Then the hold is released
        if the error is one of `NOT_BILLED`, and otherwise charged in full.
        """
        asked = self._prepare(model, messages, call)
        while True:
            hold = self._wallet.reserve(asked.agent, asked.worst_case_micros, labels=asked.labels)
            try:
                with sending(hold, _not_billed), watched(asked, hold.held_micros):
                    answer = litellm.completion(model=model, messages=messages, **call)
            except NotSent as not_sent:
                asked = _corrected(not_sent)
            else:
                return self._answered(_Pending(hold, asked), answer)


class AsyncMetered(_Metered[AsyncWallet]):
    """LiteLLM's chat completions, paid from an `AsyncWallet`. Tasks may share it."""

    _op = "acompletion"

    async def acompletion(self, model: str, messages: list[Any], **call: Any) -> Any:
        """Call `litellm.acompletion`; see `Metered.completion`. A cancelled call is charged its whole hold."""
        # Counting a long prompt takes a while.
        asked = await asyncio.to_thread(self._prepare, model, messages, call)
        while True:
            hold = await self._wallet.reserve(asked.agent, asked.worst_case_micros, labels=asked.labels)
            try:
                with sending(hold, _not_billed), watched(asked, hold.held_micros):
                    answer = await litellm.acompletion(model=model, messages=messages, **call)
            except NotSent as not_sent:
                asked = _corrected(not_sent)
            else:
                return self._answered(_Pending(hold, asked), answer)


class _Pending(NamedTuple):
    """A call that was sent: its hold, and the models that may answer."""

    hold: BaseHold
    asked: Asked

    def settle(self, answer: Answer) -> None:
        """Charge the cost of the answer, or the whole hold if the answer does not reveal it."""
        hold, asked = self
        if hold.ended:
            return
        reason: object = "its usage is unknown"
        if answer.usage is not None:
            try:
                return hold.finalize(cost_of(asked.prices, asked.calls, answer))
            except Refused as error:
                reason = error
        logger.warning("hold %s is charged in full: %s", hold.id, reason)
        hold.finalize(hold.held_micros)


class MeteredStream(CustomStreamWrapper):
    """LiteLLM's stream, which ends its hold when it ends, fails, is closed or is dropped."""

    _pending: _Pending
    _answer: Answer
    _abandoned: _Abandoned

    @classmethod
    def of(cls, stream: CustomStreamWrapper, pending: _Pending, abandoned: _Abandoned) -> CustomStreamWrapper:
        """Meter `stream` in place. LiteLLM's Router checks its class and fields, so it cannot be wrapped."""
        stream.__dict__.update(_pending=pending, _answer=Answer(None), _abandoned=abandoned)
        stream.__class__ = cls
        return stream

    def __next__(self) -> Any:
        try:
            return self._read(super().__next__())
        except BaseException:
            self._end()
            raise

    async def __anext__(self) -> Any:
        try:
            return self._read(await super().__anext__())
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """Close the stream, and end its hold."""
        try:
            super().close()
        finally:
            self._end()

    async def aclose(self) -> None:
        """Close the stream, and end its hold."""
        try:
            await super().aclose()  # type: ignore[no-untyped-call]
        finally:
            self._end()

    def __del__(self) -> None:
        if not self._pending.hold.ended:
            self._abandoned.put((self._pending, self._answer))
        super().__del__()

    def _read(self, chunk: Any) -> Any:
        usage, models, tier = _answer_of(chunk)
        # LiteLLM adds the usage to the last chunk, and makes it up if the provider did not report it.
        reported = any(getattr(each, "usage", None) is not None for each in self.chunks)
        before = self._answer
        self._answer = Answer(
            usage if usage is not None and reported else before.usage,
            frozenset(models) | frozenset(before.models),
            before.service_tier if tier is None else tier,
        )
        return chunk

    def _end(self) -> None:
        self._pending.settle(self._answer)


def _answer_of(answer: Any) -> Answer:
    """Return what a response, or a chunk of a stream, reveals about the cost."""
    hidden, tier = getattr(answer, "_hidden_params", None), getattr(answer, "service_tier", None)
    # A chunk's `model` is the requested one; the provider's own name is a hidden parameter.
    named = (hidden.get("provider_response_model") if isinstance(hidden, dict) else None) or getattr(
        answer, "model", None
    )
    return Answer(
        getattr(answer, "usage", None),
        {named} if isinstance(named, str) and named else (),
        ("" if tier in USUAL_TIERS else tier) if isinstance(tier, str) else None,
    )


Abandoned: TypeAlias = tuple[_Pending, Answer]
"""A stream's call, and the part of its answer that arrived."""


class _Abandoned:
    """Ends the holds of dropped streams, in a thread: a destructor may run while the lease book is locked."""

    def __init__(self) -> None:
        self._holds: SimpleQueue[Abandoned | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._holds.put, None)

    def watch(self) -> None:
        """Start the thread unless it is running. A forked child has to start its own."""
        # No lock, because a fork might copy it while it is held. Two of these threads do no harm.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=_end_abandoned, args=(self._holds,), name="daycap-streams", daemon=True
            )
            self._thread.start()

    def put(self, abandoned: Abandoned) -> None:
        """Pass a dropped stream's call to the thread. Safe in a destructor."""
        self._holds.put(abandoned)


def _end_abandoned(holds: SimpleQueue[Abandoned | None]) -> None:
    while (each := holds.get()) is not None:
        pending, answer = each
        pending.settle(answer)


class _Host(PythonHost):
    """The functions that a Router may call: metered completions, and nothing else that costs money."""

    __slots__ = ("_metered",)

    def __init__(self, metered: _Metered[Any]) -> None:
        self._metered = metered

    def invoke(self, op: str) -> Any:
        if op in _HELPERS:
            return super().invoke(op)
        if op != self._metered._op:
            raise _final(InvalidInput(f"a router of {type(self._metered).__name__} does not meter {op}"))
        return self._complete if op == "completion" else self._acomplete

    def _complete(self, **call: Any) -> Any:
        try:
            return self._metered.completion(**call)  # type: ignore[attr-defined]
        except DaycapError as error:
            raise _final(error) from None

    async def _acomplete(self, **call: Any) -> Any:
        try:
            return await self._metered.acompletion(**call)  # type: ignore[attr-defined]
        except DaycapError as error:
            raise _final(error) from None


def _final(error: DaycapError) -> DaycapError:
    """Mark the error so that a Router does not retry."""
    error.num_retries = 0  # type: ignore[attr-defined]
    return error


def _corrected(not_sent: NotSent) -> Asked:
    """Return the call to reserve before the next try. Raises the error if the request cannot be sent at all."""
    if not_sent.error is not None:
        raise not_sent.error from None
    return not_sent.asked


def _not_billed(error: BaseException) -> bool:
    if isinstance(error, NotSent):
        return not error.other_sent
    if not isinstance(error, NOT_BILLED):
        return False
    # LiteLLM also matches messages: a server error that mentions a rate limit becomes a RateLimitError.
    status = getattr(error.__context__, "status_code", None)
    return not isinstance(status, int) or (status < 500 and status not in {408, 409})
