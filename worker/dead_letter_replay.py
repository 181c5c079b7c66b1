"""Replay of dead letters: their payloads go through the very same settle again, and those that succeed are removed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy as sa

from daycap.errors import DaycapError, Refused
from daycap.ledger import dead_letters
from daycap.ledger.dead_letters import LONGEST_PAYLOAD, Letter
from daycap.ledger.engine import Ledger
from daycap.ledger.retention import kept_days, open_days
from daycap.ledger.settle import settle
from daycap.ledger.slices import SLICE_S
from daycap.ledger.tables import daily_agent_spending, settlements
from daycap.protocol.dead_letter import Kind
from daycap.protocol.wire import FinalizeEvent
from worker import metrics
from worker.deployment import Deployment

logger = logging.getLogger("daycap.worker")

_AT_ONCE = 50


class Replayed(NamedTuple):
    """What became of one letter."""

    id: str
    became: str
    """`settled` or `duplicate`: it is removed. `refused`: it was not tried. Else the kind that it has now."""
    reason: str
    charged_micros: int


def replay(parts: Deployment, prefixes: Iterable[str], replayed_by: str) -> list[Replayed]:
    """Replay the letters whose ids begin so: the first ones, and at least one.

    Raises before the first if one is not to be found.
    """
    return _replay(parts, dead_letters.resolve(parts.ledger, prefixes), replayed_by)


def replay_next(parts: Deployment, kind: str | None, after: str, replayed_by: str) -> list[Replayed]:
    """Replay the next letters by id after `after`, of one kind or all; none are left when it returns nothing."""
    return _replay(parts, dead_letters.next_ids(parts.ledger, kind, after, _AT_ONCE), replayed_by)


def _replay(parts: Deployment, ids: list[str], replayed_by: str) -> list[Replayed]:
    """As many as a slice of time allows, and at least one."""
    end_s = time.monotonic() + SLICE_S
    done: list[Replayed] = []
    for letter_id in ids:
        if done and time.monotonic() > end_s:
            break
        with parts.ledger.reading() as connection:
            found = dead_letters.get_all(connection, [letter_id])
        for letter in found:
            replayed = _replay_one(parts, letter)
            logger.warning(
                "dead letter %s (%s) replayed by %s: %s", letter.id, letter.kind, replayed_by, replayed.became
            )
            done.append(replayed)
    return done


def _replay_one(parts: Deployment, letter: Letter) -> Replayed:
    """Settle, then remove: after a crash in between, the next replay finds a duplicate and removes the letter."""
    now_ms = parts.publisher.authoritative_ms()
    try:
        payload = payload_of(letter)
        _check_day(parts.ledger, payload, open_days(parts.settings, now_ms).oldest)
    except Refused as error:
        return Replayed(letter.id, "refused", str(error), 0)
    # An operator may charge a day whose books are closed, as long as its settlements are there to tell a duplicate.
    outcome = settle(parts.ledger, [payload], kept_days(parts.settings, now_ms))
    parts.publisher.publish(outcome.snapshots)
    metrics.count(outcome)
    if not outcome.dead_letters:
        dead_letters.remove(parts.ledger, letter.id)
        return Replayed(letter.id, "settled" if outcome.settled else "duplicate", "", outcome.charged_micros)
    (again,) = outcome.dead_letters
    if again.id != letter.id:  # Settle has kept it under its new kind.
        dead_letters.remove(parts.ledger, letter.id)
    return Replayed(letter.id, again.kind.value, again.reason, 0)


def payload_of(letter: Letter) -> object:
    """The event to settle again. Raises `Refused` where there is none, or where it must not be."""
    if letter.kind == Kind.CONFLICT:
        raise Refused("its hold was settled with another payload, and no hold is charged twice")
    text = letter.payload or ""
    if len(text) >= LONGEST_PAYLOAD:
        raise Refused(f"its payload was cut at {LONGEST_PAYLOAD:,} characters")
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("its payload cannot be read again") from None
    if isinstance(payload, dict) and payload.keys() == {"args", "kwargs"}:
        raise Refused("it is a whole message, not an event; its sender may send it again")
    return payload


def _check_day(ledger: Ledger, payload: object, oldest_open: str) -> None:
    """Raise `Refused` if settlements of a closed day were pruned: a retention made longer does not bring them back."""
    try:
        event = FinalizeEvent.from_wire(payload)
    except DaycapError:
        return  # It cannot be charged; settle says why.
    if event.day >= oldest_open:
        return
    days, columns = daily_agent_spending.c, settlements.c
    booked = sa.select(days.settled_count).where(days.agent_account_id == event.agent, days.spending_date == event.day)
    kept = sa.select(sa.func.count()).where(columns.spending_date == event.day, columns.agent_account_id == event.agent)
    with ledger.reading() as connection:
        if (connection.scalar(booked) or 0) != connection.scalar(kept):
            raise Refused(f"settlements of {event.day} were pruned, so whether it was settled is unknown")
