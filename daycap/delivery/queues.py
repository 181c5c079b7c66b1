"""The queues that runners and workers share: made where they are missing, and otherwise taken as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.entity import Exchange, Queue

_FORBIDDEN, _NOT_THERE = 403, 404


def own_queue(name: str) -> Any:
    """The queue `name`, bound to an exchange of its own name."""
    made: Any = _OwnQueue
    exchange: Any = Exchange
    return made(name, exchange(name), name)


class _OwnQueue(Queue):
    """On AMQP an operator may have made the queue: of another type (quorum), or with limits of his own.

    To declare it with other arguments than it has is an error there, so that it is looked for first. Whoever may
    only write to its exchange needs no more than that, once it is there.
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
        _done(channel, lambda own: queue.bind(own).queue_bind())  # Whoever may not need not: a worker has bound it.
        return queue.name


def _done(channel: Any, what: Callable[[Any], Any]) -> bool:
    """Do it on a channel of its own, which an error ends. False if there is no such thing, or if that is forbidden."""
    with channel.connection.channel() as own:
        try:
            what(own)
        except channel.connection.channel_errors as error:
            if error.code not in (_FORBIDDEN, _NOT_THERE):
                raise
            return False
    return True
