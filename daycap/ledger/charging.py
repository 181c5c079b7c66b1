"""The books that a batch charges: locked rows with their leases, in memory, and how they are written back."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_start_ms
from daycap.ledger import days
from daycap.ledger.agent_days import by_day
from daycap.ledger.budget_rows import MOST_APART_MS
from daycap.ledger.engine import execute_many, insert
from daycap.ledger.shares import Counted, is_unheld
from daycap.ledger.tables import (
    AGENTS,
    BUDGETS,
    Books,
    agent_accounts,
    books_of,
    budget_periods,
    budgets,
    contexts,
    settlements,
    shortfalls,
)
from daycap.money import MAX_MICROS
from daycap.protocol.counter import ACTIVE, PAUSED, UNKNOWN, AgentDay, DaySnapshot, LeaseTotals, Span
from daycap.protocol.labels import Labels
from daycap.protocol.plan import ENFORCE, is_budget
from daycap.protocol.wire import FinalizeEvent, Share


@dataclass(slots=True)
class Lease:
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

    def draw(self, amount: int) -> None:
        """Add what a hold took from the lease."""
        # No cap limits these costs. Clamp them to the largest amount, or the ledger rejects the row.
        self.drawn_micros = min(MAX_MICROS, self.drawn_micros + amount)
        self.folded, self.changed = 0, True


@dataclass(slots=True)
class Book:
    """An agent's day, or a budget's period. Its row is locked, so the sums here are those that the ledger will have."""

    owner: str
    period: str
    cap_micros: int
    spent_micros: int
    uncovered_micros: int
    drawn_micros: int
    settled_count: int
    seq: int
    status: str = UNKNOWN
    plan: int = 0
    """Of an agent: the plan in force."""
    span: Span | None = None
    """Of a budget: the period's bounds."""
    enforced: bool = True
    leases: dict[str, Lease] = field(default_factory=dict)
    """Those that this batch has events of."""

    @property
    def has_counter(self) -> bool:
        """Whether somebody may have leased from it: not from a budget that only watches."""
        return self.enforced or not all(map(is_unheld, self.leases))

    def overlaps(self, day: str) -> bool:
        """Return whether a part of the budget's period is on this UTC day, by the runner's bounds or the ledger's."""
        assert self.span is not None  # noqa: S101
        first_ms, end_ms = around([day])
        return self.span[0] < end_ms and first_ms < self.span[1]

    def charge_event(self, event: FinalizeEvent) -> int:
        """Add an event of the agent. Returns the charge, which is at most what is left of the cap."""
        lease = self.leases[event.lease]
        lease.events += 1
        lease.last_event = max(lease.last_event, event.number)
        return self._charge(lease, event.drawn_micros, event.actual_micros)

    def charge_share(self, event: FinalizeEvent, share: Share) -> int:
        """Add an event's share in the budget. Returns the charge."""
        held = event.held_micros if share.held_micros is None else share.held_micros
        drawn = event.actual_micros if is_unheld(share.lease) else min(event.actual_micros, held)
        return self._charge(self.leases[share.lease], drawn, event.actual_micros)

    def _charge(self, lease: Lease, drawn: int, actual: int) -> int:
        left = self.cap_micros - self.spent_micros
        charge = actual if actual <= left else max(0, left)
        self.spent_micros += charge
        if charge < actual:
            self.uncovered_micros = min(MAX_MICROS, self.uncovered_micros + actual - charge)
        self.drawn_micros = min(MAX_MICROS, self.drawn_micros + drawn)
        self.settled_count += 1
        lease.draw(drawn)
        return charge

    def changed_leases(self) -> dict[str, Lease]:
        """The leases that this batch changed."""
        return {lease: each for lease, each in self.leases.items() if each.changed}

    def row(self, now_ms: int) -> tuple[object, ...]:
        """Return the row, in the order of its columns."""
        numbers = (self.cap_micros, self.spent_micros, self.uncovered_micros, self.settled_count, self.seq, now_ms)
        if self.span is not None:
            return (self.owner, self.period, *self.span, *numbers, self.drawn_micros)
        return (self.owner, self.period, *numbers, self.drawn_micros, self.seq)

    def lease_rows(self) -> list[tuple[object, ...]]:
        """Return the rows of the leases that this batch changed."""
        return [self.lease_row(lease, each, self.seq) for lease, each in self.changed_leases().items()]

    def lease_row(self, lease: str, its: Lease, seq: int) -> tuple[object, ...]:
        """Return a lease's row, in the order of its columns."""
        if self.span is None:
            return (lease, self.owner, self.period, its.drawn_micros, its.events, its.last_event, seq, its.folded)
        return (lease, self.owner, self.period, its.drawn_micros, seq, its.folded, self.span[1])

    def snapshot(self) -> DaySnapshot:
        """Return what this transaction changed."""
        leases = [
            LeaseTotals(lease, each.drawn_micros, each.events, each.last_event)
            for lease, each in self.leases.items()
            if each.changed or each.asked
        ]
        return DaySnapshot(
            self.owner,
            self.period,
            self.seq,
            self.status,
            self.cap_micros,
            self.spent_micros,
            self.drawn_micros,
            tuple(leases),
            base_seq=self.seq - bool(self.changed_leases()),
            plan=self.plan,
            span=self.span,
        )


def around(on: Iterable[str]) -> Span:
    """Return the bounds of these UTC days, and what the bounds of periods may be apart."""
    starts = [day_start_ms(day) for day in on]
    return min(starts) - MOST_APART_MS, max(starts) + DAY_MS + MOST_APART_MS


def agents_books(connection: sa.Connection, rows: dict[AgentDay, days.Numbers]) -> dict[AgentDay, Book]:
    """Return the days of the locked rows, with their agents' status and plan."""
    books = {where: Book(*where, *row) for where, row in rows.items()}
    for _, day, agents in by_day(books):
        # Read after locking the rows, which waits for a status change under way.
        for agent, status, plan in connection.execute(_ACCOUNTS, {"agents": agents}):
            books[agent, day].status, books[agent, day].plan = status, plan
    return books


_ACCOUNTS = sa.select(agent_accounts.c.agent_account_id, agent_accounts.c.status, agent_accounts.c.plan_id).where(
    agent_accounts.c.agent_account_id.in_(sa.bindparam("agents"))
)


def budgets_books(connection: sa.Connection, rows: dict[AgentDay, days.Numbers]) -> dict[AgentDay, Book]:
    """Return the periods of the locked rows, with their bounds and their budgets' state."""
    books = {where: Book(*where, *row) for where, row in rows.items()}
    columns = budget_periods.c
    statement = (
        sa.select(
            columns.budget_id, columns.period_id, columns.start_ms, columns.end_ms, budgets.c.mode, budgets.c.removed_at
        )
        .join_from(budget_periods, budgets, columns.budget_id == budgets.c.budget_id)
        .where(BUDGETS.these(budget_periods, books))
    )
    for budget, period, start_ms, end_ms, mode, removed_at in connection.execute(statement):
        book = books[budget, period]
        book.span, book.enforced = (start_ms, end_ms), mode == ENFORCE and removed_at is None
        book.status = ACTIVE if removed_at is None else PAUSED
    return books


def load_leases(
    connection: sa.Connection, named: Iterable[tuple[str, AgentDay]], books: dict[AgentDay, Book]
) -> dict[str, AgentDay]:
    """Return the owner and period of each lease: the first one that the ledger saw it with.

    `named` says with which one the batch names it. New leases are inserted. Each is added to its book in `books`.
    """
    first: dict[str, AgentDay] = {}
    for lease, where in named:
        first.setdefault(lease, where)
    if not first:
        return {}
    kind = books_of(next(iter(first.values()))[0])
    found = _leases(connection, kind, list(first))
    if unknown := sorted(first.keys() - found.keys()):
        # Insert, then read: if two workers see a new lease at the same time, one waits for the other.
        rows = [books[first[lease]].lease_row(lease, Lease(), 0) for lease in unknown]
        execute_many(connection, _inserts(kind, connection.dialect.name).leases, rows)
        found |= _leases(connection, kind, unknown)
    for lease, (where, totals) in found.items():
        if where in books:
            books[where].leases[lease] = totals
    return {lease: where for lease, (where, _) in found.items()}


def _leases(connection: sa.Connection, kind: Books, leases: list[str]) -> dict[str, tuple[AgentDay, Lease]]:
    """Return the owner and period of each lease, and its totals."""
    return {
        lease: ((owner, period), Lease(*totals))
        for lease, owner, period, *totals in connection.execute(_select_leases(kind), {"leases": leases})
    }


@functools.cache
def _select_leases(kind: Books) -> sa.Select[Any]:
    columns = kind.leases.c
    counts = (columns.events, columns.last_event) if kind is AGENTS else (sa.literal(0), sa.literal(0))
    return sa.select(
        columns.lease_id, columns[kind.owner], columns[kind.period], columns.drawn_micros, *counts, columns.folded
    ).where(columns.lease_id.in_(sa.bindparam("leases")))


class Charged(NamedTuple):
    """An event with what it was charged on its agent's day, and on each of its shares."""

    counted: Counted
    micros: int
    shares: tuple[int, ...]


def write(connection: sa.Connection, charged: list[Charged], books: dict[AgentDay, Book], now_ms: int) -> None:
    """Write the settlements, and the books and leases that they changed."""
    changed = [book for _, book in sorted(books.items()) if book.changed_leases()]
    if not changed:
        return
    if charged:
        _write_settlements(connection, charged, now_ms)
    for book in changed:
        book.seq += 1
    for kind in (AGENTS, BUDGETS):
        theirs = [book for book in changed if is_budget(book.owner) == (kind is BUDGETS)]
        if theirs:
            statements = _inserts(kind, connection.dialect.name)
            execute_many(connection, statements.changed_leases, [row for book in theirs for row in book.lease_rows()])
            execute_many(connection, statements.changed_rows, [book.row(now_ms) for book in theirs])


def _write_settlements(connection: sa.Connection, charged: list[Charged], now_ms: int) -> None:
    context_of = _contexts(connection, charged)
    rows, short = [], []
    for (event, shares), charge, charges in charged:
        context = context_of.get((shares, event.labels))
        amounts = (event.held_micros, event.actual_micros, charge)
        rows.append((event.reservation, event.agent, event.day, *amounts, now_ms, context))
        if charges and min(charges) < event.actual_micros:
            short += [
                (event.reservation, share.budget, share.period, event.actual_micros - its, event.day)
                for share, its in zip(shares, charges, strict=True)
                if its < event.actual_micros
            ]
    # A plain INSERT writes every row or raises, so that the totals match its rows.
    execute_many(connection, _INSERT_SETTLEMENTS, rows)
    if short:
        execute_many(connection, _INSERT_SHORTFALLS, short)


_INSERT_SETTLEMENTS, _INSERT_SHORTFALLS = sa.insert(settlements), sa.insert(shortfalls)

_Kind = tuple[tuple[Share, ...], Labels]
"""What a context is made of. Several kinds have one context if their leases differ."""


def _contexts(connection: sa.Connection, charged: list[Charged]) -> dict[_Kind, int]:
    """Return the id of each event's context. Inserts the new ones, and moves the last day of the others.

    An event without budgets and labels has none.
    """
    last_date: dict[_Kind, str] = {}
    for event, shares in (each.counted for each in charged):
        if shares or event.labels:
            kind = shares, event.labels
            last_date[kind] = max(event.day, last_date.get(kind, ""))
    if not last_date:
        return {}
    context_of = {kind: _context(*kind) for kind in last_date}
    rows: dict[str, dict[str, str]] = {}
    for kind, context in context_of.items():
        row = rows.setdefault(context.digest, {**context._asdict(), "last_date": ""})
        row["last_date"] = max(row["last_date"], last_date[kind])
    found = _find_contexts(connection, rows)
    behind = [  # All workers insert in one order.
        row for digest, row in sorted(rows.items()) if digest not in found or found[digest][1] < row["last_date"]
    ]
    if behind:
        connection.execute(_insert_contexts(connection.dialect.name), behind)
        found |= _find_contexts(connection, [row["digest"] for row in behind])
    return {kind: found[context.digest][0] for kind, context in context_of.items()}


class _Context(NamedTuple):
    """The budget periods that an event counted in, and its labels, as JSON."""

    digest: str
    budgets: str
    labels: str


@functools.lru_cache(maxsize=1000)
def _context(shares: tuple[Share, ...], labels: Labels) -> _Context:
    texts = _json([[share.budget, share.period] for share in shares]), _json(dict(labels))
    return _Context(hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32], *texts)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _find_contexts(connection: sa.Connection, digests: Iterable[str]) -> dict[str, tuple[int, str]]:
    columns = contexts.c
    statement = sa.select(columns.digest, columns.context_id, columns.last_date)
    rows = connection.execute(statement.where(columns.digest.in_(list(digests))))
    return {row.digest: (row.context_id, row.last_date) for row in rows}


@functools.cache
def _insert_contexts(dialect: str) -> Any:
    new = insert(dialect, contexts)
    later = sa.case((new.excluded.last_date > contexts.c.last_date, new.excluded.last_date), else_=contexts.c.last_date)
    return new.on_conflict_do_update(index_elements=["digest"], set_={"last_date": later})


class _Inserts(NamedTuple):
    """The statements that need the database's own INSERT."""

    leases: sa.Insert
    changed_leases: sa.Insert
    changed_rows: sa.Insert


@functools.cache
def _inserts(kind: Books, dialect: str) -> _Inserts:
    leases, rows = insert(dialect, kind.leases), insert(dialect, kind.rows)
    key = ["lease_id", kind.owner, kind.period]
    totals = [column.name for column in kind.leases.columns if column.name not in key]
    fixed = [kind.owner, kind.period, "cap_micros", "start_ms", "end_ms"]
    numbers = [column.name for column in kind.rows.columns if column.name not in fixed]
    return _Inserts(
        leases.on_conflict_do_nothing(),
        leases.on_conflict_do_update(
            index_elements=["lease_id"], set_={name: leases.excluded[name] for name in totals}
        ),
        rows.on_conflict_do_update(
            index_elements=[kind.owner, kind.period], set_={name: rows.excluded[name] for name in numbers}
        ),
    )
