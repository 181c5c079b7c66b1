"""Send events to the worker through Celery. The producer app never becomes the runner's current app."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu.exceptions import ChannelError

from daycap.delivery.queues import own_queue
from daycap.delivery.refusals import refusal
from daycap.delivery.transport import Transport
from daycap.process import whole
from daycap.protocol.wire import (
    FINALIZE_QUEUE,
    FINALIZE_TASK,
    OPEN_DAY_TASK,
    OPEN_QUEUE,
    SENT_HEADER,
    FinalizeEvent,
    shown_costs,
)
from daycap.urls import celery_broker

_TIMEOUT_S = 3
"""How long a send to a hanging broker may take. Only the sender waits, never the runner."""


class CeleryTransport(Transport):
    """Sends tasks to the broker at `url`."""

    def __init__(self, url: str) -> None:
        self._counter_ms: Callable[[], int | None] = lambda: None
        self._url = celery_broker(url)["broker_url"]
        self._app = producer_app("daycap-runner", url, (FINALIZE_QUEUE, OPEN_QUEUE))
        self._producer: Any = None

    def send(self, events: Sequence[FinalizeEvent]) -> None:
        wire = [event.to_wire() for event in events]
        self._send_task(
            FINALIZE_TASK,
            FINALIZE_QUEUE,
            {"events": wire},
            shown_costs(wire),
        )

    def open_day(self, agent: str, day: str) -> None:
        self._send_task(OPEN_DAY_TASK, OPEN_QUEUE, {"agent": agent, "day": day}, f"{agent} {day}")

    def connect(self) -> None:
        with whole:
            if self._producer is None:
                self._producer = self._app.amqp.Producer(self._app.connection_for_write(self._url))
            try:
                _ = self._producer.channel  # Connects and authenticates.
            except BaseException:
                self._disconnect()
                raise

    def refusal(self, error: Exception) -> str | None:
        return refusal(error)

    def backlog(self) -> int:
        with whole:
            return waiting_messages(self._app, self._url)

    def use_clock(self, counter_ms: Callable[[], int | None]) -> None:
        self._counter_ms = counter_ms

    def forget(self) -> None:
        self._producer = None  # Its socket belongs to the parent: neither close it nor write to it.

    def close(self) -> None:
        self._disconnect()
        self._app.close()

    def _send_task(self, name: str, queue: str, kwargs: dict[str, Any], shown: str) -> None:
        self.connect()
        with whole:
            try:
                self._app.send_task(
                    name,
                    kwargs=kwargs,
                    queue=queue,
                    **self._route(queue),
                    producer=self._producer,
                    retry=False,
                    ignore_result=True,  # Otherwise Celery loads the host program's CELERY_RESULT_BACKEND.
                    argsrepr="()",
                    kwargsrepr=shown,
                    headers={SENT_HEADER: self._counter_ms() or 0},
                    mandatory=True,  # Otherwise RabbitMQ confirms unroutable messages and drops them.
                )
            except BaseException:
                # After a failure the connection's state is unknown: the next send makes a new one.
                self._disconnect()
                raise

    def _route(self, queue: str) -> dict[str, str]:
        """Route by the queue's own exchange on AMQP: permission for the default one allows sending to every queue."""
        return {} if self._url.startswith("redis") else {"exchange": queue, "routing_key": queue}

    def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):
                producer.connection.release()


def producer_app(name: str, url: str, queues: Sequence[str], **settings: Any) -> Celery:
    """Create a Celery app that sends to `queues` of the broker at `url` and never becomes the current app."""
    broker = celery_broker(url)
    # Set loader, settings and broker explicitly: otherwise Celery reads CELERY_LOADER, CELERY_CONFIG_MODULE and
    # CELERY_BROKER_URL, which belong to the host program.
    app = Celery(name, set_as_current=False, loader="celery.loaders.app:AppLoader")
    app.config_from_object(
        {
            **broker,
            "broker_transport": _transport(broker["broker_url"]),
            "task_serializer": "json",
            "accept_content": ["json"],
            "task_ignore_result": True,
            "task_send_sent_event": True,
            "broker_transport_options": _transport_options(url),
            "task_queues": [own_queue(queue) for queue in queues],
            "broker_heartbeat": 0,  # No thread here would answer one; the next send notices a lost connection.
            **settings,
        }
    )
    return app


def result_settings(url: str) -> dict[str, Any]:
    """Celery's settings for the answers that the command line waits for, with the broker at `url`."""
    broker = celery_broker(url)
    return {
        "result_backend": broker["broker_url"] if url.startswith(("redis://", "rediss://")) else "rpc://",
        "redis_backend_use_ssl": broker.get("broker_use_ssl", False),
        "redis_socket_timeout": _TIMEOUT_S,  # Else 120 s on a half-open connection.
        "redis_socket_connect_timeout": _TIMEOUT_S,
        "result_backend_transport_options": {"retry_policy": {"max_retries": 1, "interval_start": 0}},  # Else 20 s.
        "result_accept_content": ["json"],  # Never pickle: anyone who can write to the results could run code.
    }


def ignore_celery_variables(environ: MutableMapping[str, str]) -> None:
    """Drop the variables that Celery prefers to an app's settings: they are another program's."""
    for name in list(environ):
        if name.startswith("CELERY_"):
            del environ[name]


def waiting_messages(app: Celery, url: str | None = None) -> int:
    """Return how many messages wait in the finalize queue of `app`'s broker, except those that a worker holds."""
    with app.connection_for_read(url) as connection:
        try:
            return int(connection.default_channel.queue_declare(FINALIZE_QUEUE, passive=True).message_count)
        except ChannelError:
            return 0  # No queue: on Redis an empty queue does not exist.


def _transport(url: str) -> str:
    """Return kombu's transport name. "amqp" would pick librabbitmq if the host program has it installed."""
    scheme = url.partition("://")[0]
    return "pyamqp" if scheme == "amqp" else scheme


def _transport_options(url: str) -> dict[str, Any]:
    if url.startswith(("redis://", "rediss://")):
        return {
            "socket_timeout": _TIMEOUT_S,
            "socket_connect_timeout": _TIMEOUT_S,
            "socket_keepalive": True,
            "max_retries": 0,  # The sender retries.
        }
    return {"confirm_publish": True, "read_timeout": _TIMEOUT_S, "write_timeout": _TIMEOUT_S, "max_retries": 0}
