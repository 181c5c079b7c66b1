"""Audit: check one day's ledger and counter against promises P1, P2 and P3, and report each difference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.clock import day_of, day_start_ms
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import kept_days, open_days
from daycap.ledger.tables import cap_changes, lease_totals, settlements
from daycap.ledger.tables import daily_agent_spending as spending
from daycap.protocol.counter import DayReading
from daycap.settings import Settings

_AT_ONCE = 500
_TRIES = 5
_BETWEEN_TRIES_S = 0.1


class Difference(NamedTuple):
    """One violation of a promise."""

    promise: str
    agent: str
    what: str
    expected: int | str
    found: int | str


class Audit(NamedTuple):
    """What an audit checked and found. No differences means that every promise holds."""

    day: str
    agents: int
    settlements: int
    spent_micros: int
    uncovered_micros: int
    pruned: list[str]
    """What was not compared, because the ledger no longer keeps it: `leases`, `settlements`."""
    differences: list[dict[str, Any]]


def audit(ledger: Ledger, publisher: CounterPublisher, settings: Settings, day: str | None = None) -> Audit:
    """Audit `day`, by default the counter's today. The counter is compared as long as it has the day.

    A closed day may have no lease totals any more, an older one no settlements: see `Audit.pruned`.

    Raises `InvalidInput` for an invalid day and `CounterUnavailable` if the counter does not answer.
    """
    now_ms = publisher.authoritative_ms()
    day = day_of(now_ms) if day is None else day
    day_start_ms(day)
    pruned = _pruned(day, settings, now_ms)
    agents = count = spent = uncovered = 0
    differences: list[Difference] = []
    read: list[list[str]] = []
    with ledger.reading() as connection:
        for rows in _rows(connection, day):
            names = [row.agent_account_id for row in rows]
            sums = None if "settlements" in pruned else _sums(connection, day, names)
            highest = _highest_caps(connection, day, names)
            for row in rows:
                differences += _check_cap(row, highest.get(row.agent_account_id, 0))
                if sums is not None:
                    differences += _check_sums(row, sums.get(row.agent_account_id))
                agents, count = agents + 1, count + row.settled_count
                spent, uncovered = spent + row.spent_micros, uncovered + row.uncovered_micros
            if "leases" not in pruned:
                differences += _check_leases(connection, day, names)
            read.append(names)
    # After the transaction, not inside it: a nested one would deadlock behind a pooler with a single session.
    for names in read:
        differences += _check_counter(ledger, publisher, day, names)
    return Audit(day, agents, count, spent, uncovered, pruned, [difference._asdict() for difference in differences])


def _pruned(day: str, settings: Settings, now_ms: int) -> list[str]:
    oldest = {"leases": open_days(settings, now_ms).oldest, "settlements": kept_days(settings, now_ms).oldest}
    return [what for what, first in oldest.items() if day < first]


def _rows(connection: sa.Connection, day: str) -> Iterator[list[Any]]:
    last = ""
    while True:
        statement = (
            sa.select(spending)
            .where(spending.c.spending_date == day, spending.c.agent_account_id > last)
            .order_by(spending.c.agent_account_id)
            .limit(_AT_ONCE)
        )
        rows = list(connection.execute(statement))
        if not rows:
            return
        yield rows
        last = rows[-1].agent_account_id


def _sums(connection: sa.Connection, day: str, agents: list[str]) -> dict[str, Any]:
    columns = settlements.c
    statement = (
        sa.select(
            columns.agent_account_id,
            sa.func.count().label("settled_count"),
            sa.func.sum(columns.charged_micros).label("spent_micros"),
            sa.func.sum(columns.actual_micros - columns.charged_micros).label("uncovered_micros"),
        )
        .where(columns.spending_date == day, columns.agent_account_id.in_(agents))
        .group_by(columns.agent_account_id)
    )
    return {row.agent_account_id: row for row in connection.execute(statement)}


def _highest_caps(connection: sa.Connection, day: str, agents: list[str]) -> dict[str, int]:
    """Return each agent's highest cap, old or new, in the changes since the day began."""
    columns = cap_changes.c
    highest = sa.func.max(
        sa.case((columns.old_cap_micros > columns.new_cap_micros, columns.old_cap_micros), else_=columns.new_cap_micros)
    )
    statement = (
        sa.select(columns.agent_account_id, highest)
        .where(columns.changed_at >= day_start_ms(day), columns.agent_account_id.in_(agents))
        .group_by(columns.agent_account_id)
    )
    return {agent: int(cap) for agent, cap in connection.execute(statement)}


def _check_cap(row: Any, highest_cap: int) -> Iterator[Difference]:
    cap = max(row.cap_micros, highest_cap)
    if row.spent_micros > cap:
        what = "spent exceeds the highest cap of the day"
        yield Difference("P1", row.agent_account_id, what, cap, row.spent_micros)


def _check_sums(row: Any, sums: Any) -> Iterator[Difference]:
    agent = row.agent_account_id
    for name in ("settled_count", "spent_micros", "uncovered_micros"):
        expected = int(getattr(sums, name)) if sums is not None else 0
        if getattr(row, name) != expected:
            yield Difference("P3", agent, f"{name} differs from its settlements", expected, getattr(row, name))


def _check_leases(connection: sa.Connection, day: str, agents: list[str]) -> Iterator[Difference]:
    """Compare each lease's totals with the settlements booked for it."""
    columns = settlements.c
    drawn = sa.case((columns.actual_micros < columns.held_micros, columns.actual_micros), else_=columns.held_micros)
    booked = (
        sa.select(columns.lease_id, sa.func.count().label("events"), sa.func.sum(drawn).label("drawn_micros"))
        .where(columns.spending_date == day, columns.agent_account_id.in_(agents))
        .group_by(columns.lease_id)
        .subquery()
    )
    statement = (
        sa.select(lease_totals, booked.c.events.label("booked"), booked.c.drawn_micros.label("booked_micros"))
        .join_from(lease_totals, booked, lease_totals.c.lease_id == booked.c.lease_id, isouter=True)
        .where(lease_totals.c.spending_date == day, lease_totals.c.agent_account_id.in_(agents))
    )
    for row in connection.execute(statement):
        if row.events != (row.booked or 0):
            yield Difference("P2", row.agent_account_id, f"events of lease {row.lease_id}", row.booked or 0, row.events)
        if row.drawn_micros != (row.booked_micros or 0):
            yield Difference(
                "P2",
                row.agent_account_id,
                f"drawn of lease {row.lease_id}",
                int(row.booked_micros or 0),
                row.drawn_micros,
            )


def _check_counter(ledger: Ledger, publisher: CounterPublisher, day: str, agents: list[str]) -> list[Difference]:
    """Compare the counter with the ledger. A difference must persist over several tries: events settle meanwhile.

    A counter that is behind the ledger is correct if it has reached the seq that the ledger had at the first try.
    """
    reached: dict[str, int] = {}
    found: list[Difference] = []
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_BETWEEN_TRIES_S)
        readings = dict(zip(agents, publisher.read([(agent, day) for agent in agents]), strict=False))
        with ledger.reading() as connection:
            rows = connection.execute(
                sa.select(spending).where(spending.c.spending_date == day, spending.c.agent_account_id.in_(agents))
            ).all()
        found = []
        for row in rows:
            reading = readings.get(row.agent_account_id)
            moving = reading is not None and reached.get(row.agent_account_id, row.seq) <= reading.seq < row.seq
            if not moving:
                found += _differences(row, reading)
            reached.setdefault(row.agent_account_id, row.seq)
        agents = sorted({difference.agent for difference in found})
        if not agents:
            break
    return found


def _differences(row: Any, reading: DayReading | None) -> Iterator[Difference]:
    if reading is None:
        return  # Not open: there are no leases, and opening it copies the ledger.
    for name in ("seq", "cap_micros", "spent_micros"):
        if getattr(reading, name) != getattr(row, name):
            yield Difference(
                "P3", row.agent_account_id, f"{name} in the counter", getattr(row, name), getattr(reading, name)
            )
