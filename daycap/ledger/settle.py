"""Settle: charge a batch of finalize events to the ledger, each exactly once and never past its day's cap."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa

from daycap.clock import wall_ms
from daycap.errors import DaycapError
from daycap.ledger import days
from daycap.ledger.agent_days import by_day
from daycap.ledger.dead_letters import DeadLetter, store
from daycap.ledger.engine import Ledger, execute_many, insert, is_transient
from daycap.ledger.retention import OpenDays
from daycap.ledger.tables import agent_accounts, daily_agent_spending, lease_totals, settlements
from daycap.money import MAX_MICROS
from daycap.protocol.counter import UNKNOWN, AgentDay, DaySnapshot, LeaseTotals
from daycap.protocol.dead_letter import Kind
from daycap.protocol.wire import FinalizeEvent


@dataclass(slots=True)
class Outcome:
    """The outcome of a batch: counts of events, micros, and what changed in each day, to publish."""

    settled: int = 0
    duplicates: int = 0
    charged_micros: int = 0
    uncovered_micros: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)
    snapshots: list[DaySnapshot] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add the outcome of another batch that was settled after this one."""
        self.settled += other.settled
        self.duplicates += other.duplicates
        self.charged_micros += other.charged_micros
        self.uncovered_micros += other.uncovered_micros
        self.dead_letters += other.dead_letters
        self.snapshots += other.snapshots


def settle(ledger: Ledger, payloads: Sequence[object], open_days: OpenDays) -> Outcome:
    """Settle `payloads` (events as they came from the queue) in one transaction, and commit it.

    An event that cannot be settled becomes a dead letter in the same transaction, for example one of a day outside
    `open_days`; pass `retention.kept_days` to charge closed days too. If the ledger rejects the batch, each event is
    tried alone, so that one bad event never blocks the others. Raises the database's error if it is transient
    (`daycap.ledger.engine.is_transient`). Then the whole batch can be settled again.
    """
    try:
        return _settle_batch(ledger, payloads, open_days)
    except Exception as error:
        if is_transient(error):
            raise
    outcome = Outcome()
    for payload in payloads:
        outcome.add(_settle_alone(ledger, payload, open_days))
    return outcome


def _settle_alone(ledger: Ledger, payload: object, open_days: OpenDays) -> Outcome:
    try:
        return _settle_batch(ledger, [payload], open_days)
    except Exception as error:
        if is_transient(error):
            raise
        letter = DeadLetter(Kind.FAILED, f"{type(error).__name__}: {error}", payload)
    return keep(ledger, letter)


def keep(ledger: Ledger, letter: DeadLetter) -> Outcome:
    """Store a dead letter in a transaction of its own."""
    with ledger.writing() as connection:
        store(connection, [letter], wall_ms())
    return Outcome(dead_letters=[letter])


def _settle_batch(ledger: Ledger, payloads: Sequence[object], open_days: OpenDays) -> Outcome:
    now_ms = wall_ms()
    outcome = Outcome()
    events = _decode(payloads, open_days, outcome.dead_letters)
    agent_days = {(event.agent, event.day) for event in events}
    with days.locked(ledger, agent_days, now_ms) as (connection, rows):
        books = _books(connection, rows)
        events = _with_account(events, books, outcome)
        events = _with_own_lease(connection, events, books, outcome)
        events = _not_settled_yet(connection, events, books, outcome)
        _write(connection, _charge(events, books, outcome), books, now_ms)
        store(connection, outcome.dead_letters, now_ms)
    outcome.snapshots = [books[where].snapshot() for where in sorted(books)]
    return outcome


@dataclass(slots=True)
class _Lease:
    """A lease's totals."""

    drawn_micros: int = 0
    events: int = 0
    last_event: int = 0
    folded: int = 0
    changed: bool = False
    asked: bool = False

    def ask(self) -> None:
        """Have the counter say again what is settled, also of a lease that was folded: somebody still asks for it."""
        self.asked = True
        if self.folded:
            self.folded, self.changed = 0, True

    def add(self, event: FinalizeEvent) -> None:
        # No cap limits these costs. Clamp them to the largest amount, or the ledger rejects the row.
        self.drawn_micros = min(MAX_MICROS, self.drawn_micros + event.drawn_micros)
        self.events += 1
        self.last_event = max(self.last_event, event.number)
        self.folded, self.changed = 0, True


@dataclass(slots=True)
class _Book:
    """An agent's day. Its row is locked, so that the sums here are those that the ledger will have."""

    agent: str
    day: str
    cap_micros: int
    spent_micros: int
    uncovered_micros: int
    drawn_micros: int
    settled_count: int
    seq: int
    status: str = UNKNOWN
    leases: dict[str, _Lease] = field(default_factory=dict)
    """Those that this batch has events of."""

    def charge(self, event: FinalizeEvent) -> int:
        """Add the event. Returns the charge, which is at most what is left of the cap."""
        charge = min(event.actual_micros, max(0, self.cap_micros - self.spent_micros))
        self.spent_micros += charge
        self.uncovered_micros = min(MAX_MICROS, self.uncovered_micros + event.actual_micros - charge)
        self.drawn_micros = min(MAX_MICROS, self.drawn_micros + event.drawn_micros)
        self.settled_count += 1
        self.leases[event.lease].add(event)
        return charge

    def changed_leases(self) -> dict[str, _Lease]:
        """The leases that this batch changed."""
        return {lease: each for lease, each in self.leases.items() if each.changed}

    def row(self, now_ms: int) -> tuple[object, ...]:
        """Return the day's row, in the order of its columns."""
        return (
            self.agent,
            self.day,
            self.cap_micros,
            self.spent_micros,
            self.uncovered_micros,
            self.settled_count,
            self.seq,
            now_ms,
            self.drawn_micros,
            self.seq,
        )

    def snapshot(self) -> DaySnapshot:
        """Return what this transaction changed in the day."""
        leases = [
            LeaseTotals(lease, each.drawn_micros, each.events, each.last_event)
            for lease, each in self.leases.items()
            if each.changed or each.asked
        ]
        return DaySnapshot(
            self.agent,
            self.day,
            self.seq,
            self.status,
            self.cap_micros,
            self.spent_micros,
            self.drawn_micros,
            tuple(leases),
            base_seq=self.seq - bool(self.changed_leases()),
        )


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


def _books(connection: sa.Connection, rows: dict[AgentDay, days.Numbers]) -> dict[AgentDay, _Book]:
    """Return the days of the locked rows, with their status and leases."""
    books = {where: _Book(*where, *row) for where, row in rows.items()}
    for day, agents in by_day(books):
        # Read after locking the rows, which waits for a status change under way.
        for agent, status in connection.execute(_STATUS, {"agents": agents}):
            books[agent, day].status = status
    return books


_STATUS = sa.select(agent_accounts.c.agent_account_id, agent_accounts.c.status).where(
    agent_accounts.c.agent_account_id.in_(sa.bindparam("agents"))
)


def _with_account(events: list[FinalizeEvent], books: dict[AgentDay, _Book], outcome: Outcome) -> list[FinalizeEvent]:
    kept = []
    for event in events:
        if (event.agent, event.day) in books:
            kept.append(event)
        else:
            letter = DeadLetter(Kind.UNKNOWN_AGENT, f"there is no agent {event.agent}", event.to_wire())
            outcome.dead_letters.append(letter)
    return kept


def _with_own_lease(
    connection: sa.Connection,
    events: list[FinalizeEvent],
    books: dict[AgentDay, _Book],
    outcome: Outcome,
) -> list[FinalizeEvent]:
    """Reject events whose lease belongs to another agent or day: the first one that the ledger saw it with."""
    first = {event.lease: event for event in reversed(events)}
    found = _leases(connection, list(first)) if first else {}
    if unknown := sorted(first.keys() - found.keys()):
        # Insert, then read: if two workers see a new lease at the same time, one waits for the other.
        rows = [(lease, first[lease].agent, first[lease].day, 0, 0, 0, 0, 0) for lease in unknown]
        execute_many(connection, _inserts(connection.dialect.name).leases, rows)
        found |= _leases(connection, unknown)
    kept = []
    for event in events:
        owner, lease = found[event.lease]
        if owner == (event.agent, event.day):
            books[owner].leases[event.lease] = lease
            kept.append(event)
        else:
            reason = "the lease belongs to agent {} on {}".format(*owner)
            outcome.dead_letters.append(DeadLetter(Kind.WRONG_LEASE, reason, event.to_wire()))
    return kept


def _leases(connection: sa.Connection, leases: list[str]) -> dict[str, tuple[AgentDay, _Lease]]:
    """Return the agent and day of each lease, and its totals."""
    return {
        lease: ((agent, day), _Lease(*totals))
        for lease, agent, day, *totals in connection.execute(_LEASES, {"leases": leases})
    }


_LEASES = sa.select(
    lease_totals.c.lease_id,
    lease_totals.c.agent_account_id,
    lease_totals.c.spending_date,
    lease_totals.c.drawn_micros,
    lease_totals.c.events,
    lease_totals.c.last_event,
    lease_totals.c.folded,
).where(lease_totals.c.lease_id.in_(sa.bindparam("leases")))

_SETTLED = sa.select(
    settlements.c.reservation_id,
    settlements.c.agent_account_id,
    settlements.c.spending_date,
    settlements.c.held_micros,
    settlements.c.actual_micros,
).where(settlements.c.reservation_id.in_(sa.bindparam("reservations")))


def _not_settled_yet(
    connection: sa.Connection,
    events: list[FinalizeEvent],
    books: dict[AgentDay, _Book],
    outcome: Outcome,
) -> list[FinalizeEvent]:
    """Drop duplicates, also within this batch. Another payload for a settled hold is a conflict."""
    wanted = {"reservations": [event.reservation for event in events]}
    known: dict[str, tuple[object, ...]] = {}
    if events:
        known = {reservation: tuple(payload) for reservation, *payload in connection.execute(_SETTLED, wanted)}
    kept = []
    for event in events:
        payload = (event.agent, event.day, event.held_micros, event.actual_micros)
        settled = known.setdefault(event.reservation, payload)
        if settled is payload:
            kept.append(event)
        elif settled == payload:
            outcome.duplicates += 1
            books[event.agent, event.day].leases[event.lease].ask()
        else:
            reason = "settled before with held {}, actual {}".format(*settled[2:])
            outcome.dead_letters.append(DeadLetter(Kind.CONFLICT, reason, event.to_wire()))
    return kept


def _charge(
    events: list[FinalizeEvent], books: dict[AgentDay, _Book], outcome: Outcome
) -> list[tuple[FinalizeEvent, int]]:
    """Return each event with its charge, in order of arrival."""
    charged = []
    for event in events:
        charge = books[event.agent, event.day].charge(event)
        charged.append((event, charge))
        outcome.charged_micros += charge
        outcome.uncovered_micros += event.actual_micros - charge
    outcome.settled += len(charged)
    return charged


def _write(
    connection: sa.Connection,
    charged: list[tuple[FinalizeEvent, int]],
    books: dict[AgentDay, _Book],
    now_ms: int,
) -> None:
    changed = [book for _, book in sorted(books.items()) if book.changed_leases()]
    if not changed:
        return
    if charged:
        # A plain INSERT writes every row or raises, so that the totals below match its rows.
        execute_many(
            connection,
            _INSERT_SETTLEMENTS,
            [
                (e.reservation, e.agent, e.day, e.held_micros, e.actual_micros, charge, now_ms, None)
                for e, charge in charged
            ],
        )
    for book in changed:
        book.seq += 1
    leases = [
        (lease, book.agent, book.day, each.drawn_micros, each.events, each.last_event, book.seq, each.folded)
        for book in changed
        for lease, each in book.changed_leases().items()
    ]
    statements = _inserts(connection.dialect.name)
    execute_many(connection, statements.changed_leases, leases)
    execute_many(connection, statements.changed_days, [book.row(now_ms) for book in changed])


_INSERT_SETTLEMENTS = sa.insert(settlements)


class _Inserts(NamedTuple):
    """The statements that need the database's own INSERT."""

    leases: sa.Insert
    changed_leases: sa.Insert
    changed_days: sa.Insert


@functools.cache
def _inserts(dialect: str) -> _Inserts:
    leases, of_day = insert(dialect, lease_totals), insert(dialect, daily_agent_spending)
    totals = ("drawn_micros", "events", "last_event", "changed_seq", "folded")
    numbers = ("spent_micros", "uncovered_micros", "settled_count", "seq", "updated_at", "drawn_micros", "drawn_seq")
    return _Inserts(
        leases.on_conflict_do_nothing(),
        leases.on_conflict_do_update(
            index_elements=["lease_id"], set_={name: leases.excluded[name] for name in totals}
        ),
        of_day.on_conflict_do_update(
            index_elements=["agent_account_id", "spending_date"], set_={name: of_day.excluded[name] for name in numbers}
        ),
    )
