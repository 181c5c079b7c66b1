"""Dead letters: payloads that could not be settled, stored as they arrived, with the reason."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.errors import InvalidInput, Refused
from daycap.ledger.engine import Ledger, insert
from daycap.ledger.tables import dead_letters
from daycap.protocol.dead_letter import Kind

LONGEST_PAYLOAD = 1_000_000
_LONGEST_REASON = 500
_LONGEST_EVENT = 4_000
"""A longer payload is not an event, so it is not searched for an agent's name."""
_MOST_AT_ONCE = 1000
_PREFIX = re.compile(r"[0-9a-f]{4,32}")


class UnknownDeadLetter(Refused):
    """there is no such dead letter; list them with: daycap dead-letters list"""


class DeadLetter(NamedTuple):
    """One payload that could not be settled."""

    kind: Kind
    reason: str
    payload: object

    @property
    def id(self) -> str:
        """A digest of kind and payload, so that the same letter always has the same id."""
        return hashlib.sha256(f"{self.kind} {self.text}".encode()).hexdigest()[:32]

    @property
    def text(self) -> str:
        """The payload as canonical ASCII JSON, truncated to a million characters."""
        try:
            text = json.dumps(self.payload, sort_keys=True, separators=(",", ":"), default=repr)
        except (TypeError, ValueError, RecursionError):
            # No message should cause this; if one ever does, it must not be retried forever.
            text = json.dumps(f"a {type(self.payload).__name__} that JSON cannot represent")
        return text[:LONGEST_PAYLOAD]


class Letter(NamedTuple):
    """A dead letter as stored in the ledger. Times are UTC milliseconds."""

    id: str
    kind: str
    agent: str | None
    reason: str
    times: int
    first_seen_at: int
    last_seen_at: int
    payload: str | None
    """JSON, as written by `DeadLetter.text`; None in a list."""


def store(connection: sa.Connection, letters: Iterable[DeadLetter], now_ms: int) -> None:
    """Write the letters in the caller's transaction. A letter that exists already gets a higher count."""
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
    statement = insert(connection.dialect.name, dead_letters)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["dead_letter_id"],
            set_={
                "reason": statement.excluded.reason,
                "last_seen_at": statement.excluded.last_seen_at,
                "times": dead_letters.c.times + 1,
            },
        ),
        sorted(rows, key=lambda row: str(row["dead_letter_id"])),
    )


def count(ledger: Ledger) -> int:
    """Return the number of dead letters."""
    with ledger.reading() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(dead_letters)).scalar_one()


def find(ledger: Ledger, kind: str | None = None, agent: str | None = None, limit: int = 50) -> list[Letter]:
    """Return letters, most recently seen first, optionally of one kind or one agent."""
    if not 1 <= limit <= _MOST_AT_ONCE:
        raise InvalidInput(f"limit must be from 1 to {_MOST_AT_ONCE}")
    columns = dead_letters.c
    statement = _select(kind).order_by(columns.last_seen_at.desc(), columns.dead_letter_id).limit(limit)
    if agent is not None:
        named = f'"agent":{json.dumps(agent)}'
        statement = statement.where(
            sa.func.length(columns.payload) <= _LONGEST_EVENT, columns.payload.contains(named, autoescape=True)
        )
    with ledger.reading() as connection:
        return [_letter(row)._replace(payload=None) for row in connection.execute(statement)]


def get(ledger: Ledger, prefix: str) -> Letter:
    """Return the letter whose id starts with `prefix`. Raises `UnknownDeadLetter`, `InvalidInput` if several do."""
    with ledger.reading() as connection:
        (letter_id,) = _resolve(connection, [prefix])
        return get_all(connection, [letter_id])[0]


def get_all(connection: sa.Connection, ids: Sequence[str], *, lock: bool = False) -> list[Letter]:
    """Return the letters that still exist, with payloads, by id. `lock` them if they are about to be deleted."""
    columns = dead_letters.c
    statement = sa.select(dead_letters).where(columns.dead_letter_id.in_(ids)).order_by(columns.dead_letter_id)
    return [_letter(row) for row in connection.execute(statement.with_for_update() if lock else statement)]


def next_ids(ledger: Ledger, kind: str | None, after: str, limit: int) -> list[str]:
    """Return the next ids after `after`, in order."""
    column = dead_letters.c.dead_letter_id
    with ledger.reading() as connection:
        statement = _select(kind).with_only_columns(column).where(column > after).order_by(column).limit(limit)
        return list(connection.scalars(statement))


def resolve(ledger: Ledger, prefixes: Iterable[str]) -> list[str]:
    """Return the id for each prefix. Raises `UnknownDeadLetter`, and `InvalidInput` for an ambiguous prefix."""
    with ledger.reading() as connection:
        return _resolve(connection, prefixes)


def remove(ledger: Ledger, letter_id: str) -> None:
    """Delete a letter whose event has been settled."""
    with ledger.writing() as connection:
        connection.execute(sa.delete(dead_letters).where(dead_letters.c.dead_letter_id == letter_id))


def drop(ledger: Ledger, prefixes: Iterable[str], record: Callable[[Letter], None]) -> list[str]:
    """Delete letters permanently, all or none. Returns their ids.

    Calls `record` with each letter before the commit: the letter holds the only copy of its payload. If `record`
    raises, nothing is deleted.
    """
    with ledger.writing() as connection:
        ids = _resolve(connection, prefixes)
        for letter in get_all(connection, ids, lock=True):  # Locked in the order in which `store` writes.
            record(letter)
        connection.execute(sa.delete(dead_letters).where(dead_letters.c.dead_letter_id.in_(ids)))
    return ids


def _select(kind: str | None) -> sa.Select[Any]:
    if kind is None:
        return sa.select(dead_letters)
    if kind not in list(Kind):
        raise InvalidInput(f"kind must be one of {', '.join(Kind)}")
    return sa.select(dead_letters).where(dead_letters.c.kind == kind)


def _resolve(connection: sa.Connection, prefixes: Iterable[str]) -> list[str]:
    column = dead_letters.c.dead_letter_id
    ids: dict[str, None] = {}
    prefixes = list(prefixes)
    if len(prefixes) > _MOST_AT_ONCE:
        raise InvalidInput(f"{len(prefixes):,} dead letters named; at most {_MOST_AT_ONCE:,} are allowed at once")
    for prefix in prefixes:
        if not _PREFIX.fullmatch(prefix):
            raise InvalidInput(f"not the start of a dead letter's id (4 to 32 hex digits): {prefix[:40]!r}")
        # A range of the key: LIKE would read the whole table. "g" sorts after every hex digit.
        found = list(connection.scalars(sa.select(column).where(column >= prefix, column < f"{prefix}g").limit(2)))
        if not found:
            raise UnknownDeadLetter(f"{prefix}: {UnknownDeadLetter.__doc__}")
        if len(found) > 1:
            raise InvalidInput(f"{prefix}: several dead letters start with this; give more of the id")
        ids[found[0]] = None
    return list(ids)


def _letter(row: Any) -> Letter:
    return Letter(
        row.dead_letter_id,
        row.kind,
        _agent(row.payload),
        row.reason,
        row.times,
        row.first_seen_at,
        row.last_seen_at,
        row.payload,
    )


def _agent(payload: str) -> str | None:
    if len(payload) > _LONGEST_EVENT:
        return None
    try:
        event = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    agent = event.get("agent") if isinstance(event, dict) else None
    return agent if isinstance(agent, str) else None
