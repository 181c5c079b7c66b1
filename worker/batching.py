"""Batch finalize messages, so that many small ones are settled in one transaction.

Most of a message's cost is its transaction. So a message without a waiting caller is held, unacknowledged, until the
batch is full or the queue goes quiet. Then the whole batch is settled in one transaction and acknowledged after the
commit. A worker that is killed before that loses nothing: the broker redelivers every message.
Celery's own request objects do the rest: monitoring, counts, acknowledgement.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from daycap.protocol.wire import shown_costs
from worker.broker import batched_acks

logger = logging.getLogger("daycap.worker")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one message."""

MOST_EVENTS = 2000
"""Spending events per transaction. It takes about 50 ms, during which SQLite has no other writer."""

_WEIGHT_OF_INVALID = 100
"""A message without events becomes a dead letter in its own transaction, so a few of them fill a batch."""

_QUIET_S = 0.002
"""The batch is settled when no message arrives for this long. At low load, batching adds only this delay."""

_MAX_DELAY_S = 0.05
"""The batch is settled at the latest this long after its first message."""


class NotSettled(Exception):
    """the ledger refused a batch; retry in `wait_s` seconds"""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        super().__init__(f"not settled; retrying in {wait_s:.1f} s")


class BatchingConsumer:
    """Stands in for Celery's consumer in a task strategy and batches requests instead of running each one.

    `settle` settles the arguments of all messages, in order. If it raises `NotSettled`, nothing was settled, and the
    batch is kept and retried. It is not requeued: RabbitMQ drops a message that returns to a quorum queue too often.
    """

    def __init__(self, consumer: Any, settle: Callable[[Sequence[Arguments]], dict[str, int]]) -> None:
        self._consumer = consumer
        self._settle = settle
        self._requests: list[Any] = []
        self._weight = self._accepted = 0
        self._first_s = self._last_s = self._not_before_s = 0.0
        self.event_dispatcher = _DeferredDispatcher(consumer.event_dispatcher)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def on_task_request(self, request: Any) -> None:
        """Add a request to the batch. Run it at once if a caller waits for its result."""
        if not request.ignore_result:
            self.event_dispatcher.flush()
            self._consumer.on_task_request(request)
            return
        self._requests.append(request)
        self._weight += _weight(request.kwargs)
        self._last_s = time.monotonic()
        if self._weight >= MOST_EVENTS or len(self._requests) >= self._consumer.prefetch_multiplier:
            self._settle_batch()
        elif len(self._requests) == 1:
            self._first_s = self._last_s
            self._check_in(_QUIET_S)

    def _check_in(self, seconds: float) -> None:
        self._consumer.hub.call_later(seconds, self._check)

    def _check(self) -> None:
        if not self._requests:
            return
        due_s = max(self._not_before_s, min(self._last_s + _QUIET_S, self._first_s + _MAX_DELAY_S))
        wait_s = due_s - time.monotonic()
        if wait_s > 0:
            self._check_in(wait_s)
        else:
            self._settle_batch()

    def _settle_batch(self) -> None:
        began_s = time.monotonic()
        if began_s < self._not_before_s:
            return  # A check is scheduled for then.
        requests = self._requests
        self.event_dispatcher.flush()
        for request in requests[self._accepted :]:
            request.on_accepted(os.getpid(), began_s)
        self._accepted = len(requests)
        try:
            counts = self._settle([(tuple(request.args), request.kwargs) for request in requests])
        except NotSettled as error:
            self._not_before_s = time.monotonic() + error.wait_s
            self._check_in(error.wait_s)
            return
        self._requests, self._weight, self._accepted = [], 0, 0
        self._acknowledge(requests)
        # The counts are those of the whole batch; they are not known for each message.
        summary = ", ".join(f"{name} {count}" for name, count in {"messages": len(requests), **counts}.items())
        for request in requests:
            costs = shown_costs(request.kwargs.get("events"))
            request.on_success((False, f"{costs} ({summary})", time.monotonic() - began_s))

    def _acknowledge(self, requests: list[Any]) -> None:
        """Acknowledge all requests in one round trip."""
        for request in requests:
            request.acknowledged = True  # Otherwise Celery acknowledges each request again if this fails.
        try:
            with batched_acks(requests[0].message.channel):
                for request in requests:
                    request.message.ack()
        except self._consumer.connection_errors as error:
            logger.warning("settled but not acknowledged; the broker will redeliver the messages: %r", error)


class _DeferredDispatcher:
    """Celery's monitoring dispatcher, but `task-received` is sent per batch: one by one costs a round trip each."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._deferred: list[tuple[str, dict[str, Any]]] = []

    @property
    def enabled(self) -> bool:
        return bool(self._dispatcher and self._dispatcher.enabled)

    def send(self, kind: str, **fields: Any) -> None:
        if kind == "task-received":
            self._deferred.append((kind, fields))
        else:
            self._dispatcher.send(kind, **fields)

    def flush(self) -> None:
        deferred, self._deferred = self._deferred, []
        for kind, fields in deferred:
            self._dispatcher.send(kind, **fields)


def _weight(kwargs: dict[str, Any]) -> int:
    """Return how much of a batch the message fills, in events."""
    events = kwargs.get("events")
    return len(events) if isinstance(events, list) and events else _WEIGHT_OF_INVALID
