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
from contextlib import nullcontext
from typing import Any

from celery.worker.state import task_ready

logger = logging.getLogger("daycap.worker")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one message."""

MOST_EVENTS = 2000
"""How many one transaction settles: it takes some 50 ms, in which nobody else can write to SQLite."""

_SILENT_S = 0.002
"""With no message for so long, those that have come are settled: at low load this is all that gathering adds."""

_LONGEST_S = 0.05
"""And no later than this after the first."""


class Gathered:
    """What a strategy asks of Celery's consumer, except that requests are gathered instead of run one by one.

    `settle` settles the arguments of all messages, in order; where it raises, none is settled and all go back into
    the queue.
    """

    def __init__(self, consumer: Any, settle: Callable[[Sequence[Arguments]], dict[str, int]]) -> None:
        self._consumer = consumer
        self._settle = settle
        self._requests: list[Any] = []
        self._events = 0
        self._first_s = self._last_s = 0.0
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
        wait_s = min(self._last_s + _SILENT_S, self._first_s + _LONGEST_S) - time.monotonic()
        if wait_s > 0:
            self._look_again(wait_s)
        else:
            self._settle_all()

    def _settle_all(self) -> None:
        requests, self._requests, self._events = self._requests, [], 0
        began_s = time.monotonic()
        self.event_dispatcher.send_all()
        for request in requests:
            request.on_accepted(os.getpid(), began_s)
        try:
            counts = self._settle([(tuple(request.args), request.kwargs) for request in requests])
        except Exception:
            # Whatever it was, and `settle` has said it: nothing is acknowledged that was not committed.
            for request in requests:
                request.reject(requeue=True)
                task_ready(request)
            return
        self._acknowledge(requests)
        said = repr({"messages": len(requests), **counts})  # Of all: which of them a count came from is not known.
        for request in requests:
            request.on_success((False, said, time.monotonic() - began_s))

    def _acknowledge(self, requests: list[Any]) -> None:
        """Many in one exchange, where the transport can."""
        qos = requests[0].message.channel.qos
        try:
            with qos.together() if hasattr(qos, "together") else nullcontext():
                for request in requests:
                    request.message.ack()
                    request.acknowledged = True
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
    return len(events) if isinstance(events, list) else 1
