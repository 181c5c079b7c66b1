"""Gather messages to finalize, so that many small ones are settled in one transaction.

What a message costs is mostly its transaction. A message that nobody waits for is therefore kept, unacknowledged,
until enough have come or the queue has been silent for a moment, and then all of them are settled together and
acknowledged after the commit: a worker that is killed meanwhile has lost nothing, for the broker delivers each again.
Celery's own request object does the rest: events for Flower, counts, acknowledgement.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from daycap.protocol.wire import shown_costs
from worker.broker import together

logger = logging.getLogger("daycap.worker")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one message."""

MOST_EVENTS = 2000
"""How many one transaction settles: it takes some 50 ms, in which nobody else can write to SQLite."""

_WEIGHT_OF_NONE = 100
"""A message without events becomes a dead letter, in a transaction of its own: a few of them are a batch."""

_SILENT_S = 0.002
"""With no message for so long, those that have come are settled: at low load this is all that gathering adds."""

_LONGEST_S = 0.05
"""And no later than this after the first."""


class NotSettled(Exception):
    """the ledger refused a batch; it can be tried again in `wait_s` seconds"""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        super().__init__(f"not settled; tried again in {wait_s:.1f} s")


class Gathered:
    """What a strategy asks of Celery's consumer, except that requests are gathered instead of run one by one.

    `settle` settles the arguments of all messages, in order; where it raises `NotSettled` none is settled, and all are
    kept and tried again. They are not given back: RabbitMQ drops what was given back to a quorum queue too often.
    """

    def __init__(self, consumer: Any, settle: Callable[[Sequence[Arguments]], dict[str, int]]) -> None:
        self._consumer = consumer
        self._settle = settle
        self._requests: list[Any] = []
        self._events = self._accepted = 0
        self._first_s = self._last_s = self._not_before_s = 0.0
        self.event_dispatcher = _Later(consumer.event_dispatcher)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def on_task_request(self, request: Any) -> None:
        """Take one request."""
        if not request.ignore_result:
            self.event_dispatcher.send_all()
            self._consumer.on_task_request(request)
            return
        self._requests.append(request)
        self._events += _events(request.kwargs)
        self._last_s = time.monotonic()
        if self._events >= MOST_EVENTS or len(self._requests) >= self._consumer.prefetch_multiplier:
            self._settle_all()
        elif len(self._requests) == 1:
            self._first_s = self._last_s
            self._look_again(_SILENT_S)

    def _look_again(self, seconds: float) -> None:
        self._consumer.hub.call_later(seconds, self._look)

    def _look(self) -> None:
        if not self._requests:
            return
        due_s = max(self._not_before_s, min(self._last_s + _SILENT_S, self._first_s + _LONGEST_S))
        wait_s = due_s - time.monotonic()
        if wait_s > 0:
            self._look_again(wait_s)
        else:
            self._settle_all()

    def _settle_all(self) -> None:
        began_s = time.monotonic()
        if began_s < self._not_before_s:
            return  # Looked at then.
        requests = self._requests
        self.event_dispatcher.send_all()
        for request in requests[self._accepted :]:
            request.on_accepted(os.getpid(), began_s)
        self._accepted = len(requests)
        try:
            counts = self._settle([(tuple(request.args), request.kwargs) for request in requests])
        except NotSettled as error:
            self._not_before_s = time.monotonic() + error.wait_s
            self._look_again(error.wait_s)
            return
        self._requests, self._events, self._accepted = [], 0, 0
        self._acknowledge(requests)
        # Of all messages: which of them a count came from is not known.
        said = ", ".join(f"{name} {count}" for name, count in {"messages": len(requests), **counts}.items())
        for request in requests:
            costs = shown_costs(request.kwargs.get("events"))
            request.on_success((False, f"{costs} ({said})", time.monotonic() - began_s))

    def _acknowledge(self, requests: list[Any]) -> None:
        """All in one exchange."""
        for request in requests:
            request.acknowledged = True  # Or Celery would try each by itself when this failed.
        try:
            with together(requests[0].message.channel):
                for request in requests:
                    request.message.ack()
        except self._consumer.connection_errors as error:
            logger.warning("settled, but not acknowledged, so that the messages come again: %r", error)


class _Later:
    """Celery's dispatcher of events, but for a message's arrival: each by itself would be an exchange of its own."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._events: list[tuple[str, dict[str, Any]]] = []

    @property
    def enabled(self) -> bool:
        return bool(self._dispatcher and self._dispatcher.enabled)

    def send(self, kind: str, **fields: Any) -> None:
        if kind == "task-received":
            self._events.append((kind, fields))
        else:
            self._dispatcher.send(kind, **fields)

    def send_all(self) -> None:
        events, self._events = self._events, []
        for kind, fields in events:
            self._dispatcher.send(kind, **fields)


def _events(kwargs: dict[str, Any]) -> int:
    events = kwargs.get("events")
    return len(events) if isinstance(events, list) and events else _WEIGHT_OF_NONE
