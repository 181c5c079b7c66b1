"""The queues that runners and workers share: declared if missing, otherwise used as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.entity import Exchange, Queue

_FORBIDDEN, _NOT_THERE = 403, 404


def own_queue(name: str) -> Any:
    """Return the queue `name`, bound to an exchange of the same name."""
    queue: Any = _OwnQueue
    exchange: Any = Exchange
    return queue(name, exchange(name), name)


class _OwnQueue(Queue):
    """A queue that an operator may have created on AMQP, with another type (quorum) or with limits.

    Declaring an existing queue with other arguments is an error on AMQP, so this checks for it first. Once it exists,
    write permission on its exchange is enough.
    """

    def declare(self, nowait: bool = False, channel: Any = None) -> Any:
        queue: Any = self
        channel = channel or queue.channel
        if channel.connection.client.transport.driver_type != "amqp":
            return super().declare(nowait=nowait, channel=channel)  # type: ignore[no-untyped-call]
        if not _done(channel, lambda own: queue.exchange(own).declare(passive=True)):
            queue.exchange(channel).declare()
        if not _done(channel, lambda own: queue.bind(own).queue_declare(passive=True)):
            queue.bind(channel).queue_declare()
        _done(channel, lambda own: queue.bind(own).queue_bind())  # If forbidden: a worker has bound it.
        return queue.name


def _done(channel: Any, what: Callable[[Any], Any]) -> bool:
    """Run `what` on its own channel, which an error closes. Returns False if the target is missing or forbidden."""
    with channel.connection.channel() as own:
        try:
            what(own)
        except channel.connection.channel_errors as error:
            if error.code not in (_FORBIDDEN, _NOT_THERE):
                raise
            return False
    return True
