"""Finds out how old the oldest message at the broker is."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from celery import Celery
from kombu.entity import Queue

from daycap.protocol.wire import FINALIZE_QUEUE, SENT_HEADER
from daycap.settings import Settings

logger = logging.getLogger("daycap.worker")

_MOST_READ = 200
"""Messages that are decoded to find the oldest. A longer queue has not caught up."""

_UNSETTLED = "daycap.unsettled"

_GAP_S = 0.05
"""Seconds between two reads: the second one sees a message that a worker had popped but not yet recorded."""


def held_back_s(settings: Settings) -> int:
    """Return the seconds after which the broker redelivers the messages of a silent worker to others."""
    return min(30, max(5, round(settings.lease_ttl_seconds + settings.grace_seconds)))


def settled_before_ms(app: Celery, now_ms: int) -> int:
    """Return a counter time such that every event sent before it has left the queue; 0 if unknown.

    `now_ms` is the counter's time, read before this call. Read the ledger after it.
    """
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        if not hasattr(channel, "unacked_key"):
            waiting = channel.queue_declare(FINALIZE_QUEUE, passive=True).message_count
            waiting += _unsettled()(channel).queue_declare().message_count
            return 0 if waiting else now_ms - 1000 * _unseen_s(app)
        first = _oldest_sent_ms(channel)
        time.sleep(_GAP_S)
        second = _oldest_sent_ms(channel)
    if first is None or second is None:
        return 0
    # Messages on their way to the broker are not seen; the grace after a lease's deadline is much longer.
    return min(first, second, now_ms)


def note_unsettled(app: Celery) -> None:
    """Tell all workers that this one holds unsettled messages, if the broker does not list unacknowledged messages.

    A message in a separate queue is the sign. It expires when no worker can still hold them.
    """
    if app.connection_for_write().transport.driver_type != "amqp":
        return
    try:
        with app.producer_or_acquire() as producer:
            queue = _unsettled()
            producer.publish({}, routing_key=queue.name, declare=[queue], expiration=_unseen_s(app), retry=True)
    except Exception as error:
        logger.warning("could not tell the other workers that events are unsettled: %r", error)


def _unseen_s(app: Celery) -> int:
    """Return how long workers may hold a message unseen without a ledger failure: one that hangs, then another one."""
    return int(2 * app.conf.broker_heartbeat)


def _unsettled() -> Any:
    """Return the queue of that message. Never change its properties: a broker refuses them if the queue exists."""
    queue_type: Any = Queue  # Untyped.
    return queue_type(_UNSETTLED, routing_key=_UNSETTLED, max_length=1, expires=3600)


def _oldest_sent_ms(channel: Any) -> int | None:
    """Return when the oldest ready or unacknowledged message was sent; None if one of them has no time."""
    client = channel.client
    messages: list[Any] = []
    # Ready first, then unacknowledged: messages move only in this direction, so none is missed.
    for priority in channel.priority_steps:
        ready = channel._q_for_pri(FINALIZE_QUEUE, priority)
        if client.llen(ready) > _MOST_READ:
            return None
        messages += client.lrange(ready, 0, -1)
    messages += client.hvals(channel.unacked_key)
    oldest = _FAR
    for message in messages:
        sent_ms = _sent_ms(message)
        if sent_ms is None:
            return None
        oldest = min(oldest, sent_ms)
    return oldest


_FAR = 2**62


def _sent_ms(message: bytes | str) -> int | None:
    """Return when the message was sent; far in the future if it is not a finalize message."""
    try:
        envelope = json.loads(message)
        if isinstance(envelope, list):  # An unacknowledged message is stored with its exchange and routing key.
            envelope = envelope[0]
        if envelope["properties"]["delivery_info"]["routing_key"] != FINALIZE_QUEUE:
            return _FAR
        sent_ms = envelope["headers"].get(SENT_HEADER)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    return sent_ms if isinstance(sent_ms, int) and sent_ms > 0 else None
