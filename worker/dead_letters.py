"""Dead letters: what could not be settled, kept as it arrived, with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

import sqlalchemy as sa

from worker.ledger import insert
from worker.schema import dead_letters

_LONGEST_PAYLOAD = 1_000_000
_LONGEST_REASON = 500


class Kind(StrEnum):
    """Why an event, or a whole message, could not be settled."""

    MALFORMED = "malformed"
    """It is not of the wire's form."""
    UNKNOWN_AGENT = "unknown_agent"
    """There is no account to charge."""
    WRONG_LEASE = "wrong_lease"
    """The ledger knows the lease as another agent's or another day's."""
    WRONG_DAY = "wrong_day"
    """The day is not yet there."""
    DAY_CLOSED = "day_closed"
    """The day's books are closed."""
    CONFLICT = "conflict"
    """The hold was settled before, with another payload."""
    FAILED = "failed"
    """The ledger refused the row, whatever it was tried with."""


class DeadLetter(NamedTuple):
    """One payload that could not be settled."""

    kind: Kind
    reason: str
    payload: object

    @property
    def id(self) -> str:
        """A digest of kind and payload: the same letter has the same id each time it arrives."""
        return hashlib.sha256(f"{self.kind} {self.text}".encode()).hexdigest()[:32]

    @property
    def text(self) -> str:
        """The payload as JSON in ASCII, the same for equal payloads, cut at a million characters."""
        text = json.dumps(self.payload, sort_keys=True, separators=(",", ":"), default=repr)
        return text[:_LONGEST_PAYLOAD]


def store(connection: sa.Connection, letters: Iterable[DeadLetter], now_ms: int) -> None:
    """Write the letters in the caller's transaction; one that was there before is counted once more."""
    rows = [
        {
            "dead_letter_id": letter.id,
            "kind": letter.kind.value,
            "reason": letter.reason[:_LONGEST_REASON],
            "payload": letter.text,
            "first_seen_at": now_ms,
            "last_seen_at": now_ms,
            "times": 1,
        }
        for letter in letters
    ]
    if not rows:
        return
    statement = insert(connection, dead_letters)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["dead_letter_id"],
            set_={"last_seen_at": statement.excluded.last_seen_at, "times": dead_letters.c.times + 1},
        ),
        sorted(rows, key=lambda row: str(row["dead_letter_id"])),
    )
