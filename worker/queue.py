"""What waits at the broker: since when the oldest message does."""

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

_MOST_LOOKED_AT = 200
"""Messages that are opened to find the oldest. With more of them waiting, the queue has not caught up."""

_UNSETTLED = "daycap.unsettled"

_GAP_S = 0.05
"""A message that a worker has popped and not yet noted as unacknowledged is seen on a second look."""


def held_back_s(settings: Settings) -> int:
    """How many seconds a broker waits for a worker that has messages and is silent; then others get them."""
    return min(30, max(5, round(settings.lease_ttl_seconds + settings.grace_seconds)))


def settled_before_ms(app: Celery, now_ms: int) -> int:
    """A time of the counter such that every event sent before it has left the queue; 0 if that is not known.

    `now_ms` is the counter's time, read before. Whoever calls it reads the ledger afterwards.
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
    # Messages still on their way to the broker are not seen; the grace after a lease's deadline is far longer.
    return min(first, second, now_ms)


def note_unsettled(app: Celery) -> None:
    """Let all workers know that one has messages which the ledger refuses, where the broker does not show them.

    A message of its own, in a queue of its own, says so for as long as a worker may have them unseen.
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
    """How long a message may be with workers that the ledger does not refuse: with one that hangs, and with another."""
    return int(2 * app.conf.broker_heartbeat)


def _unsettled() -> Any:
    """The queue of that one message. Its properties never change: they would be refused where it is there."""
    made: Any = Queue
    return made(_UNSETTLED, routing_key=_UNSETTLED, max_length=1, expires=3600)


def _oldest_sent_ms(channel: Any) -> int | None:
    """Over all messages that are ready or unacknowledged; None if one of them does not say."""
    client = channel.client
    messages: list[Any] = []
    # Ready first, then unacknowledged: a message moves in this direction only, so that none slips through.
    for priority in channel.priority_steps:
        ready = channel._q_for_pri(FINALIZE_QUEUE, priority)
        if client.llen(ready) > _MOST_LOOKED_AT:
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
    """When the message was sent; far in the future if it is not one of finalize's."""
    try:
        envelope = json.loads(message)
        if isinstance(envelope, list):  # An unacknowledged message comes with its exchange and routing key.
            envelope = envelope[0]
        if envelope["properties"]["delivery_info"]["routing_key"] != FINALIZE_QUEUE:
            return _FAR
        sent_ms = envelope["headers"].get(SENT_HEADER)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    return sent_ms if isinstance(sent_ms, int) and sent_ms > 0 else None
