"""Meter one request of a client. `MeteredTransport` sends it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from daycap.errors import InvalidInput, Refused
from daycap.formats import shown
from daycap.integrations.http_calls import Bounds, calls_of, costs_nothing, deployment_of, may_be_a_call
from daycap.integrations.http_usage import UsageReader
from daycap.pricing.answer_cost import cost_of, worst_case_of
from daycap.pricing.request_fields import refuse_rerouting
from daycap.pricing.usage import PricedCall
from daycap.protocol.labels import call_labels
from daycap.wallet.hold import BaseHold

if TYPE_CHECKING:
    import httpx
    import httpx2

    from daycap.pricing.prices import Prices
    from daycap.wallet.aio import AsyncWallet
    from daycap.wallet.sync import Wallet

    AnyRequest: TypeAlias = httpx.Request | httpx2.Request

try:
    from daycap.pricing.rates import provider_of_url
except ImportError as error:
    raise ImportError(f'a metered transport needs genai-prices: pip install "daycap[httpx]" ({error})') from error

logger = logging.getLogger("daycap")

AGENT_HEADER = "X-Daycap-Agent"
"""Names a request's agent. Removed before the request is sent."""

LABELS_HEADER = "X-Daycap-Labels"
"""Names labels of a request, `tool=search,customer=acme`. Removed before the request is sent."""

_EXTENSION_OF = {AGENT_HEADER: "daycap_agent", LABELS_HEADER: "daycap_labels"}

_OF_AZURE = (".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com")

_HARMLESS_QUERIES = {"alt", "api-version", "beta", "key"}


class Metering(NamedTuple):
    """The agent that pays for a call, the call's labels, and one priced call for each model that may answer."""

    agent: str
    labels: Mapping[str, str]
    calls: tuple[PricedCall, ...]
    prices: Prices
    names: Mapping[str, str]

    @property
    def worst_case_micros(self) -> int:
        return worst_case_of(self.prices, self.calls)


class Meter:
    """The metering that both transports share; see `MeteredTransport`."""

    def __init__(
        self,
        wallet: Wallet | AsyncWallet,
        agent: str | Callable[[AnyRequest], str] | None,
        bounds: Bounds,
        provider: str | None,
        unmetered: Literal["pass", "refuse"],
        labels: Mapping[str, str] | Callable[[AnyRequest], Mapping[str, str]] | None,
    ) -> None:
        self._wallet = wallet
        self._agent = agent
        self._bounds = bounds
        self._provider = provider
        self._unmetered = unmetered
        self._labels = labels if callable(labels) else call_labels(labels or {})

    def call_of(self, request: AnyRequest) -> Metering | None:
        """Return the call that a request makes, None if it passes unmetered. Raises `InvalidInput`.

        The request's body must have been read.
        """
        agent, labels = _taken(request, AGENT_HEADER), _taken(request, LABELS_HEADER)
        refuse_rerouting(request.headers, self._bounds.allow)
        path = request.url.path
        if costs_nothing(request.method, path):
            return None
        calls = calls_of(path, request.content, self._bounds) if may_be_a_call(path) else ()
        if not calls:
            if self._unmetered == "pass":
                return None
            raise InvalidInput(
                f"{request.method} {path} cannot be metered and may cost money; to let it pass, set unmetered='pass'"
            )
        self._refuse_unknown_parts(request.url.params)
        provider = self._provider or _provider_of(request)
        for call in calls:
            call["provider"] = provider
        if agent is None:
            agent = self._agent(request) if callable(self._agent) else self._agent
        if agent is None:
            raise InvalidInput(f"no agent for this call: give the transport one, or send the header {AGENT_HEADER}")
        # The usage is read from the answer as it passes through, so it must not be compressed.
        request.headers["Accept-Encoding"] = "identity"
        # If several models may answer, the first is the one that was asked for: a deployment before the body's model.
        its = {"model": calls[0]["model"], **self._labels_of(request), **_labels_in(labels)}
        return Metering(agent, its, calls, self._wallet.prices, self._bounds.models)

    def _labels_of(self, request: AnyRequest) -> Mapping[str, str]:
        return dict(call_labels(self._labels(request)) if callable(self._labels) else self._labels)

    def _refuse_unknown_parts(self, params: Iterable[str]) -> None:
        for name in params:
            if name not in _HARMLESS_QUERIES and name not in self._bounds.allow:
                raise InvalidInput(
                    f"{shown(name, 60)}: this URL parameter may change what the call costs; leave it out, or declare "
                    f"that it does not: allow=[{shown(name, 60)}]"
                )


def _taken(request: AnyRequest, header: str) -> str | None:
    """Remove a header of daycap's. Kept in the extensions in case the request is sent again: a redirect, a login."""
    value: str | None = request.headers.pop(header, request.extensions.get(_EXTENSION_OF[header]))
    if value is not None:
        request.extensions[_EXTENSION_OF[header]] = value
    return value


def _labels_in(header: str | None) -> Mapping[str, str]:
    pairs = [pair.partition("=") for pair in (header or "").split(",") if pair.strip()]
    labels = {key.strip(): value.strip() for key, _, value in pairs}
    if len(labels) < len(pairs) or not all(equals for _, equals, _ in pairs):
        raise InvalidInput(f"{LABELS_HEADER} is not of the form key=value,key=value: {shown(header, 100)}")
    return labels


def _provider_of(request: AnyRequest) -> str | None:
    if request.url.host.endswith(_OF_AZURE) or deployment_of(request.url.path) is not None:
        return "azure"
    return provider_of_url(str(request.url))


class MeteredRequest:
    """A hold, from sending its request until its answer has passed through."""

    def __init__(self, hold: BaseHold, metering: Metering) -> None:
        self._hold = hold
        self._metering = metering
        self._reader: UsageReader | None = None

    def answered(self, response: Any, stream: type, base: type) -> Any:
        """Meter the body of `response`: wrap it in a `stream` that is also an instance of the library's `base`."""
        self._reader = UsageReader(response.status_code, response.headers.get("content-type", ""))
        if response.is_stream_consumed or response.is_closed:
            self._was_read(response)
            return response
        response.stream = _stream_type(stream, base)(response.stream, self)
        return response

    def feed(self, data: bytes) -> None:
        """Read a piece of the answer. The last chunk of a stream ends the hold."""
        if self._reader is not None and self._reader.feed(data):
            self.end()

    def _was_read(self, response: Any) -> None:
        """Meter an answer that the wrapped transport has already read or made up: nothing will pass through."""
        try:
            content = response.content
        except RuntimeError:  # Read but not kept, or closed.
            self.end()
        else:
            self.feed(content)
            self.end(whole=True)

    def end(self, *, whole: bool = False) -> None:
        """End the hold: the answer is `whole` or was abandoned. Does nothing if the hold has ended."""
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
            return self._hold.held_micros  # Abandoned, so its usage is unknown.
        _, _, calls, prices, names = self._metering
        try:
            return cost_of(prices, calls, reader.answer, names)
        except Refused as error:
            logger.warning("%s: charged in full: %s", self._hold, error)
            return self._hold.held_micros


@cache
def _stream_type(kind: type, base: type) -> Callable[[Any, MeteredRequest], Any]:
    """Return a subclass of both: clients check that a stream is an instance of their library's class."""
    return type(kind.__name__, (kind, base), {})
