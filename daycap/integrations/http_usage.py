"""Read a call's usage from the provider's answer as its bytes pass through: JSON, or a stream of chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from daycap.pricing.answer_cost import Answer
from daycap.pricing.request_fields import USUAL_TIERS
from daycap.pricing.usage_fields import merged

_NOT_BILLED = {400, 401, 402, 403, 404, 405, 413, 415, 422, 429}
_LAST_CHUNKS = {"message_stop", "response.completed", "response.incomplete", "response.failed"}
_TELLING = tuple(f'"{word}"'.encode() for word in ("usage", *_LAST_CHUNKS))


class UsageReader:
    """Reads one answer. `over` is true once it was read to its end, so that `answer` is complete."""

    def __init__(self, status: int, content_type: str) -> None:
        self._status = status
        self._is_stream = content_type.partition(";")[0].strip().lower() == "text/event-stream"
        self._rest = bytearray()
        self._usage: dict[str, Any] = {}
        self._searches: int | None = None
        self._models: set[str] = set()
        self._service_tier: str | None = None
        self._complete = self._more_came = False
        self.over = False

    @property
    def answer(self) -> Answer:
        """What all chunks reported. It has no usage if none reported one, or if output followed the last one."""
        usage = {} if self._more_came else self._usage
        if usage and self._searches is not None:
            usage = {"server_tool_use": {"web_search_requests": self._searches}, **usage}
        return Answer(usage or None, frozenset(self._models), self._service_tier)

    @property
    def not_billed(self) -> bool:
        """Whether the status means that nothing was billed. A 400 from a content filter may be billed."""
        refused = 300 <= self._status < 400 or self._status in _NOT_BILLED
        if self._status == 400 and not self.over:
            return False  # Abandoned, so its reason is unknown.
        return refused and not self._usage and b"content_filter" not in self._rest

    def feed(self, data: bytes) -> bool:
        """Read a piece of the answer. Returns whether a stream has ended."""
        self._rest += data
        if not self._is_stream:
            return False
        *lines, self._rest = self._rest.replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._chunk(bytes(line[5:]).strip())
        return self.over

    def close(self, *, whole: bool) -> None:
        """Finish reading; `whole` if the answer ended regularly.

        A stream may lack the chunk that marks its end. The usage in its last chunk is then final if that chunk also
        ended the output; an earlier usage may be partial.
        """
        if self._is_stream:
            self.feed(b"\n")  # The last line may lack its end.
            self.over = self.over or self._complete
        elif whole:
            self._read(self._rest)
            self.over = True

    def _chunk(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.over = True
        elif any(word in data for word in _TELLING):
            chunk = self._read(data)
            kind = chunk.get("type")
            self.over = self.over or (isinstance(kind, str) and kind in _LAST_CHUNKS)
            self._complete = _completes(chunk)
            self._note_output(chunk)
        elif data and not data.startswith(b'{"type":"ping"') and not data.startswith(b'{"type": "ping"'):
            self._complete = False
            if self._usage and not self._more_came:
                self._note_output(_object(data))

    def _note_output(self, chunk: Mapping[str, Any]) -> None:
        """Note output after a usage: some providers report only the input's usage, with their first chunk."""
        if any(isinstance(usage := each.get("usage"), dict) and usage for each in _within(chunk)):
            self._more_came = False
        elif self._usage and _comes_out(chunk):
            self._more_came = True

    def _read(self, data: bytes | bytearray) -> dict[str, Any]:
        chunk = _object(data)
        for each in _within(chunk):
            self._take(each)
        return chunk

    def _take(self, fields: Mapping[str, Any]) -> None:
        usage, tier, model, output = (fields.get(name) for name in ("usage", "service_tier", "model", "output"))
        if isinstance(usage, dict):
            self._usage = merged(self._usage, usage)
        if isinstance(tier, str):
            self._service_tier = "" if tier in USUAL_TIERS else tier
        if isinstance(model, str) and model:
            self._models.add(model)
        if isinstance(output, list):
            self._searches = max(self._searches or 0, sum(map(_is_search, output)))


def _object(data: bytes | bytearray) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _within(chunk: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the objects that may report a usage: the chunk itself, or one inside (Responses, Anthropic)."""
    return (each for each in (chunk, chunk.get("response"), chunk.get("message")) if isinstance(each, dict))


def _comes_out(chunk: Mapping[str, Any]) -> bool:
    """Return whether a chunk carries output."""
    if str(chunk.get("type")).endswith(("_delta", ".delta")):
        return chunk.get("type") != "message_delta"
    choices = chunk.get("choices")
    deltas = [each.get("delta") for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
    return any(value for delta in deltas if isinstance(delta, dict) for name, value in delta.items() if name != "role")


def _is_search(item: object) -> bool:
    """Return whether an item is a billed search. Opening a found page is free."""
    if not isinstance(item, dict) or item.get("type") != "web_search_call":
        return False
    action = item.get("action")
    return not isinstance(action, dict) or action.get("type") in {"search", None}


def _completes(chunk: Mapping[str, Any]) -> bool:
    """Return whether a chunk with a usage also ends the output."""
    if not isinstance(chunk.get("usage"), dict):
        return False
    choices, delta = chunk.get("choices"), chunk.get("delta")
    if isinstance(choices, list):
        # OpenAI's last chunk has only the usage and no choices.
        return all(isinstance(each, dict) and each.get("finish_reason") is not None for each in choices)
    return isinstance(delta, dict) and delta.get("stop_reason") is not None
