"""Meter the calls of any client library that is built on httpx or httpx2: the transport that its requests go through.

    client = openai.OpenAI(http_client=openai.DefaultHttpxClient(transport=MeteredTransport(wallet, agent="agent-7")))

Each attempt to send a request is a hold of its own. Needs `daycap[httpx]`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from daycap.errors import DaycapError
from daycap.integrations.http_calls import Bounds, TokenCounter, may_be_a_call
from daycap.integrations.http_meter import AGENT_HEADER, Meter, MeteredRequest
from daycap.wallet.metering import sending

if TYPE_CHECKING:
    import httpx
    import httpx2

    from daycap.wallet.aio import AsyncWallet
    from daycap.wallet.sync import Wallet

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

__all__ = ["AGENT_HEADER", "AsyncMeteredTransport", "MeteredTransport"]

# Nothing of the request was sent: httpx and httpx2 have an error each by these names.
_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}


class MeteredTransport(_BaseTransport):
    """Sends a client's requests through `wrapped`, each within its agent's cap. Of httpx and of httpx2.

    `POST`s of chat completions, Responses, embeddings (OpenAI's) and messages (Anthropic's) hold their worst case
    before they are sent, and are finalized by the usage in their answer, streams by that in their last events.
    What cannot be held raises, as `Wallet.reserve` does, to whoever called the client.

    `agent`: whose money it is, or a function that tells by the request; a request's header `X-Daycap-Agent` takes
    precedence. `wrapped`: the transport that sends, where the library's own (without a proxy) will not do.

    What bounds a call's cost where the request does not: `max_output_tokens`; `max_web_searches`, by tools that search
    without `max_uses` or `max_tool_calls`; `count_tokens`, which returns the most tokens that go in by the request's
    JSON. By default that is one for each byte, which is refused where it is no bound (images, files, what the provider
    keeps, tools that it runs itself, such as web searches).

    `models`: which model each deployment runs, `{"our-chat": "gpt-4o"}`, for Azure and servers with names of their
    own. `provider`: as in `Prices`; by default whose API the URL is, where genai-prices knows it. `allow`: fields,
    tools, headers and parts of a URL that add nothing to the cost; those that daycap does not know are refused.
    `unmetered`: whether other requests that may cost money are refused, or pass; those that surely cost none (`GET`,
    counting tokens) always pass.
    """

    def __init__(
        self,
        wallet: Wallet,
        agent: str | Callable[[AnyRequest], str] | None = None,
        *,
        wrapped: AnyTransport | None = None,
        max_output_tokens: int | None = None,
        max_web_searches: int | None = None,
        count_tokens: TokenCounter | None = None,
        models: Mapping[str, str] | None = None,
        provider: str | None = None,
        allow: Collection[str] = (),
        unmetered: Literal["pass", "refuse"] = "refuse",
    ) -> None:
        self._wallet = wallet
        self._wrapped: Any = wrapped
        self._making = threading.Lock()
        bounds = Bounds(count_tokens, max_output_tokens, max_web_searches, frozenset(allow), dict(models or {}))
        self._meter = Meter(wallet, agent, bounds, provider, unmetered)

    def handle_request(self, request: Any) -> Any:
        """Send one request, as the client library asks. Raises what `Wallet.reserve` raises, and `wrapped`'s errors."""
        library = _library(request)
        with self._making:
            self._wrapped = self._wrapped or library.HTTPTransport()
        with _errors_of_the_clients_own():
            if may_be_a_call(request.url.path):
                request.read()
            call = self._meter.call_of(request)
            hold = None if call is None else self._wallet.reserve(call.agent, call.worst_case_micros)
        if call is None or hold is None:
            return self._wrapped.handle_request(request)
        metered = MeteredRequest(hold, call)
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
        max_web_searches: int | None = None,
        count_tokens: TokenCounter | None = None,
        models: Mapping[str, str] | None = None,
        provider: str | None = None,
        allow: Collection[str] = (),
        unmetered: Literal["pass", "refuse"] = "refuse",
    ) -> None:
        self._wallet = wallet
        self._wrapped: Any = wrapped
        bounds = Bounds(count_tokens, max_output_tokens, max_web_searches, frozenset(allow), dict(models or {}))
        self._meter = Meter(wallet, agent, bounds, provider, unmetered)

    async def handle_async_request(self, request: Any) -> Any:
        """See `MeteredTransport.handle_request`. A task that is cancelled once it sends is charged all that is held."""
        library = _library(request)
        self._wrapped = self._wrapped or library.AsyncHTTPTransport()
        with _errors_of_the_clients_own():
            if may_be_a_call(request.url.path):
                await request.aread()
            call = self._meter.call_of(request)
            hold = None if call is None else await self._wallet.reserve(call.agent, call.worst_case_micros)
        if call is None or hold is None:
            return await self._wrapped.handle_async_request(request)
        metered = MeteredRequest(hold, call)
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

    def __init__(self, wrapped: Any, metered: MeteredRequest) -> None:
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


# Anthropic's client, and OpenAI's older ones, try again after any error but their own, and hide it in one of theirs.
_CLIENTS_OWN = {"openai": "OpenAIError", "anthropic": "AnthropicError"}


@contextmanager
def _errors_of_the_clients_own() -> Iterator[None]:
    """Errors of daycap are of each client library's root besides, so that they reach the caller, and at once."""
    try:
        yield
    except DaycapError as error:
        error.__class__ = _with_roots(type(error))
        raise


def _with_roots(kind: Any) -> Any:
    """The errors of `kind` that are of the root of each client library besides, as far as they are imported here."""
    roots = tuple(getattr(sys.modules[name], root) for name, root in _CLIENTS_OWN.items() if name in sys.modules)
    missing = tuple(root for root in roots if not issubclass(kind, root))
    return _error_type((kind, *missing)) if missing else kind


@cache
def _error_type(bases: tuple[type[Exception], ...]) -> Any:
    kind = bases[0]
    named = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    kind = getattr(kind, "_daycap_kind", kind)
    return type(kind.__name__, bases, {**named, "_daycap_kind": kind, "__reduce__": _reduced})


def _reduced(error: Any) -> tuple[Any, ...]:
    """For pickle and copy: the classes made here have no name that another process knows."""
    return _rebuilt, (error._daycap_kind, error.args), error.__dict__


def _rebuilt(kind: Any, args: tuple[Any, ...]) -> Any:
    kind = _with_roots(kind)
    return kind.__new__(kind, *args)
