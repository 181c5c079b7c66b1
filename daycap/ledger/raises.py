"""Raise the cap of an agent's day or of a budget's current period for a while, and reset what was spent in it.

A reset adds to the cap what was spent: the books stay as they are, and the whole cap is there again. So both are rows
of `cap_raises`, and settle and the counter only see another cap. When a raise ends, the cap loses exactly what it had
added. If more than is left is lent then, nothing more is lent until that is back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.errors import DaycapError, InvalidAmount, InvalidInput
from daycap.ledger import accounts, caps, days, definitions, opening
from daycap.ledger.caps import CARRY, RAISE, RESET
from daycap.ledger.engine import Ledger
from daycap.ledger.plans import Change, changing
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import Place, Slice
from daycap.ledger.tables import agent_accounts, books_of, budget_periods, budgets, cap_raises
from daycap.money import MAX_MICROS, format_usd, micros
from daycap.periods import Period
from daycap.protocol.counter import AgentDay
from daycap.protocol.plan import ENFORCE, is_budget
from daycap.protocol.wire import agent_id

_AT_ONCE = 100
_MOST_AT_ONCE = 1000


class Raise(NamedTuple):
    """What was added to the cap of one period. Amounts are micros, times the counter's, in UTC milliseconds since 1970.

    `kind`: `raise`, `reset` or `carry`. `cap_micros`: the period's cap right after. `until_ms`: None for as long as the
    period lasts. `ended_at_ms`: when the cap lost it again; None if it has not, also if the period was over first.
    """

    id: int
    kind: str
    agent: str | None
    budget: str | None
    period_id: str
    amount_micros: int
    cap_micros: int
    until_ms: int | None
    reason: str | None
    raised_by: str
    raised_at_ms: int
    ended_by: str | None
    ended_at_ms: int | None


class Subject(NamedTuple):
    """Whose cap is raised, and in which period. `owner`: the agent, or the budget's id."""

    owner: str
    name: str
    period: Period
    enforced: bool

    @property
    def where(self) -> AgentDay:
        """The period's key."""
        return self.owner, self.period.id


def raise_cap(
    ledger: Ledger,
    publisher: CounterPublisher,
    agent: str | None,
    budget: str | None,
    by_micros: int,
    changed_by: str,
    reason: str | None = None,
    *,
    until_ms: int | None = None,
    for_ms: int | None = None,
) -> Raise:
    """Raise the cap of the current period of an agent or a budget until then, or until the period ends.

    Raises `UnknownAgent`, `UnknownBudget`, `InvalidAmount`, and `InvalidInput` for a time that is over.
    """
    if micros(by_micros) == 0:
        raise InvalidAmount("raise the cap by more than nothing")
    subject = _subject(ledger, publisher, agent, budget)
    if until_ms is not None and for_ms is not None:
        raise InvalidInput("give either the end or the duration of a raise")
    with _changing(ledger, publisher, subject, changed_by, reason) as (change, row):
        if row.cap_micros + by_micros > MAX_MICROS:
            raise InvalidAmount(f"the cap would be more than {format_usd(MAX_MICROS)}")
        end_ms = until_ms if for_ms is None else change.now_ms + for_ms
        if end_ms is not None and end_ms <= change.now_ms:
            raise InvalidInput("that time is over: a raise ends after it begins")
        if end_ms is not None and end_ms >= subject.period.end_ms:
            end_ms = None
        number = add(change, subject.where, RAISE, by_micros, end_ms)
    return get(ledger, number)


def reset(
    ledger: Ledger,
    publisher: CounterPublisher,
    agent: str | None,
    budget: str | None,
    changed_by: str,
    reason: str | None = None,
) -> Raise:
    """Let the current period of an agent or a budget have its whole cap again: what was spent no longer counts.

    What is held and leased meanwhile counts when it is spent. Raises `UnknownAgent` and `UnknownBudget`.
    """
    subject = _subject(ledger, publisher, agent, budget)
    with _changing(ledger, publisher, subject, changed_by, reason) as (change, row):
        before = sum(
            each.amount_micros
            for each in caps.raises_of(change.connection, [subject.where]).get(subject.where, ())
            if each.kind == RESET and each.ended_at is None
        )
        # What was drawn and not charged, because the cap was lowered meanwhile, counts for the counter, too.
        number = add(change, subject.where, RESET, max(0, max(row.spent_micros, row.drawn_micros) - before), None)
    return get(ledger, number)


def cancel(
    ledger: Ledger, publisher: CounterPublisher, number: int, changed_by: str, reason: str | None = None
) -> Raise:
    """End a raise, or take a reset back, before its time. Raises `InvalidInput` if there is none under way."""
    found = get(ledger, number)
    if found.kind == CARRY:
        raise InvalidInput(f"raise {number} was carried over: the period before no longer has it")
    if not _end(ledger, publisher, number, changed_by, reason):
        what = "has ended" if found.ended_at_ms is not None else "is of a period that is over"
        raise InvalidInput(f"raise {number} {what}")
    return get(ledger, number)


def end_due(ledger: Ledger, publisher: CounterPublisher, _place: Place) -> Slice:
    """End the raises whose time is over. One step; counts those `ended`. Safe to run late, or twice at once."""
    now_ms = publisher.authoritative_ms()
    columns = cap_raises.c
    due = (
        sa.select(columns.cap_raise_id)
        .where(columns.ended_at.is_(None), columns.until_ms <= now_ms)
        .order_by(columns.until_ms, columns.cap_raise_id)
        .limit(_AT_ONCE)
    )
    with ledger.reading() as connection:
        numbers = list(connection.scalars(due))
    ended = sum(_end(ledger, publisher, number, "daycap", "its time is over") for number in numbers)
    return Slice({"ended": ended}, [] if len(numbers) == _AT_ONCE else None)


def find(
    ledger: Ledger,
    publisher: CounterPublisher,
    agent: str | None = None,
    budget: str | None = None,
    *,
    ended: bool = False,
    limit: int = _MOST_AT_ONCE,
) -> list[Raise]:
    """Return the raises and resets in force, or also those of the past; the newest first, at most `limit`."""
    if not 1 <= limit <= _MOST_AT_ONCE:
        raise InvalidInput(f"limit must be from 1 to {_MOST_AT_ONCE}")
    columns = cap_raises.c
    added = sa.or_(columns.kind != CARRY, columns.amount_micros > 0)  # Where nothing was left, that is noted, too.
    statement = _FOUND.where(added).order_by(columns.cap_raise_id.desc()).limit(limit)
    if agent is not None:
        statement = statement.where(columns.owner == agent_id(agent))
    if budget is not None:
        statement = statement.where(budgets.c.name == budget)
    if not ended:
        now_ms = publisher.authoritative_ms()
        is_now = sa.or_(
            budget_periods.c.end_ms > now_ms,
            sa.and_(budgets.c.budget_id.is_(None), columns.period_id >= day_of(now_ms)),
        )
        statement = statement.where(columns.ended_at.is_(None), is_now)
    with ledger.reading() as connection:
        return [_raise(row) for row in connection.execute(statement)]


def get(ledger: Ledger, number: int) -> Raise:
    """Return a raise by its number. Raises `InvalidInput` if there is none."""
    with ledger.reading() as connection:
        row = connection.execute(_FOUND.where(cap_raises.c.cap_raise_id == number)).one_or_none()
    if row is None:
        raise InvalidInput(f"there is no raise {number}; see: daycap cap raises")
    return _raise(row)


_FOUND = (
    sa.select(cap_raises, budgets.c.name)
    .join_from(cap_raises, budgets, budgets.c.budget_id == cap_raises.c.owner, isouter=True)
    .join(
        budget_periods,
        sa.and_(budget_periods.c.budget_id == cap_raises.c.owner, budget_periods.c.period_id == cap_raises.c.period_id),
        isouter=True,
    )
)


def _raise(row: Any) -> Raise:
    return Raise(
        row.cap_raise_id,
        row.kind,
        None if row.name else row.owner,
        row.name,
        row.period_id,
        row.amount_micros,
        row.cap_micros,
        row.until_ms,
        row.reason,
        row.raised_by,
        row.raised_at,
        row.ended_by,
        row.ended_at,
    )


def _subject(ledger: Ledger, publisher: CounterPublisher, agent: str | None, budget: str | None) -> Subject:
    """Return the current period of an agent or a budget, whose row is there from now on."""
    if (agent is None) == (budget is None):
        raise InvalidInput("name either an agent or a budget")
    now_ms = publisher.authoritative_ms()
    if agent is not None:
        start_ms = day_start_ms(day_of(now_ms))
        subject = Subject(agent_id(agent), agent, Period(day_of(now_ms), start_ms, start_ms + DAY_MS), True)
    else:
        with ledger.reading() as connection:
            budget_id, definition = definitions.get(connection, str(budget))
        subject = Subject(budget_id, definition.name, definition.rule.at(now_ms), definition.mode == ENFORCE)
    insert_row(ledger, publisher, subject.where, enforced=subject.enforced)
    return subject


def insert_row(ledger: Ledger, publisher: CounterPublisher, where: AgentDay, *, enforced: bool) -> None:
    """Insert the row of a period, if it is missing. The counter has those of enforcing budgets only."""
    if enforced:
        opening.open_days(ledger, publisher, [where])
    else:
        with ledger.writing() as connection:
            days.insert_missing(connection, [where], publisher.authoritative_ms())


@contextmanager
def _changing(
    ledger: Ledger, publisher: CounterPublisher, subject: Subject, changed_by: str, reason: str | None
) -> Iterator[tuple[Change, Any]]:
    """Begin a transaction that changes the cap of the subject's period. Returns it with the row, which is locked."""
    with changing(ledger, publisher, changed_by, reason) as change:
        _lock(change, subject.owner)
        books = books_of(subject.owner)
        row = change.connection.execute(
            sa.select(books.rows.c.cap_micros, books.rows.c.spent_micros, books.drawn).where(
                books.these(books.rows, [subject.where])
            )
        ).one_or_none()
        removed = is_budget(subject.owner) and definitions.get(change.connection, subject.name)[0] != subject.owner
        if row is None or removed:
            raise DaycapError(f"{subject.name} was changed meanwhile; try again")
        yield change, row


def _lock(change: Change, owner: str) -> None:
    if is_budget(owner):
        change.lock(budget_ids=[owner])
    else:
        change.lock(agents=[owner])


def add(change: Change, where: AgentDay, kind: str, amount_micros: int, until_ms: int | None) -> int:
    """Add to the cap of a period that has not ended, in a transaction that has locked its row. Returns the number."""
    number = caps.insert_raise(change, where, kind, amount_micros, until_ms)
    added = {"kind": kind, "amount_micros": amount_micros, "until_ms": until_ms}
    cap_micros = _set_cap(change, where, None, added)
    this = cap_raises.c.cap_raise_id == number
    change.connection.execute(sa.update(cap_raises).where(this).values(cap_micros=cap_micros))
    return number


def _end(ledger: Ledger, publisher: CounterPublisher, number: int, ended_by: str, reason: str | None) -> bool:
    """End a raise. Returns whether this took something from the cap: not if it had ended, or its period has.

    After the period the cap stays: what is still to be charged was lent by it.
    """
    columns = cap_raises.c
    this = sa.and_(columns.cap_raise_id == number, columns.ended_at.is_(None))
    with ledger.reading() as connection:
        where = connection.execute(sa.select(columns.owner, columns.period_id).where(this)).one_or_none()
    if where is None:
        return False
    owner, period = where
    with changing(ledger, publisher, ended_by, reason) as change:
        _lock(change, owner)
        if _end_ms(change.connection, (owner, period)) <= change.now_ms:
            change.connection.execute(sa.update(cap_raises).where(this).values(until_ms=None))
            return False
        row = change.connection.execute(
            sa.update(cap_raises)
            .where(this)
            .values(ended_by=change.changed_by, ended_at=change.now_ms)
            .returning(columns.kind, columns.amount_micros, columns.until_ms)
        ).one_or_none()
        if row is None:
            return False
        _set_cap(change, (owner, period), dict(row._mapping), None)
        return True


def _end_ms(connection: sa.Connection, where: AgentDay) -> int:
    """Return when a period ends; 0 if it is so long ago that the ledger no longer has it."""
    if not is_budget(where[0]):
        return day_start_ms(where[1]) + DAY_MS
    columns = budget_periods.c
    these = sa.and_(columns.budget_id == where[0], columns.period_id == where[1])
    return connection.scalar(sa.select(columns.end_ms).where(these)) or 0


def _set_cap(change: Change, where: AgentDay, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> int:
    """Compute the cap of a locked row anew, after a raise `old` ended or `new` began. Records and returns it."""
    connection, books = change.connection, books_of(where[0])
    rows = books.rows.c
    if is_budget(where[0]):
        row = connection.execute(sa.select(budgets).where(budgets.c.budget_id == where[0])).one()
        base, enforced = row.cap_micros, row.mode == ENFORCE
        facts = definitions.definition_of(row).to_json()
        change.record("budget", row.name, *(facts | ({"raised": each} if each else {}) for each in (old, new)))
    else:
        of_account = agent_accounts.c
        account = sa.select(of_account.daily_cap_micros).where(of_account.agent_account_id == where[0])
        base, enforced = connection.execute(account).scalar_one(), True
        accounts.record_raise(connection, where[0], change.changed_by, change.now_ms)
    cap = caps.period_cap(books, base)
    values = {"cap_micros": cap, "updated_at": change.now_ms, **books.with_seq(rows.seq + 1)}
    statement = sa.update(books.rows).where(books.these(books.rows, [where])).values(**values)
    cap_micros = int(connection.execute(statement.returning(rows.cap_micros)).scalar_one())
    if enforced:  # While a budget only watches, the counter hears nothing of it.
        change.periods.append(where)
    return cap_micros
