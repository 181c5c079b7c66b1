"""Settle: charge a batch of finalize events to the ledger, each exactly once and never past a cap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from daycap.clock import wall_ms
from daycap.errors import DaycapError
from daycap.ledger import days
from daycap.ledger.charging import Book, Charged, agents_books, around, budgets_books, load_leases, write
from daycap.ledger.dead_letters import DeadLetter, store
from daycap.ledger.engine import Ledger, is_transient
from daycap.ledger.retention import OpenDays
from daycap.ledger.shares import Counted, counted_in, is_unheld
from daycap.ledger.tables import settlements
from daycap.protocol.counter import AgentDay, DaySnapshot
from daycap.protocol.dead_letter import Kind
from daycap.protocol.wire import FinalizeEvent, Share


@dataclass(slots=True)
class Outcome:
    """The outcome of a batch: counts of events, micros, and what changed in each day, to publish."""

    settled: int = 0
    duplicates: int = 0
    charged_micros: int = 0
    uncovered_micros: int = 0
    unleased_micros: int = 0
    """What was charged to enforcing budgets of which the call held nothing."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    snapshots: list[DaySnapshot] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add the outcome of another batch that was settled after this one."""
        self.settled += other.settled
        self.duplicates += other.duplicates
        self.charged_micros += other.charged_micros
        self.uncovered_micros += other.uncovered_micros
        self.unleased_micros += other.unleased_micros
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
        books = agents_books(connection, rows)
        events = _with_account(events, books, outcome)
        events = _with_own_lease(connection, events, books, outcome)
        events = _not_settled_yet(connection, events, books, outcome)
        counted = _once(_with_budgets(connection, events, books, now_ms, outcome), books, outcome)
        write(connection, _charge(counted, books, outcome), books, now_ms)
        store(connection, outcome.dead_letters, now_ms)
    outcome.snapshots = [books[where].snapshot() for where in sorted(books) if books[where].has_counter]
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


def _with_account(events: list[FinalizeEvent], books: dict[AgentDay, Book], outcome: Outcome) -> list[FinalizeEvent]:
    kept = []
    for event in events:
        if (event.agent, event.day) in books:
            kept.append(event)
        else:
            letter = DeadLetter(Kind.UNKNOWN_AGENT, f"there is no agent {event.agent}", event.to_wire())
            outcome.dead_letters.append(letter)
    return kept


def _with_own_lease(
    connection: sa.Connection, events: list[FinalizeEvent], books: dict[AgentDay, Book], outcome: Outcome
) -> list[FinalizeEvent]:
    """Reject events whose lease belongs to another agent or day: the first one that the ledger saw it with."""
    owners = load_leases(connection, ((event.lease, (event.agent, event.day)) for event in events), books)
    kept = []
    for event in events:
        if (owner := owners[event.lease]) == (event.agent, event.day):
            kept.append(event)
        else:
            outcome.dead_letters.append(DeadLetter(*_wrong_lease(owner), event.to_wire()))
    return kept


def _wrong_lease(owner: AgentDay) -> tuple[Kind, str]:
    return Kind.WRONG_LEASE, "the lease belongs to {} on {}".format(*owner)


_SETTLED = sa.select(
    settlements.c.reservation_id,
    settlements.c.agent_account_id,
    settlements.c.spending_date,
    settlements.c.held_micros,
    settlements.c.actual_micros,
).where(settlements.c.reservation_id.in_(sa.bindparam("reservations")))


_Payload = tuple[str, str, int, int]
"""Agent, day, held and actual amount: what two payloads of one hold must have in common."""


def _not_settled_yet(
    connection: sa.Connection,
    events: list[FinalizeEvent],
    books: dict[AgentDay, Book],
    outcome: Outcome,
) -> list[FinalizeEvent]:
    """Drop the events that the ledger has. Another payload for a settled hold is a conflict."""
    if not events:
        return []
    wanted = {"reservations": [event.reservation for event in events]}
    known = {reservation: (*payload,) for reservation, *payload in connection.execute(_SETTLED, wanted)}
    return [event for event in events if _is_new(event, known.get(event.reservation), books, outcome)]


def _once(counted: list[Counted], books: dict[AgentDay, Book], outcome: Outcome) -> list[Counted]:
    """Drop all but the first event of each hold. What was rejected before hides no other event of its hold."""
    known: dict[str, FinalizeEvent] = {}
    kept = []
    for each in counted:
        first = known.setdefault(each.event.reservation, each.event)
        if first is each.event or _is_new(each.event, _payload(first), books, outcome):
            kept.append(each)
    return kept


def _is_new(event: FinalizeEvent, settled: _Payload | None, books: dict[AgentDay, Book], outcome: Outcome) -> bool:
    if settled is None:
        return True
    if settled == _payload(event):
        outcome.duplicates += 1
        books[event.agent, event.day].leases[event.lease].ask()
    else:
        reason = "settled before with held {}, actual {}".format(*settled[2:])
        outcome.dead_letters.append(DeadLetter(Kind.CONFLICT, reason, event.to_wire()))
    return False


def _payload(event: FinalizeEvent) -> _Payload:
    return event.agent, event.day, event.held_micros, event.actual_micros


def _with_budgets(
    connection: sa.Connection,
    events: list[FinalizeEvent],
    books: dict[AgentDay, Book],
    now_ms: int,
    outcome: Outcome,
) -> list[Counted]:
    """Return each event with the budgets that it counts in, and add those to `books`, locked.

    Rejects events that name a budget, a period or a lease which does not exist or belongs to others.
    """
    counted = counted_in(connection, events, {event.agent: books[event.agent, event.day].plan for event in events})
    kinds = dict.fromkeys((each.event.day, each.shares) for each in counted if each.shares)
    named = [(share.lease, (share.budget, share.period)) for _, shares in kinds for share in shares]
    periods = {where for _, where in named}
    if not periods:
        return counted
    days.insert_missing(connection, periods, now_ms, during=around(day for day, _ in kinds))
    found = budgets_books(connection, days.lock(connection, periods))
    owners = load_leases(connection, ((lease, where) for lease, where in named if where in found), found)
    books |= found
    fault_of = {kind: _fault(*kind, found, owners) for kind in kinds}
    kept = []
    for each in counted:
        if (fault := fault_of.get((each.event.day, each.shares))) is None:
            kept.append(each)
        else:
            outcome.dead_letters.append(DeadLetter(*fault, each.event.to_wire()))
    return kept


def _fault(
    day: str, shares: tuple[Share, ...], found: dict[AgentDay, Book], owners: dict[str, AgentDay]
) -> tuple[Kind, str] | None:
    """Return why an event of this day cannot have these shares; None if it can."""
    for share in shares:
        where = (share.budget, share.period)
        if where not in found or not found[where].overlaps(day):
            return Kind.UNKNOWN_BUDGET, f"there is no budget {share.budget} with a period {share.period} on {day}"
        if owners[share.lease] != where:
            return _wrong_lease(owners[share.lease])
    return None


def _charge(counted: Iterable[Counted], books: dict[AgentDay, Book], outcome: Outcome) -> list[Charged]:
    """Return each event with its charges, in order of arrival."""
    charged = []
    for each in counted:
        event = each.event
        charge = books[event.agent, event.day].charge_event(event)
        charges = tuple(books[share.budget, share.period].charge_share(event, share) for share in each.shares)
        charged.append(Charged(each, charge, charges))
        outcome.charged_micros += charge
        outcome.uncovered_micros += event.actual_micros - charge
        for its, share in zip(charges, each.shares, strict=True):
            if is_unheld(share.lease) and books[share.budget, share.period].enforced:
                outcome.unleased_micros += its
    outcome.settled += len(charged)
    return charged
