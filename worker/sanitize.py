"""Sanitize the messages that a worker takes: rebuild each one from the parts that are known to be valid.

A stock worker exits, or discards the message, if a message has no id, has a body that is not Celery's, names an
unknown task, or has an invalid value in one of many headers. Here such a message becomes a `daycap.finalize` message
that contains the unreadable text and ends as a dead letter, with the usual retries and acknowledgement. No message can
delay or discard an event, or trigger another task.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from daycap.errors import InvalidInput
from daycap.protocol.wire import (
    CONTROL_QUEUE,
    FINALIZE_QUEUE,
    FINALIZE_TASK,
    MAX_EVENTS_PER_MESSAGE,
    MAX_MESSAGE_BYTES,
    OPEN_DAY_TASK,
    OPEN_QUEUE,
    SENT_HEADER,
)

UNREADABLE, REASON = "unreadable", "reason"
"""Keyword arguments of finalize for an unreadable message: its text, and why it is unreadable."""

_ONLY_TASK = {FINALIZE_QUEUE: FINALIZE_TASK, OPEN_QUEUE: OPEN_DAY_TASK}
"""The only task allowed in each queue that runners can write to. Administration has its own queue."""

OUR_QUEUES = frozenset((FINALIZE_QUEUE, OPEN_QUEUE, CONTROL_QUEUE))

_ID = re.compile(r"[!-~]{1,128}")
_MAX_DEPTH = 32
"""Nesting that every JSON decoder handles, however deep the stack is already."""
_TYPE_MARK = {"__type__", "__value__"}
"""kombu decodes an object with exactly these fields to another type, or rejects the message."""
_LONGEST_NUMBER = 40
_MOST_EVENTS = 10 * MAX_EVENTS_PER_MESSAGE
"""More than a sender may put in a message: events are money, so a slightly large message is accepted."""
_LONGEST_SHOWN = 100


class Message(NamedTuple):
    """A message that Celery accepts: its headers, the queue for its result, and its body as JSON."""

    headers: dict[str, Any]
    reply_to: str | None
    body: str

    @property
    def for_finalize(self) -> bool:
        return bool(self.headers["task"] == FINALIZE_TASK)


def sanitized(
    queue: str,
    headers: Mapping[str, Any],
    encoded: tuple[object, object],
    reply_to: object,
    body: str,
    whole: Callable[[], str],
) -> Message:
    """Return the message as Celery would have sent it; if it is unreadable, a finalize message with `whole()`."""
    try:
        return _read(queue, headers, encoded, reply_to, body)
    except InvalidInput as error:
        return unreadable(whole(), str(error))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return unreadable(whole())


def unreadable(text: str, reason: str = "not a message of Celery's protocol 2 in JSON") -> Message:
    """Return a finalize message that contains unreadable text."""
    kwargs = {UNREADABLE: text[:MAX_MESSAGE_BYTES], REASON: reason}
    return Message(_headers(FINALIZE_TASK, str(uuid.uuid4()), {}), None, json.dumps([[], kwargs, {}]))


def too_large(size: int, most: int = MAX_MESSAGE_BYTES) -> str | None:
    """Return why a message of `size` bytes is not read; None if it may be."""
    return None if size <= most else f"a message of {size:,} bytes; at most {most:,} are read"


def _read(
    queue: str, headers: Mapping[str, Any], encoded: tuple[object, object], reply_to: object, body: str
) -> Message:
    task, task_id = headers["task"], headers["id"]
    if not isinstance(task, str) or not isinstance(task_id, str) or not _ID.fullmatch(task_id):
        raise InvalidInput("not a message of Celery's protocol 2")
    if encoded != ("application/json", "utf-8") or headers.get("compression"):
        raise InvalidInput("not JSON")
    if task != _ONLY_TASK.get(queue, task):
        raise InvalidInput(f"another task in the queue of {_ONLY_TASK[queue]}")
    return Message(
        _headers(task, task_id, headers), reply_to if isinstance(reply_to, str) else None, _safe_body(task, body)
    )


def _headers(task: str, task_id: str, known: Mapping[str, Any]) -> dict[str, Any]:
    headers = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": str(known.get("argsrepr", "()"))[:_LONGEST_SHOWN],
        "kwargsrepr": str(known.get("kwargsrepr", "{}"))[:_LONGEST_SHOWN],
    }
    if isinstance(known.get("ignore_result"), bool):
        headers["ignore_result"] = known["ignore_result"]
    # `expires` would discard a late finalize event, and none is too late.
    if task != FINALIZE_TASK and isinstance(known.get("expires"), str):
        headers["expires"] = known["expires"]
    if type(known.get(SENT_HEADER)) is int:
        headers[SENT_HEADER] = known[SENT_HEADER]
    return headers


def _safe_body(task: str, text: str) -> str:
    """Return a safe JSON body: `text` itself if it is safe. Raises what `sanitized` catches if Celery would fail."""
    (args, kwargs, embed), exact = _decoded(text)
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)):
        raise InvalidInput("not a body of Celery's protocol 2")
    events = kwargs.get("events")
    if task == FINALIZE_TASK and isinstance(events, list) and len(events) > _MOST_EVENTS:
        raise InvalidInput(f"a message of {len(events):,} events; {MAX_EVENTS_PER_MESSAGE} are allowed")
    if exact and text.isascii() and not any(embed.values()) and _harmless([args, kwargs, embed]):
        return text
    if task == FINALIZE_TASK and not args and set(kwargs) == {"events"} and isinstance(events, list):
        # Pass a bad event on as text, so that it does not block the rest of its batch.
        kwargs = {"events": [event if _harmless(event) else json.dumps(event) for event in events]}
    if not _harmless([args, kwargs]):
        raise InvalidInput("not JSON that Celery accepts")
    return json.dumps([args, kwargs, {}])


def _decoded(text: str) -> tuple[Any, bool]:
    """Decode the body. Returns it and whether it is exact: numbers too long for Python become text."""
    try:
        return json.loads(text), True
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(
            text, parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_NUMBER else digits
        ), False


def _harmless(value: Any, depth: int = _MAX_DEPTH) -> bool:
    """Return whether kombu decodes the value unchanged and no decoder overflows its stack."""
    if isinstance(value, dict):
        if value.keys() == _TYPE_MARK:
            return False
        value = value.values()
    elif not isinstance(value, list):
        return True
    return depth > 0 and all(_harmless(inner, depth - 1) for inner in value if isinstance(inner, dict | list))
