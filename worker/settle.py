"""Settle: charge a batch of finalize events to the ledger, each once and none past its day's cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from daycap.clock import wall_ms
from daycap.counter import DaySnapshot
from daycap.errors import DaycapError
from daycap.ledger_reader import read_snapshots
from daycap.money import MAX_MICROS
from daycap.wire import FinalizeEvent
from worker import days
from worker.dead_letters import DeadLetter, Kind, store
from worker.ledger import Ledger, insert, passes
from worker.retention import OpenDays
from worker.schema import daily_agent_spending, lease_totals, settlements


@dataclass(slots=True)
class Outcome:
    """What became of a batch: counts of events, micros, and the days as they are now, to be published."""

    settled: int = 0
    duplicates: int = 0
    charged_micros: int = 0
    uncovered_micros: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)
    snapshots: list[DaySnapshot] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Take in what became of another batch, settled after this one."""
        self.settled += other.settled
        self.duplicates += other.duplicates
        self.charged_micros += other.charged_micros
        self.uncovered_micros += other.uncovered_micros
        self.dead_letters += other.dead_letters
        newer = {(snapshot.agent, snapshot.day) for snapshot in other.snapshots}
        self.snapshots = [s for s in self.snapshots if (s.agent, s.day) not in newer] + other.snapshots


def settle(ledger: Ledger, payloads: Sequence[object], open_days: OpenDays) -> Outcome:
    """Settle `payloads` (events as they came from the queue) in one transaction, and commit it.

    `open_days`: an event of another day becomes a dead letter. Whoever gives `worker.retention.kept_days` instead
    charges closed days too.
    What cannot be settled becomes a dead letter in the same transaction. If the ledger refuses the batch, each
    event is tried alone, so that one bad event never holds up the others. Raises the database's error where
    only time can help (`worker.ledger.passes`); then nothing was settled and all may be sent again.
    """
    try:
        return _settle_batch(ledger, payloads, open_days)
    except Exception as error:
        if passes(error):
            raise
    outcome = Outcome()
    for payload in payloads:
        outcome.add(_settle_alone(ledger, payload, open_days))
    return outcome


def _settle_alone(ledger: Ledger, payload: object, open_days: OpenDays) -> Outcome:
    try:
        return _settle_batch(ledger, [payload], open_days)
    except Exception as error:
        if passes(error):
            raise
        letter = DeadLetter(Kind.FAILED, f"{type(error).__name__}: {error}", payload)
    return keep(ledger, letter)


def keep(ledger: Ledger, letter: DeadLetter) -> Outcome:
    """Store what is not even a batch of events, in a transaction of its own."""
    with ledger.writing() as connection:
        store(connection, [letter], wall_ms())
    return Outcome(dead_letters=[letter])


def _settle_batch(ledger: Ledger, payloads: Sequence[object], open_days: OpenDays) -> Outcome:
    now_ms = wall_ms()
    outcome = Outcome()
    events = _decode(payloads, open_days, outcome.dead_letters)
    with ledger.writing() as connection:
        touched = {(event.agent, event.day) for event in events}
        days.insert_missing(connection, touched, now_ms)
        day_rows = days.lock(connection, touched)
        events = _with_account(events, day_rows, outcome)
        events = _with_own_lease(connection, events, outcome)
        events = _not_settled_yet(connection, events, outcome)
        _write(connection, _charge(events, day_rows, outcome), now_ms)
        store(connection, outcome.dead_letters, now_ms)
        outcome.snapshots = read_snapshots(connection, sorted(day_rows))
    return outcome


def _decode(payloads: Sequence[object], open_days: OpenDays, dead: list[DeadLetter]) -> list[FinalizeEvent]:
    events = []
    for payload in payloads:
        try:
            event = FinalizeEvent.from_wire(payload)
        except DaycapError as error:
            dead.append(DeadLetter(Kind.MALFORMED, str(error), payload))
            continue
        if event.day > open_days.newest:
            dead.append(DeadLetter(Kind.WRONG_DAY, f"{event.day} is after {open_days.newest}", payload))
        elif event.day < open_days.oldest:
            dead.append(DeadLetter(Kind.DAY_CLOSED, f"every day before {open_days.oldest} is closed", payload))
        else:
            events.append(event)
    return events


def _with_account(
    events: list[FinalizeEvent], day_rows: dict[days.AgentDay, Any], outcome: Outcome
) -> list[FinalizeEvent]:
    kept = []
    for event in events:
        if (event.agent, event.day) in day_rows:
            kept.append(event)
        else:
            letter = DeadLetter(Kind.UNKNOWN_AGENT, f"there is no agent {event.agent}", event.to_wire())
            outcome.dead_letters.append(letter)
    return kept


def _with_own_lease(connection: sa.Connection, events: list[FinalizeEvent], outcome: Outcome) -> list[FinalizeEvent]:
    """A lease belongs to the agent and day that the ledger first saw it with."""
    first = {event.lease: event for event in reversed(events)}
    if not first:
        return []
    new = [
        {
            "lease_id": event.lease,
            "agent_account_id": event.agent,
            "spending_date": event.day,
            "drawn_micros": 0,
            "events": 0,
            "last_event": 0,
        }
        for _, event in sorted(first.items())
    ]
    # Inserted before it is read: of two workers that meet a lease for the first time, one waits for the other.
    connection.execute(insert(connection, lease_totals).on_conflict_do_nothing(), new)
    columns = lease_totals.c
    owner = {
        row.lease_id: (row.agent_account_id, row.spending_date)
        for row in connection.execute(
            sa.select(columns.lease_id, columns.agent_account_id, columns.spending_date).where(
                columns.lease_id.in_(first)
            )
        )
    }
    kept = []
    for event in events:
        if owner[event.lease] == (event.agent, event.day):
            kept.append(event)
        else:
            reason = "the lease belongs to agent {} on {}".format(*owner[event.lease])
            outcome.dead_letters.append(DeadLetter(Kind.WRONG_LEASE, reason, event.to_wire()))
    return kept


def _not_settled_yet(connection: sa.Connection, events: list[FinalizeEvent], outcome: Outcome) -> list[FinalizeEvent]:
    """Drop what is settled already, also earlier in this batch; another payload for a hold is a conflict."""
    columns = settlements.c
    known: dict[str, tuple[object, ...]] = {
        row.reservation_id: tuple(row[1:])
        for row in connection.execute(
            sa.select(
                columns.reservation_id,
                columns.agent_account_id,
                columns.spending_date,
                columns.held_micros,
                columns.actual_micros,
            ).where(columns.reservation_id.in_([event.reservation for event in events]))
        )
    }
    kept = []
    for event in events:
        said = (event.agent, event.day, event.held_micros, event.actual_micros)
        settled = known.setdefault(event.reservation, said)
        if settled is said:
            kept.append(event)
        elif settled == said:
            outcome.duplicates += 1
        else:
            reason = "settled before with held {}, actual {}".format(*settled[2:])
            outcome.dead_letters.append(DeadLetter(Kind.CONFLICT, reason, event.to_wire()))
    return kept


def _charge(
    events: list[FinalizeEvent], day_rows: dict[days.AgentDay, Any], outcome: Outcome
) -> list[tuple[FinalizeEvent, int]]:
    """Each event with what is charged for it, in order of arrival: never more than is left of its day's cap."""
    left = {where: max(0, row.cap_micros - row.spent_micros) for where, row in day_rows.items()}
    charged = []
    for event in events:
        where = (event.agent, event.day)
        charge = min(event.actual_micros, left[where])
        left[where] -= charge
        charged.append((event, charge))
        outcome.settled += 1
        outcome.charged_micros += charge
        outcome.uncovered_micros += event.actual_micros - charge
    return charged


def _write(connection: sa.Connection, charged: list[tuple[FinalizeEvent, int]], now_ms: int) -> None:
    if not charged:
        return
    # A plain INSERT: it writes every row or raises, so that the totals below are those of its rows.
    connection.execute(
        sa.insert(settlements),
        [
            {
                "reservation_id": event.reservation,
                "agent_account_id": event.agent,
                "spending_date": event.day,
                "lease_id": event.lease,
                "held_micros": event.held_micros,
                "actual_micros": event.actual_micros,
                "charged_micros": charge,
                "settled_at": now_ms,
            }
            for event, charge in charged
        ],
    )
    _add_to_leases(connection, charged)
    _add_to_days(connection, charged, now_ms)


def _add_to_leases(connection: sa.Connection, charged: list[tuple[FinalizeEvent, int]]) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for event, _ in charged:
        row = rows.setdefault(
            event.lease,
            {
                "lease_id": event.lease,
                "agent_account_id": event.agent,
                "spending_date": event.day,
                "drawn_micros": 0,
                "events": 0,
                "last_event": 0,
            },
        )
        row["drawn_micros"] = min(MAX_MICROS, row["drawn_micros"] + event.drawn_micros)
        row["events"] += 1
        row["last_event"] = max(row["last_event"], event.event)
    new, old = insert(connection, lease_totals), lease_totals.c
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["lease_id"],
            set_={
                "drawn_micros": _sum_within_range(old.drawn_micros, new.excluded.drawn_micros),
                "events": old.events + new.excluded.events,
                "last_event": sa.case(
                    (new.excluded.last_event > old.last_event, new.excluded.last_event), else_=old.last_event
                ),
            },
        ),
        [rows[lease] for lease in sorted(rows)],
    )


def _add_to_days(connection: sa.Connection, charged: list[tuple[FinalizeEvent, int]], now_ms: int) -> None:
    rows: dict[days.AgentDay, dict[str, Any]] = {}
    for event, charge in charged:
        row = rows.setdefault(
            (event.agent, event.day),
            {
                "agent_account_id": event.agent,
                "spending_date": event.day,
                "cap_micros": 0,
                "spent_micros": 0,
                "uncovered_micros": 0,
                "settled_count": 0,
                "seq": 1,
                "updated_at": now_ms,
            },
        )
        row["spent_micros"] += charge
        row["uncovered_micros"] = min(MAX_MICROS, row["uncovered_micros"] + event.actual_micros - charge)
        row["settled_count"] += 1
    new, old = insert(connection, daily_agent_spending), daily_agent_spending.c
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["agent_account_id", "spending_date"],
            set_={
                "spent_micros": old.spent_micros + new.excluded.spent_micros,
                "uncovered_micros": _sum_within_range(old.uncovered_micros, new.excluded.uncovered_micros),
                "settled_count": old.settled_count + new.excluded.settled_count,
                "seq": old.seq + 1,
                "updated_at": new.excluded.updated_at,
            },
        ),
        [rows[where] for where in sorted(rows)],
    )


def _sum_within_range(old: sa.ColumnElement[int], more: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """Costs that no cap bounds stop at the largest amount instead of making the ledger refuse the row."""
    return sa.case((old + more > MAX_MICROS, MAX_MICROS), else_=old + more)
