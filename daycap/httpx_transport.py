"""Meter the calls of any client library that is built on httpx or httpx2: the transport that its requests go through.

    client = openai.OpenAI(http_client=openai.DefaultHttpxClient(transport=MeteredTransport(wallet, agent="agent-7")))

Each attempt to send a request is a hold of its own. Needs `daycap[httpx]`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from daycap.errors import DaycapError, InvalidInput, Refused
from daycap.http_calls import AgentCall, TokenCounter, call_of, costs_nothing, may_be_a_call
from daycap.http_usage import UsageReader
from daycap.lease import BaseHold
from daycap.metered import sending

if TYPE_CHECKING:
    import httpx
    import httpx2

    from daycap.async_wallet import AsyncWallet
    from daycap.prices import Prices
    from daycap.wallet import Wallet

    class _BaseTransport(httpx.BaseTransport, httpx2.BaseTransport):
        """What either library takes; neither is needed, nor loaded, for the other."""

        def handle_request(self, request: Any) -> Any: ...

    class _AsyncBaseTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
        """The same of the event loop."""

        async def handle_async_request(self, request: Any) -> Any: ...

    AnyRequest: TypeAlias = httpx.Request | httpx2.Request
    AnyTransport: TypeAlias = httpx.BaseTransport | httpx2.BaseTransport
    AnyAsyncTransport: TypeAlias = httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport
else:
    _BaseTransport = _AsyncBaseTransport = object

logger = logging.getLogger("daycap")

AGENT_HEADER = "X-Daycap-Agent"
"""Names a request's agent. It is taken off before the request is sent."""

_AGENT_EXTENSION = "daycap_agent"

# Nothing of the request was sent: httpx and httpx2 have an error each by these names.
_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}

_PROVIDERS = {"api.anthropic.com": "anthropic", "api.openai.com": "openai"}


class _Meter:
    """What both transports know of the requests that they meter; see `MeteredTransport`."""

    def __init__(
        self,
        agent: str | Callable[[AnyRequest], str] | None,
        count_tokens: TokenCounter | None,
        max_output_tokens: int | None,
        provider: str | None,
        unmetered: Literal["pass", "refuse"],
    ) -> None:
        self._agent = agent
        self._count_tokens = count_tokens
        self._max_output_tokens = max_output_tokens
        self._provider = provider
        self._unmetered = unmetered

    def call_of(self, request: AnyRequest) -> AgentCall | None:
        """The call that a request makes, None for one that is to pass. Raises `InvalidInput`. Its body was read."""
        # Kept beside the request, for where it is sent once more: a redirect, a login.
        agent = request.headers.pop(AGENT_HEADER, request.extensions.get(_AGENT_EXTENSION))
        if agent is not None:
            request.extensions[_AGENT_EXTENSION] = agent
        path = request.url.path
        if costs_nothing(request.method, path):
            return None
        content = request.content if may_be_a_call(path) else b""
        call = call_of(path, content, self._max_output_tokens, self._count_tokens)
        if call is None:
            if self._unmetered == "pass":
                return None
            raise InvalidInput(
                f"{request.method} {path} cannot be metered, and may cost money; unmetered='pass' lets it pass"
            )
        call["provider"] = self._provider or _PROVIDERS.get(request.url.host)
        if agent is None:
            agent = self._agent(request) if callable(self._agent) else self._agent
        if agent is None:
            raise InvalidInput(
                f"no agent for this call: give the transport one, or the request a header {AGENT_HEADER}"
            )
        # What the answer says that it used is read as it passes by.
        request.headers["Accept-Encoding"] = "identity"
        return AgentCall(agent, call)


class _Metered:
    """A hold from the time that its request is sent until its answer has passed by."""

    def __init__(self, hold: BaseHold, call: AgentCall, prices: Prices) -> None:
        self._hold = hold
        self._call = call.call
        self._prices = prices
        self._reader: UsageReader | None = None

    def answered(self, response: Any, stream: type, base: type) -> Any:
        """The answer begins: it passes by in a `stream` of ours that is also one of the library's own, `base`."""
        self._reader = UsageReader(response.status_code, response.headers.get("content-type", ""))
        if response.is_stream_consumed or response.is_closed:
            self._was_read(response)
            return response
        response.stream = _stream_type(stream, base)(response.stream, self)
        return response

    def feed(self, data: bytes) -> None:
        """A piece of the answer; after the last event of a stream its cost is known."""
        if self._reader is not None and self._reader.feed(data):
            self.end()

    def _was_read(self, response: Any) -> None:
        """What is wrapped has read the answer, to log it perhaps, or has made it up: nothing will pass by."""
        try:
            content = response.content
        except RuntimeError:  # Read and not kept, or closed.
            self.end()
        else:
            self.feed(content)
            self.end(whole=True)

    def end(self, *, whole: bool = False) -> None:
        """The answer is over, `whole` or given up; what came after the hold's end does not matter."""
        reader = self._reader
        if self._hold.ended or reader is None:
            return
        reader.close(whole=whole)
        if reader.not_billed:
            self._hold.release()
        else:
            self._hold.finalize(self._cost(reader))

    def _cost(self, reader: UsageReader) -> int:
        if not reader.over:
            return self._hold.held_micros  # Given up: what it would have said is not known.
        call, usage = self._call, reader.usage
        tiers = {reader.service_tier}
        if reader.service_tier is None and "speed" not in (usage or {}):
            tiers.add(call.get("service_tier"))  # It does not say at which it was served: the dearer one.
        try:
            return max(
                self._prices.actual_micros(call["model"], usage, provider=call.get("provider"), service_tier=tier)
                for tier in tiers
            )
        except Refused as error:
            logger.warning("%s: charged all that was held, for %s", self._hold, error)
            return self._hold.held_micros


class MeteredTransport(_BaseTransport):
    """Sends a client's requests through `wrapped`, each within its agent's cap. Of httpx and of httpx2.

    `POST`s of chat completions, Responses, embeddings (OpenAI's) and messages (Anthropic's) hold their worst case
    before they are sent, and are finalized by the usage in their answer, streams by that in their last events.
    What cannot be held raises, as `Wallet.reserve` does, to whoever called the client.

    `agent`: whose money it is, or who says so by the request; a request's header `X-Daycap-Agent` goes before it.
    `wrapped`: the transport that sends, where the library's own (without a proxy) will not do. `max_output_tokens`:
    for calls that do not say their most. `count_tokens`: the most that can go in, by the request's JSON; by default
    one for each of its bytes, which is refused where that is no bound (images, files, what the provider keeps, tools
    that it runs itself). `provider`: as in `Prices`; the hosts of OpenAI and Anthropic are known. `unmetered`: whether
    other requests that may cost money are refused, or pass; those that surely cost none (`GET`, counting tokens)
    always pass.
    """

    def __init__(
        self,
        wallet: Wallet,
        agent: str | Callable[[AnyRequest], str] | None = None,
        *,
        wrapped: AnyTransport | None = None,
        max_output_tokens: int | None = None,
        count_tokens: TokenCounter | None = None,
        provider: str | None = None,
        unmetered: Literal["pass", "refuse"] = "refuse",
    ) -> None:
        self._wallet = wallet
        self._wrapped: Any = wrapped
        self._making = threading.Lock()
        self._meter = _Meter(agent, count_tokens, max_output_tokens, provider, unmetered)

    def handle_request(self, request: Any) -> Any:
        """Send one request, as the client library asks. Raises what `Wallet.reserve` raises, and `wrapped`'s errors."""
        library = _library(request)
        with self._making:
            self._wrapped = self._wrapped or library.HTTPTransport()
        with _errors_of_the_clients_own():
            if may_be_a_call(request.url.path):
                request.read()
            call = self._meter.call_of(request)
            hold = None if call is None else self._wallet.reserve(call.agent, **call.call)
        if call is None or hold is None:
            return self._wrapped.handle_request(request)
        metered = _Metered(hold, call, self._wallet.prices)
        with sending(hold, _not_sent):
            response = self._wrapped.handle_request(request)
        return metered.answered(response, _Stream, library.SyncByteStream)

    def close(self) -> None:
        """Close what is wrapped. The wallet stays open."""
        if self._wrapped is not None:
            self._wrapped.close()

    def __enter__(self) -> MeteredTransport:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncMeteredTransport(_AsyncBaseTransport):
    """`MeteredTransport` of the event loop, with an `AsyncWallet`."""

    def __init__(
        self,
        wallet: AsyncWallet,
        agent: str | Callable[[AnyRequest], str] | None = None,
        *,
        wrapped: AnyAsyncTransport | None = None,
        max_output_tokens: int | None = None,
        count_tokens: TokenCounter | None = None,
        provider: str | None = None,
        unmetered: Literal["pass", "refuse"] = "refuse",
    ) -> None:
        self._wallet = wallet
        self._wrapped: Any = wrapped
        self._meter = _Meter(agent, count_tokens, max_output_tokens, provider, unmetered)

    async def handle_async_request(self, request: Any) -> Any:
        """See `MeteredTransport.handle_request`. A task that is cancelled once it sends is charged all that is held."""
        library = _library(request)
        self._wrapped = self._wrapped or library.AsyncHTTPTransport()
        with _errors_of_the_clients_own():
            if may_be_a_call(request.url.path):
                await request.aread()
            call = self._meter.call_of(request)
            hold = None if call is None else await self._wallet.reserve(call.agent, **call.call)
        if call is None or hold is None:
            return await self._wrapped.handle_async_request(request)
        metered = _Metered(hold, call, self._wallet.prices)
        with sending(hold, _not_sent):
            response = await self._wrapped.handle_async_request(request)
        return metered.answered(response, _AsyncStream, library.AsyncByteStream)

    async def aclose(self) -> None:
        """Close what is wrapped. The wallet stays open."""
        if self._wrapped is not None:
            await self._wrapped.aclose()

    async def __aenter__(self) -> AsyncMeteredTransport:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class _PassingBy:
    """An answer's bytes, unchanged, while what they say of the usage is read."""

    def __init__(self, wrapped: Any, metered: _Metered) -> None:
        self._wrapped = wrapped
        self._metered = metered


class _Stream(_PassingBy):
    """Of a thread."""

    def __iter__(self) -> Iterator[bytes]:
        for data in self._wrapped:
            self._metered.feed(data)
            yield data
        self._metered.end(whole=True)

    def close(self) -> None:
        try:
            self._wrapped.close()
        finally:
            self._metered.end()


class _AsyncStream(_PassingBy):
    """Of the event loop."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._wrapped:
            self._metered.feed(data)
            yield data
        self._metered.end(whole=True)

    async def aclose(self) -> None:
        try:
            await self._wrapped.aclose()
        finally:
            self._metered.end()


def _not_sent(error: BaseException) -> bool:
    """Only if nothing was sent is it sure that there is no bill."""
    return bool(_NOT_SENT & {each.__name__ for each in type(error).__mro__})


def _library(request: Any) -> Any:
    """httpx or httpx2: the one that this request is of."""
    return sys.modules[next(each.__module__.partition(".")[0] for each in type(request).__mro__ if _is_httpx(each))]


def _is_httpx(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in {"httpx", "httpx2"}


@cache
def _stream_type(kind: type, base: type) -> Callable[[Any, _Metered], Any]:
    """Clients look whether a stream is one of their library's."""
    return type(kind.__name__, (kind, base), {})


# Anthropic's client, and OpenAI's older ones, try again after any error but their own, and hide it in one of theirs.
_CLIENTS_OWN = {"openai": "OpenAIError", "anthropic": "AnthropicError"}


@contextmanager
def _errors_of_the_clients_own() -> Iterator[None]:
    """Errors of daycap are of each client library's root besides, so that they reach the caller, and at once."""
    try:
        yield
    except DaycapError as error:
        roots = tuple(getattr(sys.modules[name], root) for name, root in _CLIENTS_OWN.items() if name in sys.modules)
        if missing := tuple(root for root in roots if not isinstance(error, root)):
            error.__class__ = _error_type((type(error), *missing))
        raise


@cache
def _error_type(bases: tuple[type[Exception], ...]) -> Any:
    named = {name: getattr(bases[0], name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(bases[0].__name__, bases, named)
