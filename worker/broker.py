"""Celery's transports, hardened: no message stops a worker, and none is dropped.

Each message is sanitized (`worker.sanitize`) before Celery sees it. Sending monitoring data never blocks a worker
while its broker is down.
"""

from __future__ import annotations

import base64
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import redis
from celery.app.amqp import AMQP
from celery.events.event import EVENT_EXCHANGE_NAME
from kombu import connection as kombu_connection
from kombu.transport import pyamqp, virtual
from kombu.transport import redis as kombu_redis

from daycap.protocol.wire import FINALIZE_QUEUE, MAX_MESSAGE_BYTES
from worker.health import health
from worker.sanitize import OUR_QUEUES, Message, sanitized, too_large, unreadable

logger = logging.getLogger("daycap.worker")


class RedisQoS(kombu_redis.QoS):
    """Tracks unacknowledged messages. Many of them can be acknowledged in one round trip."""

    _pending_acks: list[str] | None = None

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record the message as unacknowledged.

        A server that is full, or became a replica, refuses the record. The message has already left its queue, so
        the worker keeps it.
        """
        try:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:
            logger.warning("the broker could not record a message as unacknowledged; settling it anyway: %r", error)
            virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def restore_visible(self, *args: Any, **kwargs: Any) -> Any:
        """Requeue the messages of lost workers. A full server refuses that; the worker goes on and retries later."""
        try:
            return super().restore_visible(*args, **kwargs)  # type: ignore[no-untyped-call]
        except redis.OutOfMemoryError as error:
            logger.debug("unacknowledged messages are not restored: %r", error)

    @contextmanager
    def batched_acks(self) -> Iterator[None]:
        """Collect acknowledgements and send them to the server on exit."""
        tags: list[str] = []
        self._pending_acks = tags
        try:
            yield
        finally:
            self._pending_acks = None
            if tags:
                with self.pipe_or_acquire() as pipe:
                    pipe.zrem(self.unacked_index_key, *tags).hdel(self.unacked_key, *tags).execute()

    def ack(self, delivery_tag: str) -> None:
        if self._pending_acks is None:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        else:
            self._pending_acks.append(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]


class RedisChannel(kombu_redis.Channel):
    """A channel that sanitizes each message before Celery sees it."""

    QoS = RedisQoS

    def batched_acks(self) -> AbstractContextManager[None]:
        """See `RedisQoS.batched_acks`."""
        return self.qos.batched_acks()  # type: ignore[no-any-return]

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return one client per pool: kombu creates one per command, which takes longer than the command."""
        pool = self.async_pool if asynchronous else self.pool
        clients = self.__dict__.setdefault("_clients", {})
        if clients.get(asynchronous, (None, None))[0] is not pool:
            clients[asynchronous] = (pool, super()._create_client(asynchronous))  # type: ignore[no-untyped-call]
        return clients[asynchronous][1]

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection.client is None:
            # The connection was garbage-collected while the broker restarted. Celery retries after a
            # ConnectionError; the AttributeError that kombu raises here would end the worker.
            raise redis.ConnectionError("the connection to the broker is gone")
        return super()._connparams(asynchronous)  # type: ignore[no-untyped-call]

    def _get_client(self) -> Any:
        stock: Any = super()._get_client()  # type: ignore[no-untyped-call]

        class Client(stock):  # type: ignore[misc]
            """Returns well-formed messages only."""

            def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
                reply = super().parse_response(connection, command_name, **options)
                if command_name == "BRPOP" and reply:
                    queue, item = reply
                    return queue, well_formed(queue, item)
                return reply

        return Client


class RedisTransport(kombu_redis.Transport):
    """Redis. Every server error is transient: the server is loading, is a replica, cannot write, has a new password."""

    Channel = RedisChannel
    connection_errors = (*kombu_redis.Transport.connection_errors, redis.RedisError)


def batched_acks(channel: Any) -> AbstractContextManager[None]:
    """Return a context that batches the acknowledgements of `channel`, if its transport can."""
    context: AbstractContextManager[None] = getattr(channel, "batched_acks", nullcontext)()
    return context


class Connection(kombu_connection.Connection):
    """A connection that uses the hardened transports for the usual URL schemes.

    It retries once, immediately. By default Celery's workers retry forever when they send a heartbeat or answer an
    inspection, and for 20 s when they store a result. A worker that loses its broker at that moment would hang, deaf
    to SIGTERM, until the broker is back.
    """

    def get_transport_cls(self) -> Any:
        """Return the hardened transport. Naming it in `broker_transport` would change the scheme of displayed URLs."""
        return _HARDENED.get(self.transport_cls) or super().get_transport_cls()  # type: ignore[no-untyped-call]

    def ensure_connection(self, *args: Any, callback: Callable[[], Any] | None = None, **policy: Any) -> Any:
        """See `kombu.Connection.ensure_connection`. Reconnects within five seconds of a recovery instead of thirty.

        Only loops wait here: a worker's and beat's. Waiting for a broker is progress.
        """

        def on_wait() -> None:
            health.progressed()
            if callback is not None:
                callback()

        policy = {"interval_start": 1, "interval_step": 1, "interval_max": 5} | policy
        return super().ensure_connection(*args, callback=on_wait, **policy)  # type: ignore[no-untyped-call]

    def ensure(self, obj: Any, fun: Any, *args: Any, **policy: Any) -> Any:
        """See `kombu.Connection.ensure`."""
        policy |= {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
        return super().ensure(obj, fun, *args, **policy)  # type: ignore[no-untyped-call]


class Messaging(AMQP):  # type: ignore[misc]
    """Makes Celery use `Connection`."""

    Connection = Connection


class AmqpChannel(pyamqp.Channel):
    """A channel that sanitizes each message before Celery sees it."""

    def message_to_python(self, raw_message: Any) -> Any:
        if raw_message.delivery_info.get("routing_key") in OUR_QUEUES:
            _make_well_formed(raw_message)
        return super().message_to_python(raw_message)  # type: ignore[no-untyped-call]

    def basic_publish_confirm(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the broker's confirmation, except for monitoring data, of which each task sends several messages."""
        if kwargs.get("exchange") == EVENT_EXCHANGE_NAME:
            return self._basic_publish(*args, **kwargs)
        return super().basic_publish_confirm(*args, **kwargs)


class AmqpConnection(pyamqp.Connection):
    """A connection that opens `AmqpChannel`s."""

    Channel = AmqpChannel


class AmqpTransport(pyamqp.Transport):
    """RabbitMQ. Every error is transient: a virtual host, permission, password or queue may come back."""

    Connection = AmqpConnection
    connection_errors = recoverable_connection_errors = (
        *pyamqp.Transport.connection_errors,
        *pyamqp.Transport.channel_errors,
    )

    def qos_semantics_matches_spec(self, _connection: Any) -> bool:
        """Return True, so that Celery sets the prefetch limit per consumer: quorum queues support no other."""
        return True


_HARDENED = {
    "redis": RedisTransport,
    "rediss": RedisTransport,
    "amqp": AmqpTransport,
    "pyamqp": AmqpTransport,
    "amqps": AmqpTransport,
}


_LARGEST_ITEM = 2 * MAX_MESSAGE_BYTES
"""Bytes of a base64 body with its headers and kombu's envelope."""


def well_formed(queue: bytes | str, item: bytes | str) -> bytes | str:
    """Return a Redis list's `item` as a valid kombu envelope, whatever it was. Other programs' queues are untouched."""
    name = (queue.decode() if isinstance(queue, bytes) else queue).split(kombu_redis.Channel.sep)[0]
    if name not in OUR_QUEUES:
        return item
    reason = too_large(len(item), _LARGEST_ITEM)
    text = _text(item if reason is None else item[:MAX_MESSAGE_BYTES])
    if reason is not None:
        return _envelope(name, unreadable(text, reason))
    try:
        envelope = json.loads(text)
        headers, properties, body = envelope["headers"], envelope["properties"], envelope["body"]
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body, validate=True).decode("utf-8")
        reason = too_large(len(body))
        encoded = (envelope.get("content-type"), envelope.get("content-encoding"))
        reply_to, delivery = properties.get("reply_to"), properties.get("delivery_info")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _envelope(name, unreadable(text))
    if reason is not None:
        return _envelope(name, unreadable(text, reason))
    message = sanitized(name, headers, encoded, reply_to, body, lambda: text)
    return _envelope(name, message, isinstance(delivery, dict) and delivery.get("redelivered") is True)


def _text(raw: bytes | str) -> str:
    return raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else str(raw)


def _envelope(queue: str, message: Message, redelivered: bool = False) -> bytes:
    # If an unreadable message is requeued, it goes to finalize's queue.
    routing_key = FINALIZE_QUEUE if message.for_finalize else queue
    return json.dumps(
        {
            "body": message.body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": message.headers,
            "properties": {
                "correlation_id": message.headers["id"],
                "reply_to": message.reply_to,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": routing_key, "redelivered": redelivered},
                "priority": 0,
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    ).encode()


def _make_well_formed(raw: Any) -> None:
    """Sanitize an AMQP message in place."""
    properties = raw.properties
    headers = properties.get("application_headers") or {}
    encoded = (properties.get("content_type"), properties.get("content_encoding"))
    reason = too_large(len(raw.body))
    body = _text(raw.body if reason is None else raw.body[:MAX_MESSAGE_BYTES])

    def whole() -> str:
        return json.dumps({"headers": headers, "encoded": encoded, "body": body}, default=repr)

    if reason is None:
        queue = raw.delivery_info["routing_key"]
        message = sanitized(queue, headers, encoded, properties.get("reply_to"), body, whole)
    else:
        message = unreadable(whole(), reason)
    raw.body = message.body
    raw.properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "application_headers": message.headers,
        "correlation_id": message.headers["id"],
        "delivery_mode": 2,
    }
    if message.reply_to is not None:
        raw.properties["reply_to"] = message.reply_to
