"""What a provider's answer says that the call used, read as its bytes pass by: JSON, or a stream of events."""

from __future__ import annotations

import json
from typing import Any

from daycap.http_calls import USUAL_TIERS
from daycap.usage_fields import merged

_NOT_BILLED = {400, 401, 402, 403, 404, 405, 413, 415, 422, 429}
_LAST_EVENTS = {"message_stop", "response.completed", "response.incomplete", "response.failed"}
_TELLING = tuple(f'"{word}"'.encode() for word in ("usage", *_LAST_EVENTS))


class UsageReader:
    """Reads one answer.

    `over`: it was heard to its end, so that `usage` is what the call used, and `service_tier` the one that it was
    served at: empty for the usual one, None where the answer does not say.
    """

    def __init__(self, status: int, content_type: str) -> None:
        self._status = status
        self._events = content_type.partition(";")[0].strip().lower() == "text/event-stream"
        self._rest = bytearray()
        self._usage: dict[str, object] = {}
        self.service_tier: str | None = None
        self.over = False

    @property
    def usage(self) -> dict[str, object] | None:
        """What all events together said, None if none said anything."""
        return self._usage or None

    @property
    def not_billed(self) -> bool:
        """Whether the status says that nothing was billed. Some bill a request that their filter stopped: a 400."""
        refused = 300 <= self._status < 400 or self._status in _NOT_BILLED
        if self._status == 400 and not self.over:
            return False  # Given up: what it would have said is not known.
        return refused and not self._usage and b"content_filter" not in self._rest

    def feed(self, data: bytes) -> bool:
        """Take a piece of the answer; returns whether that was the end of a stream of events."""
        self._rest += data
        if not self._events:
            return False
        *lines, self._rest = self._rest.replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(bytes(line[5:]).strip())
        return self.over

    def close(self, *, whole: bool) -> None:
        """There is no more; `whole` if there was an end."""
        if whole and not self._events:
            self._said(self._rest)
            self.over = True

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.over = True
        elif any(word in data for word in _TELLING):
            event = self._said(data)
            kind = event.get("type")
            self.over = self.over or (isinstance(kind, str) and kind in _LAST_EVENTS)

    def _said(self, data: bytes | bytearray) -> dict[str, Any]:
        try:
            said = json.loads(data)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(said, dict):
            return {}
        # Chat completions have it outside, Responses and Anthropic's first event within; later ones say more.
        for each in (said, said.get("response"), said.get("message")):
            if isinstance(each, dict):
                usage, tier = each.get("usage"), each.get("service_tier")
                if isinstance(usage, dict):
                    self._usage = merged(self._usage, usage)
                if isinstance(tier, str):
                    self.service_tier = "" if tier in USUAL_TIERS else tier
        return said
