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
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import litellm
from litellm import exceptions
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.router import Router, router_arguments
from litellm.router_config import build_router_config
from litellm.router_python_host import PythonHost

from daycap.async_wallet import AsyncWallet
from daycap.errors import DaycapError, InvalidAmount, InvalidInput, UnknownModel
from daycap.http_calls import OTHER_MODELS, USUAL_TIERS, added_by_provider, most_rejected, tier_of
from daycap.lease import BaseHold
from daycap.metered import sending
from daycap.usage import AnyUsage, Call
from daycap.wallet import Wallet

logger = logging.getLogger("daycap")

W = TypeVar("W", Wallet, AsyncWallet)

CountInput: TypeAlias = Callable[[str, list[Any], Mapping[str, Any]], int]
"""The most tokens that go in, of a model, its messages and all other arguments of the call."""

NOT_BILLED = (
    exceptions.AuthenticationError,
    exceptions.PermissionDeniedError,
    exceptions.NotFoundError,
    exceptions.RateLimitError,
    exceptions.UnsupportedParamsError,
    exceptions.BudgetExceededError,
)
"""A call that failed by one of these surely cost nothing, so that its hold is released: the provider turned it away
before its model was asked (401, 403, 404, 429), or LiteLLM did. After all else the provider may have billed: also after
a BadRequestError (400), for some bill a prompt that their content filter refuses."""

_MORE_CALLS = (
    "fallbacks",
    "context_window_fallback_dict",
    "model_list",
    "num_retries",
    "max_retries",
    "retry_policy",
)
"""Arguments that make LiteLLM send more than one request in a call, where only one is held for."""

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


def count_input(model: str, messages: list[Any], call: Mapping[str, Any]) -> int:
    """LiteLLM's own count of messages and tools. It is near the truth for some models, and a guess for others.

    Not of what a provider adds by itself (searches on the web, a conversation that it keeps): that is refused.
    """
    return int(
        litellm.token_counter(
            model=model, messages=messages, tools=call.get("tools"), tool_choice=call.get("tool_choice")
        )
    )


class _Metered(Generic[W]):
    """What both faces have in common."""

    _op: ClassVar[str]

    def __init__(self, wallet: W, *, count_input: CountInput = count_input) -> None:
        self._wallet: W = wallet
        self._count_input = count_input
        self._abandoned = _Abandoned()

    def router(self, *args: Any, **kwargs: Any) -> Router:
        """A `litellm.Router` of these arguments, each of whose attempts is a call of its own: held for, and charged.

        It serves chat completions only, of this kind (synchronous or asynchronous); all else is an `InvalidInput`. An
        attempt that daycap refuses is not tried again; the Router's fallbacks are, for they may cost less.
        """
        router: Router = Router.from_config(build_router_config(router_arguments(*args, **kwargs)), _Host(self))
        return router

    def _prepare(self, model: str, messages: list[Any], call: dict[str, Any]) -> tuple[str, Call]:
        """Who pays for the call, and all that decides its worst case. Changes `call` so that its usage is heard of."""
        more = [name for name in _MORE_CALLS if call.get(name)]
        extra = call.get("extra_body")
        body = {**call, **extra} if isinstance(extra, Mapping) else call
        more += [name for name in OTHER_MODELS if name not in more and body.get(name)]
        more += [f"litellm.{name}" for name in ("num_retries", "model_fallbacks") if getattr(litellm, name, None)]
        if more:
            raise InvalidInput(f"{', '.join(more)}: would make calls that nothing is held for; use a metered router")
        if self._count_input is count_input and (added := next(added_by_provider(body), None)):
            raise InvalidInput(f"{added}: nothing bounds what the provider adds by itself; give a count_input")
        call["max_retries"] = 0
        if call.get("stream"):
            call["stream_options"] = {**(call.get("stream_options") or {}), "include_usage": True}
            self._abandoned.watch()
        provider = call.get("custom_llm_provider")
        return _agent(call), {
            "model": model,
            "input_tokens": self._count_input(model, messages, call),
            "max_output_tokens": _max_output_tokens(model, provider, call, body),
            "provider": provider,
            "service_tier": tier_of(body),
        }

    def _answered(self, hold: BaseHold, answer: Any) -> Any:
        if isinstance(answer, CustomStreamWrapper):
            return MeteredStream.of(answer, hold, self._abandoned)
        _settle(hold, getattr(answer, "usage", None), getattr(answer, "service_tier", None))
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
        agent, priced = self._prepare(model, messages, call)
        hold = self._wallet.reserve(agent, **priced)
        with sending(hold, _not_billed):
            answer = litellm.completion(model=model, messages=messages, **call)
        return self._answered(hold, answer)


class AsyncMetered(_Metered[AsyncWallet]):
    """LiteLLM's chat completions by the money of an `AsyncWallet`. Tasks may share it."""

    _op = "acompletion"

    async def acompletion(self, model: str, messages: list[Any], **call: Any) -> Any:
        """`litellm.acompletion`; see `Metered.completion`. A call that is cancelled is charged all that it held."""
        # Counting a long prompt takes a while.
        agent, priced = await asyncio.to_thread(self._prepare, model, messages, call)
        hold = await self._wallet.reserve(agent, **priced)
        with sending(hold, _not_billed):
            answer = await litellm.acompletion(model=model, messages=messages, **call)
        return self._answered(hold, answer)


class MeteredStream(CustomStreamWrapper):
    """LiteLLM's stream, which ends its hold when it ends, fails, is closed or is dropped."""

    _hold: BaseHold
    _usage: AnyUsage
    _tier: object
    _abandoned: _Abandoned

    @classmethod
    def of(cls, stream: CustomStreamWrapper, hold: BaseHold, abandoned: _Abandoned) -> CustomStreamWrapper:
        """The same stream, metered. Changed and not wrapped: LiteLLM's Router looks for its class and fields."""
        stream.__dict__.update(_hold=hold, _usage=None, _tier=None, _abandoned=abandoned)
        stream.__class__ = cls
        return stream

    def __next__(self) -> Any:
        try:
            return self._heard(super().__next__())
        except BaseException:
            self._end()
            raise

    async def __anext__(self) -> Any:
        try:
            return self._heard(await super().__anext__())
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
        if not self._hold.ended:
            self._abandoned.put((self._hold, self._usage, self._tier))
        super().__del__()

    def _heard(self, chunk: Any) -> Any:
        # LiteLLM gives the usage with the last chunk, and makes one up where the provider did not tell it.
        usage = getattr(chunk, "usage", None)
        if usage is not None and any(getattr(each, "usage", None) is not None for each in self.chunks):
            self._usage = usage
        self._tier = getattr(chunk, "service_tier", None) or self._tier
        return chunk

    def _end(self) -> None:
        if not self._hold.ended:
            _settle(self._hold, self._usage, self._tier)


Abandoned: TypeAlias = tuple[BaseHold, AnyUsage, object]
"""The hold of a stream, and what it heard of its usage and its service tier."""


class _Abandoned:
    """Ends the holds of streams that were dropped. In a thread: a destructor may run where the book is locked."""

    def __init__(self) -> None:
        self._holds: SimpleQueue[Abandoned | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._holds.put, None)

    def watch(self) -> None:
        """Start the thread, unless it runs; in a forked child it does not."""
        with self._lock:
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
        hold, usage, tier = each
        if not hold.ended:
            _settle(hold, usage, tier)


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


def _agent(call: Mapping[str, Any]) -> str:
    metadata = call.get("metadata")
    agent = metadata.get("agent") if isinstance(metadata, Mapping) else None
    agent = agent if agent is not None else call.get("user")
    if not isinstance(agent, str):
        raise InvalidInput('who pays for this call? say metadata={"agent": "agent-7"}, or user="agent-7"')
    return agent


def _max_output_tokens(model: str, provider: str | None, call: Mapping[str, Any], body: Mapping[str, Any]) -> int:
    """The most tokens that can come out, over all of its `n` answers; `body` is the call with its `extra_body`."""
    given = [
        each[name]
        for each in (call, body)
        for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")
        if each.get(name) is not None
    ]
    most = max(given) if given else _longest_answer(model, provider)
    return int((most + most_rejected(body)) * (body.get("n") or 1))


def _longest_answer(model: str, provider: str | None) -> int:
    try:
        info: Mapping[str, Any] = litellm.get_model_info(model, provider)
    except Exception:  # That is what it raises.
        info = {}
    most = info.get("max_output_tokens") or info.get("max_tokens")
    if not most:
        raise InvalidInput(f"LiteLLM does not know how long an answer of {model} can be; give max_tokens")
    return int(most)


def _not_billed(error: BaseException) -> bool:
    if not isinstance(error, NOT_BILLED):
        return False
    # LiteLLM goes by words too: a server's error that speaks of a rate limit becomes a RateLimitError.
    status = getattr(error.__context__, "status_code", None)
    return not isinstance(status, int) or (status < 500 and status not in {408, 409})


def _settle(hold: BaseHold, usage: AnyUsage, served: object) -> None:
    """Charge the usage; all that is held, where there is none that tells what the call cost."""
    why: object = "its usage was not told"
    if usage is not None:
        try:
            return hold.finalize(_cost(hold, usage, served))
        except (InvalidAmount, InvalidInput, UnknownModel) as error:
            why = error
    logger.warning("hold %s is charged in full: %s", hold.id, why)
    hold.finalize(hold.held_micros)


def _cost(hold: BaseHold, usage: AnyUsage, served: object) -> int:
    """At the service tier that the call was served at, if that was told; else the dearer of what it may have been."""
    cost_of: Any = hold._cost_of
    if isinstance(served, str):
        return int(cost_of(usage, service_tier="" if served in USUAL_TIERS else served))
    return int(max(cost_of(usage), cost_of(usage, service_tier=None)))
