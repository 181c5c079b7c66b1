"""What a worker takes from a queue: every message is made anew, from what of it is known to be good.

A stock worker ends, or discards the message, when it has no id, carries a body that is not Celery's, names a task
that it does not have, or sets one of many headers to nonsense. Here such a message becomes a message to
`daycap.finalize` with the unreadable text in it, which ends as a dead letter, with the retries and acknowledgements
of every other. No message can delay or discard an event, or start another task when it is done.
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
"""The keyword arguments under which text that is no message of ours, and why, are handed to finalize."""

_ONLY_TASK = {FINALIZE_QUEUE: FINALIZE_TASK, OPEN_QUEUE: OPEN_DAY_TASK}
"""Runners can write to these queues; administration is taken from its own queue only."""

OUR_QUEUES = frozenset((FINALIZE_QUEUE, OPEN_QUEUE, CONTROL_QUEUE))

_ID = re.compile(r"[!-~]{1,128}")
_DEEPEST = 32
"""Far from what JSON's readers can follow, on whatever stack they are called."""
_TYPE_MARK = {"__type__", "__value__"}
"""An object of just these fields is not JSON to kombu: it makes another type of it, or refuses the message."""
_LONGEST_NUMBER = 40
_MOST_EVENTS = 10 * MAX_EVENTS_PER_MESSAGE
"""A sender that allows itself some more is heard all the same, for its events are money."""
_LONGEST_SHOWN = 100


class Message(NamedTuple):
    """A message that Celery takes for sure: its headers, the ones who wait for its answer, its body in JSON."""

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
    """The message as Celery would have sent it; `whole()` in a message to finalize where it cannot be read."""
    try:
        return _read(queue, headers, encoded, reply_to, body)
    except InvalidInput as error:
        return unreadable(whole(), str(error))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return unreadable(whole())


def unreadable(text: str, reason: str = "not a message of Celery's protocol 2 in JSON") -> Message:
    """A message to finalize that carries text which is none of ours."""
    kwargs = {UNREADABLE: text[:MAX_MESSAGE_BYTES], REASON: reason}
    return Message(_headers(FINALIZE_TASK, str(uuid.uuid4()), {}), None, json.dumps([[], kwargs, {}]))


def too_large(size: int, most: int = MAX_MESSAGE_BYTES) -> str | None:
    """Why what has `size` bytes is not even looked into; None if it may be."""
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
    # A finalize event is never too late: `expires` would discard it.
    if task != FINALIZE_TASK and isinstance(known.get("expires"), str):
        headers["expires"] = known["expires"]
    if type(known.get(SENT_HEADER)) is int:
        headers[SENT_HEADER] = known[SENT_HEADER]
    return headers


def _safe_body(task: str, text: str) -> str:
    """The body in JSON, `text` itself if it can stay. Raises one of the errors above where Celery would stumble."""
    (args, kwargs, embed), exact = _decoded(text)
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)):
        raise InvalidInput("not a body of Celery's protocol 2")
    events = kwargs.get("events")
    if task == FINALIZE_TASK and isinstance(events, list) and len(events) > _MOST_EVENTS:
        raise InvalidInput(f"a message of {len(events):,} events; {MAX_EVENTS_PER_MESSAGE} are allowed")
    if exact and text.isascii() and not any(embed.values()) and _harmless([args, kwargs, embed]):
        return text
    if task == FINALIZE_TASK and not args and set(kwargs) == {"events"} and isinstance(events, list):
        # One bad event is handed on as text, so that it does not stop the rest of its batch.
        kwargs = {"events": [event if _harmless(event) else json.dumps(event) for event in events]}
    if not _harmless([args, kwargs]):
        raise InvalidInput("not JSON that Celery takes")
    return json.dumps([args, kwargs, {}])


def _decoded(text: str) -> tuple[Any, bool]:
    """What is in the body, and whether it is that exactly: numbers too long for Python become text."""
    try:
        return json.loads(text), True
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(
            text, parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_NUMBER else digits
        ), False


def _harmless(value: Any, deepest: int = _DEEPEST) -> bool:
    """Whether kombu decodes the value to what it is, and no reader runs out of stack."""
    if isinstance(value, dict):
        if value.keys() == _TYPE_MARK:
            return False
        value = value.values()
    elif not isinstance(value, list):
        return True
    return deepest > 0 and all(_harmless(inner, deepest - 1) for inner in value if isinstance(inner, dict | list))
