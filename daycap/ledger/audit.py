"""Audit: check a day's ledger and counter, and its budgets', against promises P1, P2 and P3; report each difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.clock import day_of, day_start_ms
from daycap.ledger.audit_budgets import check_periods
from daycap.ledger.audit_counter import Difference, check_counter
from daycap.ledger.caps import highest_cap, raises_of
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import kept_days, open_days
from daycap.ledger.tables import cap_changes, lease_totals, settlements
from daycap.ledger.tables import daily_agent_spending as spending
from daycap.protocol.counter import AgentDay
from daycap.settings import Settings

_AT_ONCE = 500


class Audit(NamedTuple):
    """What an audit checked and found. No differences means that every promise holds."""

    day: str
    agents: int
    settlements: int
    spent_micros: int
    uncovered_micros: int
    pruned: list[str]
    """What was not compared, because the ledger no longer keeps it: `leases`, `settlements`."""
    budgets: int
    """How many periods of budgets have a part on the day."""
    budgets_pruned: dict[str, int]
    """Of how many of these `leases`, or `settlements`, were not compared, because some are no longer kept."""
    differences: list[dict[str, Any]]


def audit(ledger: Ledger, publisher: CounterPublisher, settings: Settings, day: str | None = None) -> Audit:
    """Audit `day`, by default the counter's today. The counter is compared as long as it has the day.

    Budgets' periods that have a part on the day are compared from their begin on. A closed day may have no lease totals
    any more, an older one no settlements: see `Audit.pruned`.

    Raises `InvalidInput` for an invalid day and `CounterUnavailable` if the counter does not answer.
    """
    now_ms = publisher.authoritative_ms()
    day = day_of(now_ms) if day is None else day
    day_start_ms(day)
    pruned = _pruned(day, settings, now_ms)
    agents = count = spent = uncovered = 0
    differences: list[Difference] = []
    read: list[list[AgentDay]] = []
    periods, periods_pruned = 0, Counter[str]()
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
            read.append([(agent, day) for agent in names])
        for checked in check_periods(connection, settings, now_ms, day):
            periods += checked.periods
            periods_pruned += checked.pruned
            differences += checked.differences
            read.append(checked.counted)
    # After the transaction, not inside it: a nested one would deadlock behind a pooler with a single session.
    for wanted in read:
        differences += check_counter(ledger, publisher, wanted)
    found = [each._asdict() for each in differences]
    return Audit(day, agents, count, spent, uncovered, pruned, periods, dict(periods_pruned), found)


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
    """Return each agent's highest cap of the day that changes and raises show."""
    columns = cap_changes.c
    statement = sa.select(
        columns.agent_account_id, columns.changed_at, columns.old_cap_micros, columns.new_cap_micros
    ).where(columns.changed_at >= day_start_ms(day), columns.agent_account_id.in_(agents))
    changes: dict[str, list[tuple[int, int | None, int]]] = {}
    for agent, *change in connection.execute(statement):
        changes.setdefault(agent, []).append((change[0], change[1], change[2]))
    raises = raises_of(connection, [(agent, day) for agent in agents])
    return {agent: highest_cap(changes.get(agent, ()), raises.get((agent, day), ())) for agent in agents}


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
