"""Meter the calls of any client library built on httpx or httpx2, with a transport for its requests.

    client = openai.OpenAI(http_client=openai.DefaultHttpxClient(transport=MeteredTransport(wallet, agent="agent-7")))

Each attempt to send a request has its own hold. Needs `daycap[httpx]`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from daycap.errors import DaycapError
from daycap.integrations.http_calls import Bounds, TokenCounter, may_be_a_call
from daycap.integrations.http_meter import AGENT_HEADER, LABELS_HEADER, Meter, MeteredRequest
from daycap.wallet.metering import sending

if TYPE_CHECKING:
    import httpx
    import httpx2

    from daycap.wallet.aio import AsyncWallet
    from daycap.wallet.sync import Wallet

    class _BaseTransport(httpx.BaseTransport, httpx2.BaseTransport):
        """Accepted by either library, without loading the other."""

        def handle_request(self, request: Any) -> Any: ...

    class _AsyncBaseTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
        """The same for an event loop."""

        async def handle_async_request(self, request: Any) -> Any: ...

    AnyRequest: TypeAlias = httpx.Request | httpx2.Request
    AnyTransport: TypeAlias = httpx.BaseTransport | httpx2.BaseTransport
    AnyAsyncTransport: TypeAlias = httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport
else:
    _BaseTransport = _AsyncBaseTransport = object

W = TypeVar("W", bound="Wallet | AsyncWallet")
T = TypeVar("T")

__all__ = ["AGENT_HEADER", "LABELS_HEADER", "AsyncMeteredTransport", "MeteredTransport"]

# Nothing of the request was sent. Both httpx and httpx2 have errors with these names.
_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}


class _Metered(Generic[W, T]):
    """What both transports share: `W` is their wallet, `T` the kind of transport that they wrap."""

    def __init__(
        self,
        wallet: W,
        agent: str | Callable[[AnyRequest], str] | None = None,
        *,
        wrapped: T | None = None,
        max_output_tokens: int | None = None,
        max_web_searches: int | None = None,
        count_tokens: TokenCounter | None = None,
        models: Mapping[str, str] | None = None,
        provider: str | None = None,
        allow: Collection[str] = (),
        unmetered: Literal["pass", "refuse"] = "refuse",
        labels: Mapping[str, str] | Callable[[AnyRequest], Mapping[str, str]] | None = None,
    ) -> None:
        self._wallet: W = wallet
        self._wrapped: Any = wrapped
        self._creating = threading.Lock()
        bounds = Bounds(count_tokens, max_output_tokens, max_web_searches, frozenset(allow), dict(models or {}))
        self._meter = Meter(wallet, agent, bounds, provider, unmetered, labels)

    def _transport(self, default: Callable[[], T]) -> Any:
        """Return the transport that sends: the wrapped one, or else one `default` for all requests."""
        with self._creating:
            self._wrapped = self._wrapped or default()
        return self._wrapped


class MeteredTransport(_Metered["Wallet", "AnyTransport"], _BaseTransport):
    """An httpx or httpx2 transport that sends each request of a client within its agent's cap.

    `POST`s of chat completions, Responses, embeddings (OpenAI) and messages (Anthropic) reserve their worst case
    before they are sent, and finalize the usage in their answer; a stream's usage is in its last chunks. A refused
    reservation raises the errors of `Wallet.reserve` to the caller of the client.

    `agent`: the agent that pays, or a function that returns it for a request. The request header `X-Daycap-Agent`
    takes precedence. `wrapped`: the transport that sends; by default the library's own, without a proxy.

    `labels`: the labels of each call, or a function that returns them for a request; budgets can be narrowed to them.
    Those in the request header `X-Daycap-Labels` (`tool=search,customer=acme`) take precedence. The label `model` is by
    default the model that is asked for: what `models` says of the deployment, or the model in the body.

    These limit a call's cost if the request does not: `max_output_tokens`; `max_web_searches`, for tools without
    `max_uses` or `max_tool_calls`; `count_tokens`, which returns the most input tokens for the request's JSON. The
    default is one token per byte; input for which that is no limit is refused (images, files, content stored by the
    provider, tools that it runs itself, such as web searches).

    `models`: the model that each deployment runs, `{"our-chat": "gpt-4o"}`, for Azure and for servers with their own
    names. `provider`: as in `Prices`; by default the one whose API the URL belongs to, if genai-prices knows it.
    `allow`: fields, tools, headers and URL parameters that add no cost; unknown ones are refused otherwise.
    `unmetered`: "refuse" or "pass" other requests that may cost money. Requests that never cost any (`GET`, token
    counting) always pass.
    """

    def handle_request(self, request: Any) -> Any:
        """Send one request for the client library. Raises the errors of `Wallet.reserve` and of `wrapped`."""
        library = _library(request)
        wrapped = self._transport(library.HTTPTransport)
        with _as_client_errors():
            if may_be_a_call(request.url.path):
                request.read()
            call = self._meter.call_of(request)
            hold = (
                None if call is None else self._wallet.reserve(call.agent, call.worst_case_micros, labels=call.labels)
            )
        if call is None or hold is None:
            return wrapped.handle_request(request)
        metered = MeteredRequest(hold, call)
        with sending(hold, _not_sent):
            response = wrapped.handle_request(request)
        return metered.answered(response, _Stream, library.SyncByteStream)

    def close(self) -> None:
        """Close the wrapped transport. The wallet stays open."""
        if self._wrapped is not None:
            self._wrapped.close()

    def __enter__(self) -> MeteredTransport:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncMeteredTransport(_Metered["AsyncWallet", "AnyAsyncTransport"], _AsyncBaseTransport):
    """`MeteredTransport` for an event loop, with an `AsyncWallet`."""

    async def handle_async_request(self, request: Any) -> Any:
        """See `MeteredTransport.handle_request`. A call that is cancelled while sending is charged its whole hold."""
        library = _library(request)
        wrapped = self._transport(library.AsyncHTTPTransport)
        with _as_client_errors():
            if may_be_a_call(request.url.path):
                await request.aread()
            call = self._meter.call_of(request)
            hold = (
                None
                if call is None
                else await self._wallet.reserve(call.agent, call.worst_case_micros, labels=call.labels)
            )
        if call is None or hold is None:
            return await wrapped.handle_async_request(request)
        metered = MeteredRequest(hold, call)
        with sending(hold, _not_sent):
            response = await wrapped.handle_async_request(request)
        return metered.answered(response, _AsyncStream, library.AsyncByteStream)

    async def aclose(self) -> None:
        """Close the wrapped transport. The wallet stays open."""
        if self._wrapped is not None:
            await self._wrapped.aclose()

    async def __aenter__(self) -> AsyncMeteredTransport:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class _MeteredBody:
    """Passes on an answer's bytes unchanged, and reads its usage from them."""

    def __init__(self, wrapped: Any, metered: MeteredRequest) -> None:
        self._wrapped = wrapped
        self._metered = metered


class _Stream(_MeteredBody):
    """A synchronous body."""

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


class _AsyncStream(_MeteredBody):
    """An asynchronous body."""

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
    """Return whether the request was definitely not sent, and so not billed."""
    return bool(_NOT_SENT & {each.__name__ for each in type(error).__mro__})


def _library(request: Any) -> Any:
    """Return the library of this request: httpx or httpx2."""
    return sys.modules[next(each.__module__.partition(".")[0] for each in type(request).__mro__ if _is_httpx(each))]


def _is_httpx(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in {"httpx", "httpx2"}


# Anthropic's client and older ones of OpenAI retry after any error except their own, and wrap it in one of theirs.
_CLIENTS_OWN = {"openai": "OpenAIError", "anthropic": "AnthropicError"}


@contextmanager
def _as_client_errors() -> Iterator[None]:
    """Make daycap's errors instances of each client library's root error too, so that they pass through at once."""
    try:
        yield
    except DaycapError as error:
        error.__class__ = _with_roots(type(error))
        raise


def _with_roots(kind: Any) -> Any:
    """Return a subclass of `kind` and of the root error of each client library that is imported here."""
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
    """Support pickle and copy: other processes cannot import the classes made here."""
    return _rebuilt, (error._daycap_kind, error.args), error.__dict__


def _rebuilt(kind: Any, args: tuple[Any, ...]) -> Any:
    kind = _with_roots(kind)
    return kind.__new__(kind, *args)
