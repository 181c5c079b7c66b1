"""Replay dead letters: settle their payloads again, and remove those that succeed."""

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
    """The outcome for one letter."""

    id: str
    became: str
    """`settled` or `duplicate`: the letter was removed. `refused`: it was not replayed. Otherwise its new kind."""
    reason: str
    charged_micros: int


def replay(deployment: Deployment, prefixes: Iterable[str], replayed_by: str) -> list[Replayed]:
    """Replay the letters whose ids start with these prefixes: as many as fit a time slice, at least one.

    Replays nothing and raises `UnknownDeadLetter` if a letter does not exist.
    """
    return _replay(deployment, dead_letters.resolve(deployment.ledger, prefixes), replayed_by)


def replay_next(deployment: Deployment, kind: str | None, after: str, replayed_by: str) -> list[Replayed]:
    """Replay the letters whose ids follow `after`, of one kind or all. An empty list means that none are left."""
    return _replay(deployment, dead_letters.next_ids(deployment.ledger, kind, after, _AT_ONCE), replayed_by)


def _replay(deployment: Deployment, ids: list[str], replayed_by: str) -> list[Replayed]:
    """Replay as many as a time slice allows, at least one."""
    end_s = time.monotonic() + SLICE_S
    done: list[Replayed] = []
    for letter_id in ids:
        if done and time.monotonic() > end_s:
            break
        with deployment.ledger.reading() as connection:
            found = dead_letters.get_all(connection, [letter_id])
        for letter in found:
            replayed = _replay_one(deployment, letter)
            logger.warning(
                "dead letter %s (%s) replayed by %s: %s", letter.id, letter.kind, replayed_by, replayed.became
            )
            done.append(replayed)
    return done


def _replay_one(deployment: Deployment, letter: Letter) -> Replayed:
    """Settle, then remove the letter. After a crash in between, the next replay finds a duplicate and removes it."""
    now_ms = deployment.publisher.authoritative_ms()
    try:
        payload = payload_of(letter)
        _check_day(deployment.ledger, payload, open_days(deployment.settings, now_ms).oldest)
    except Refused as error:
        return Replayed(letter.id, "refused", str(error), 0)
    # An operator may charge a closed day as long as its settlements are kept, so that a duplicate is detected.
    outcome = settle(deployment.ledger, [payload], kept_days(deployment.settings, now_ms))
    deployment.publisher.publish(deployment.ledger, outcome.snapshots)
    metrics.count(outcome)
    if not outcome.dead_letters:
        dead_letters.remove(deployment.ledger, letter.id)
        return Replayed(letter.id, "settled" if outcome.settled else "duplicate", "", outcome.charged_micros)
    (new_letter,) = outcome.dead_letters
    if new_letter.id != letter.id:  # Settle stored it under its new kind.
        dead_letters.remove(deployment.ledger, letter.id)
    return Replayed(letter.id, new_letter.kind.value, new_letter.reason, 0)


def payload_of(letter: Letter) -> object:
    """Return the event to settle. Raises `Refused` if the payload is not an event, or must not be settled."""
    if letter.kind == Kind.CONFLICT:
        raise Refused("its hold was settled with another payload, and no hold is charged twice")
    text = letter.payload or ""
    if len(text) >= LONGEST_PAYLOAD:
        raise Refused(f"its payload was cut at {LONGEST_PAYLOAD:,} characters")
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("its payload cannot be decoded") from None
    if isinstance(payload, dict) and payload.keys() == {"args", "kwargs"}:
        raise Refused("it is a whole message, not an event; ask its sender to send it again")
    return payload


def _check_day(ledger: Ledger, payload: object, oldest_open: str) -> None:
    """Raise `Refused` if settlements of a closed day were pruned; extending the retention does not restore them."""
    try:
        event = FinalizeEvent.from_wire(payload)
    except DaycapError:
        return  # Settle gives the reason.
    if event.day >= oldest_open:
        return
    days, columns = daily_agent_spending.c, settlements.c
    booked = sa.select(days.settled_count).where(days.agent_account_id == event.agent, days.spending_date == event.day)
    kept = sa.select(sa.func.count()).where(columns.spending_date == event.day, columns.agent_account_id == event.agent)
    with ledger.reading() as connection:
        if (connection.scalar(booked) or 0) != connection.scalar(kept):
            raise Refused(f"settlements of {event.day} were pruned, so whether it was settled is unknown")
