"""What waits at the broker: since when the oldest message does."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from celery import Celery

from daycap.wire import FINALIZE_QUEUE, SENT_HEADER

logger = logging.getLogger("daycap.worker")

_MOST_LOOKED_AT = 200
"""Messages that are opened to find the oldest. With more of them waiting, the queue has not caught up."""

_UNSEEN_MS = 60_000
"""Where the broker does not show what workers have taken and not acknowledged: how long that may last."""

_GAP_S = 0.05
"""A message that a worker has popped and not yet noted as unacknowledged is seen on a second look."""


def settled_before_ms(app: Celery, now_ms: int) -> int:
    """A time of the counter such that every event sent before it has left the queue; 0 if that is not known.

    `now_ms` is the counter's time, read before. Whoever calls it reads the ledger afterwards.
    """
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        if not hasattr(channel, "unacked_key"):
            waiting = channel.queue_declare(FINALIZE_QUEUE, passive=True).message_count
            return 0 if waiting else now_ms - _UNSEEN_MS
        first = _oldest_sent_ms(channel)
        time.sleep(_GAP_S)
        second = _oldest_sent_ms(channel)
    if first is None or second is None:
        return 0
    # Messages still on their way to the broker are not seen; the grace after a lease's deadline is far longer.
    return min(first, second, now_ms)


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
