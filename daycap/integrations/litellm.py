"""LiteLLM inside a cap: its chat completions, each held for before it is sent and charged by its usage after it.

Needs litellm and genai-prices (`pip install "daycap[litellm]"`). LiteLLM's callbacks cannot do this: what one raises
before a call is logged and the call is sent all the same (only its asynchronous calls can be refused, and not their
retries), none is told of a task that is cancelled or a stream that is dropped, and those of success run later, in
other threads. So the call itself is wrapped, and LiteLLM's Router is given the wrapped one by its own `from_config`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Collection
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
from daycap.integrations.litellm_leaving import NotSent, watched
from daycap.pricing.answer_cost import Answer, cost_of
from daycap.pricing.request_fields import USUAL_TIERS
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
"""A call that failed by one of these definitely cost nothing, so that its hold is released: the provider turned it away
before its model was asked (401, 403, 404, 429), or LiteLLM did. After all else the provider may have billed: also after
a BadRequestError (400), for some bill a prompt that their content filter refuses."""

_HELPERS = (
    "calculate_retry_after",
    "get_llm_provider",
    "get_model_info",
    "get_supported_openai_params",
    "register_model",
    "should_retry",
    "token_counter",
)
"""What a Router uses of LiteLLM besides what costs money."""


class _Metered(Generic[W]):
    """What both faces have in common."""

    _op: ClassVar[str]

    def __init__(
        self,
        wallet: W,
        *,
        count_input: CountInput = count_input,
        max_web_searches: int | None = None,
        allow: Collection[str] = (),
    ) -> None:
        self._wallet: W = wallet
        self._bounds = Bounds(count_input, max_web_searches, frozenset(allow))
        self._abandoned = _Abandoned()

    def router(self, *args: Any, **kwargs: Any) -> Router:
        """A `litellm.Router` of these arguments, each of whose attempts is a call of its own: held for, and charged.

        It serves chat completions only, of this kind (synchronous or asynchronous); all else is an `InvalidInput`. An
        attempt that daycap refuses is not tried again; the Router's fallbacks are, for they may cost less.
        """
        router: Router = Router.from_config(build_router_config(router_arguments(*args, **kwargs)), _Host(self))
        return router

    def _prepare(self, model: str, messages: list[Any], call: dict[str, Any]) -> Asked:
        """Who pays, and what the call may cost. Changes `call` so that it is one request, and tells its usage."""
        asked = asked_of(model, messages, call, self._wallet.prices, self._bounds)
        call["max_retries"] = 0
        if call.get("stream"):
            call["stream_options"] = {**(call.get("stream_options") or {}), "include_usage": True}
            self._abandoned.watch()
        return asked

    def _answered(self, pending: _Pending, answer: Any) -> Any:
        if isinstance(answer, CustomStreamWrapper):
            return MeteredStream.of(answer, pending, self._abandoned)
        pending.settle(_heard_of(answer))
        return answer


class Metered(_Metered[Wallet]):
    """LiteLLM's chat completions by the money of a `Wallet`. Threads may share it."""

    _op = "completion"

    def completion(self, model: str, messages: list[Any], **call: Any) -> Any:
        """`litellm.completion`, of the same arguments: a response, or a stream.

        Paid by the agent `metadata={"agent": ...}`, else `user=`. Holds the worst case by `count_input` and
        `max_completion_tokens` or `max_tokens`, else what the model can answer at most, for each of `n`. A stream is
        charged by the usage that it ends with, and with all that is held when it is left without one.

        Raises what `Wallet.reserve` raises before anything is sent, and what LiteLLM raises: then the hold is
        released after one of `NOT_BILLED`, and else charged in full.
        """
        asked = self._prepare(model, messages, call)
        while True:
            hold = self._wallet.reserve(asked.agent, asked.worst_case_micros)
            try:
                with sending(hold, _not_billed), watched(asked, hold.held_micros):
                    answer = litellm.completion(model=model, messages=messages, **call)
            except NotSent as not_sent:
                asked = _anew(not_sent)
            else:
                return self._answered(_Pending(hold, asked), answer)


class AsyncMetered(_Metered[AsyncWallet]):
    """LiteLLM's chat completions by the money of an `AsyncWallet`. Tasks may share it."""

    _op = "acompletion"

    async def acompletion(self, model: str, messages: list[Any], **call: Any) -> Any:
        """`litellm.acompletion`; see `Metered.completion`. A call that is cancelled is charged all that it held."""
        # Counting a long prompt takes a while.
        asked = await asyncio.to_thread(self._prepare, model, messages, call)
        while True:
            hold = await self._wallet.reserve(asked.agent, asked.worst_case_micros)
            try:
                with sending(hold, _not_billed), watched(asked, hold.held_micros):
                    answer = await litellm.acompletion(model=model, messages=messages, **call)
            except NotSent as not_sent:
                asked = _anew(not_sent)
            else:
                return self._answered(_Pending(hold, asked), answer)


class _Pending(NamedTuple):
    """A call that was sent: its hold, and what may have answered."""

    hold: BaseHold
    asked: Asked

    def settle(self, answer: Answer) -> None:
        """Charge what the answer says; all that is held, where it does not tell what the call cost."""
        hold, asked = self
        if hold.ended:
            return
        why: object = "its usage is unknown"
        if answer.usage is not None:
            try:
                return hold.finalize(cost_of(asked.prices, asked.calls, answer))
            except Refused as error:
                why = error
        logger.warning("hold %s is charged in full: %s", hold.id, why)
        hold.finalize(hold.held_micros)


class MeteredStream(CustomStreamWrapper):
    """LiteLLM's stream, which ends its hold when it ends, fails, is closed or is dropped."""

    _pending: _Pending
    _heard: Answer
    _abandoned: _Abandoned

    @classmethod
    def of(cls, stream: CustomStreamWrapper, pending: _Pending, abandoned: _Abandoned) -> CustomStreamWrapper:
        """The same stream, metered. Changed and not wrapped: LiteLLM's Router looks for its class and fields."""
        stream.__dict__.update(_pending=pending, _heard=Answer(None), _abandoned=abandoned)
        stream.__class__ = cls
        return stream

    def __next__(self) -> Any:
        try:
            return self._hear(super().__next__())
        except BaseException:
            self._end()
            raise

    async def __anext__(self) -> Any:
        try:
            return self._hear(await super().__anext__())
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
            self._abandoned.put((self._pending, self._heard))
        super().__del__()

    def _hear(self, chunk: Any) -> Any:
        usage, models, tier = _heard_of(chunk)
        # LiteLLM gives the usage with the last chunk, and makes one up where the provider did not tell it.
        told = any(getattr(each, "usage", None) is not None for each in self.chunks)
        before = self._heard
        self._heard = Answer(
            usage if usage is not None and told else before.usage,
            frozenset(models) | frozenset(before.models),
            before.service_tier if tier is None else tier,
        )
        return chunk

    def _end(self) -> None:
        self._pending.settle(self._heard)


def _heard_of(answer: Any) -> Answer:
    """What a response, or a chunk of a stream, says of its cost."""
    hidden, tier = getattr(answer, "_hidden_params", None), getattr(answer, "service_tier", None)
    # A chunk has the model that was asked for, and beside it the one that its provider names.
    named = (hidden.get("provider_response_model") if isinstance(hidden, dict) else None) or getattr(
        answer, "model", None
    )
    return Answer(
        getattr(answer, "usage", None),
        {named} if isinstance(named, str) and named else (),
        ("" if tier in USUAL_TIERS else tier) if isinstance(tier, str) else None,
    )


Abandoned: TypeAlias = tuple[_Pending, Answer]
"""A stream's call, and what was heard of its answer."""


class _Abandoned:
    """Ends the holds of streams that were dropped. In a thread: a destructor may run where the book is locked."""

    def __init__(self) -> None:
        self._holds: SimpleQueue[Abandoned | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._holds.put, None)

    def watch(self) -> None:
        """Start the thread, unless it runs; in a forked child it does not."""
        # No lock, which might be held over a fork: two of these threads do no harm.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=_end_abandoned, args=(self._holds,), name="daycap-streams", daemon=True
            )
            self._thread.start()

    def put(self, abandoned: Abandoned) -> None:
        """To be called by a destructor."""
        self._holds.put(abandoned)


def _end_abandoned(holds: SimpleQueue[Abandoned | None]) -> None:
    while (each := holds.get()) is not None:
        pending, heard = each
        pending.settle(heard)


class _Host(PythonHost):
    """What a Router calls: metered completions, and nothing else that costs money."""

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
    """The error, as one that a Router does not try again."""
    error.num_retries = 0  # type: ignore[attr-defined]
    return error


def _anew(not_sent: NotSent) -> Asked:
    """What to hold for before the call is made again, its request having been stopped. Raises what stopped it."""
    if not_sent.error is not None:
        raise not_sent.error from None
    return not_sent.asked


def _not_billed(error: BaseException) -> bool:
    if isinstance(error, NotSent):
        return not error.other_sent
    if not isinstance(error, NOT_BILLED):
        return False
    # LiteLLM goes by words too: a server's error that speaks of a rate limit becomes a RateLimitError.
    status = getattr(error.__context__, "status_code", None)
    return not isinstance(status, int) or (status < 500 and status not in {408, 409})
