"""Celery's Redis transport, hardened: nothing that arrives in a queue stops a worker, and nothing is dropped.

A stock worker ends, or discards the message, when an envelope is not JSON, has no id, carries a body that is not
Celery's, or names a task that it does not have. Here such a message becomes a message to `daycap.finalize` with the
unreadable text in it, which ends as a dead letter, with the retries and acknowledgements of every other.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import redis
from kombu.transport import redis as kombu_redis

from daycap.errors import InvalidInput
from daycap.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK, SENT_HEADER

UNREADABLE = "unreadable"
"""The keyword argument under which text that is no message of ours is handed to finalize."""

_DELAYING_HEADERS = ("eta", "expires")
"""A finalize event is neither late nor too late: these would hold it up, or discard it."""


class Channel(kombu_redis.Channel):
    """A channel that looks at each message before Celery does."""

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection.client is None:
            # A connection that was collected while its broker restarted. Celery tries again after a
            # ConnectionError; the AttributeError that would come otherwise ends the worker.
            raise redis.ConnectionError("the connection to the broker is gone")
        return super()._connparams(asynchronous)  # type: ignore[no-untyped-call]

    def _get_client(self) -> Any:
        stock: Any = super()._get_client()  # type: ignore[no-untyped-call]

        class Client(stock):  # type: ignore[misc]
            """Hands out well-formed messages only."""

            def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
                reply = super().parse_response(connection, command_name, **options)
                if command_name == "BRPOP" and reply:
                    queue, item = reply
                    return queue, well_formed(queue, item)
                return reply

        return Client


class Transport(kombu_redis.Transport):
    """What `broker_transport` names."""

    Channel = Channel


def well_formed(queue: bytes | str, item: bytes | str) -> bytes | str:
    """`item` itself if a worker can take it, else a message to finalize that carries it."""
    name = (queue.decode() if isinstance(queue, bytes) else queue).split(kombu_redis.Channel.sep)[0]
    if name not in (FINALIZE_QUEUE, CONTROL_QUEUE):
        return item
    try:
        envelope = json.loads(item)
        body = _check(envelope)
        if name == CONTROL_QUEUE:
            return item
        if envelope["headers"]["task"] != FINALIZE_TASK:
            raise InvalidInput("another task in the queue of finalize")
        if _as_celery_makes_them(envelope["headers"], body):
            return item
        return _message(envelope["headers"]["id"], body[0], body[1], envelope["headers"].get(SENT_HEADER))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        text = item.decode("utf-8", "backslashreplace") if isinstance(item, bytes) else item
        return _message(str(uuid.uuid4()), [], {UNREADABLE: text}, None)


def _check(envelope: Any) -> Any:
    """The message's decoded body. Raises one of the errors above where Celery would stumble."""
    headers, properties = envelope["headers"], envelope["properties"]
    delivery = properties["delivery_info"]
    body = envelope["body"]
    if properties.get("body_encoding") == "base64":
        body = base64.b64decode(body, validate=True)
    args, kwargs, embed = body = json.loads(body)
    shapes: tuple[tuple[object, type], ...] = (
        (headers["task"], str),
        (headers["id"], str),
        (properties["delivery_tag"], str),
        (delivery["exchange"], str),
        (delivery["routing_key"], str),
        (args, list),
        (kwargs, dict),
        (embed, dict),
    )
    if not all(isinstance(value, kind) for value, kind in shapes) or not headers["id"]:
        raise InvalidInput("not a message of Celery's protocol 2")
    encoded = (envelope.get("content-type"), envelope.get("content-encoding"))
    if encoded != ("application/json", "utf-8") or headers.get("compression"):
        raise InvalidInput("not JSON")
    return body


def _as_celery_makes_them(headers: dict[str, Any], body: Any) -> bool:
    plain = headers.get("timelimit") in (None, [None, None]) and not headers.get("group")
    return plain and not any(map(headers.get, _DELAYING_HEADERS)) and not any(body[2].values())


def _message(task_id: str, args: list[Any], kwargs: dict[str, Any], sent_ms: Any) -> bytes:
    """A message to finalize, as Celery would have sent it."""
    body = json.dumps([args, kwargs, {}]).encode()
    headers = {"task": FINALIZE_TASK, "id": task_id, "lang": "py", "argsrepr": "()", "kwargsrepr": "made anew"}
    if sent_ms is not None:
        headers[SENT_HEADER] = sent_ms
    return json.dumps(
        {
            "body": base64.b64encode(body).decode("ascii"),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": FINALIZE_QUEUE},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    ).encode()
