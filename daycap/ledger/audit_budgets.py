"""Audit of budgets: the periods that have a part on a day, from their begin on, against settlements and leases."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.ledger.audit_counter import Difference, difference
from daycap.ledger.budget_rows import MOST_APART_MS
from daycap.ledger.caps import highest_cap, raises_of
from daycap.ledger.definitions import Definition, definition_of
from daycap.ledger.retention import kept_days, no_event_since_ms, open_days
from daycap.ledger.tables import BUDGETS, budget_changes, budget_leases, budget_periods, budgets, contexts, settlements
from daycap.ledger.tables import shortfalls as short
from daycap.protocol.counter import AgentDay
from daycap.protocol.plan import ENFORCE
from daycap.settings import Settings

_AT_ONCE = 500


class Checked(NamedTuple):
    """What was found of some periods. `counted` are those that a counter may have."""

    periods: int
    counted: list[AgentDay]
    pruned: Counter[str]
    """Of how many periods something was not compared: `leases`, `settlements`."""
    differences: list[Difference]


def check_periods(connection: sa.Connection, settings: Settings, now_ms: int, day: str) -> Iterator[Checked]:
    """Check the periods of budgets that have a part on `day`, some at a time."""
    oldest = kept_days(settings, now_ms).oldest
    sums: Sums | None = None
    for rows in _pages(connection, day):
        sums = _sums(connection, settings, now_ms, day) if sums is None else sums
        where = [(row.budget_id, row.period_id) for row in rows]
        missing, drawn = _shortfalls(connection, where), _drawn(connection, where)
        checked = Checked(len(rows), [], Counter(), list(_check_caps(connection, rows)))
        for row in rows:
            period = (row.budget_id, row.period_id)
            if row.mode == ENFORCE:
                checked.counted.append(period)
            if day_of(_first_ms(settings, row)) >= oldest:
                checked.differences.extend(_check_sums(row, sums, missing[period]))
            else:
                checked.pruned["settlements"] += 1
            if row.end_ms <= no_event_since_ms(open_days(settings, now_ms).oldest):
                checked.pruned["leases"] += 1
            elif row.drawn_micros != drawn[period]:
                what = "drawn_micros differs from its leases"
                checked.differences.append(difference("P2", period, what, drawn[period], row.drawn_micros))
        yield checked


def _first_ms(settings: Settings, row: Any) -> int:
    """Return a time such that no event of an earlier day counts in the period."""
    # An event that names no budgets counts by the plan in force when it is settled, on a day that is open.
    added_ms = row.created_at - (settings.close_after_days + 1) * DAY_MS
    return int(max(row.start_ms - MOST_APART_MS, added_ms, 0))


def _pages(connection: sa.Connection, day: str) -> Iterator[list[Any]]:
    start_ms = day_start_ms(day)
    columns = budget_periods.c
    key = (columns.end_ms, columns.budget_id, columns.period_id)
    of_budgets = [column for column in budgets.c if column.name not in ("budget_id", "cap_micros", "updated_at")]
    statement = (
        sa.select(budget_periods, *of_budgets)
        .join_from(budget_periods, budgets, columns.budget_id == budgets.c.budget_id)
        .where(columns.start_ms < start_ms + DAY_MS)
        .order_by(*key)
        .limit(_AT_ONCE)
    )
    last: tuple[Any, ...] = (start_ms + 1, "", "")
    while rows := list(connection.execute(statement.where(sa.tuple_(*key) > sa.tuple_(*last)))):
        yield rows
        last = (rows[-1].end_ms, rows[-1].budget_id, rows[-1].period_id)


class Sums(NamedTuple):
    """How many settlements counted in each period, and the sum of their actual amounts."""

    counts: Counter[AgentDay]
    actual: Counter[AgentDay]


def _sums(connection: sa.Connection, settings: Settings, now_ms: int, day: str) -> Sums:
    """Add up the settlements of all periods on `day` that can be compared: one pass over the days since the first."""
    oldest = kept_days(settings, now_ms).oldest
    first, last_ms = now_ms, 0
    for rows in _pages(connection, day):
        its = [ms for row in rows if day_of(ms := _first_ms(settings, row)) >= oldest]
        first, last_ms = min([first, *its]), max(last_ms, rows[-1].end_ms)
    on = settlements.c.spending_date
    last = day_of(min(last_ms, now_ms) + MOST_APART_MS)
    of_contexts = (
        sa.select(settlements.c.context_id, sa.func.count(), sa.func.sum(settlements.c.actual_micros))
        .where(on >= day_of(first), on <= last, settlements.c.context_id.is_not(None))
        .group_by(settlements.c.context_id)
    )
    sums = Sums(Counter(), Counter())
    for batch in _batches(connection.execute(of_contexts)):
        numbers = {context: (count, int(actual)) for context, count, actual in batch}
        texts = sa.select(contexts.c.context_id, contexts.c.budgets).where(contexts.c.context_id.in_(numbers))
        for context, text in connection.execute(texts):
            count, actual = numbers[context]
            for budget, period in json.loads(text):
                sums.counts[budget, period] += count
                sums.actual[budget, period] += actual
    return sums


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    every = list(rows)
    yield from (every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE))


def _shortfalls(connection: sa.Connection, periods: list[AgentDay]) -> Counter[AgentDay]:
    return _totals(connection, short, short.c.uncovered_micros, periods)


def _drawn(connection: sa.Connection, periods: list[AgentDay]) -> Counter[AgentDay]:
    return _totals(connection, budget_leases, budget_leases.c.drawn_micros, periods)


def _totals(
    connection: sa.Connection, table: sa.Table, amount: sa.Column[int], periods: list[AgentDay]
) -> Counter[AgentDay]:
    key = (table.c.budget_id, table.c.period_id)
    statement = sa.select(*key, sa.func.sum(amount)).where(BUDGETS.these(table, periods)).group_by(*key)
    return Counter({(budget, period): int(total) for budget, period, total in connection.execute(statement)})


def _check_sums(row: Any, sums: Sums, missing: int) -> Iterator[Difference]:
    period = (row.budget_id, row.period_id)
    for name, expected in (
        ("settled_count", sums.counts[period]),
        ("spent_micros", sums.actual[period] - missing),
        ("uncovered_micros", missing),
    ):
        if getattr(row, name) != expected:
            yield difference("P3", period, f"{name} differs from its settlements", expected, getattr(row, name))


def _check_caps(connection: sa.Connection, rows: list[Any]) -> Iterator[Difference]:
    """Compare what was spent with the highest cap, old or new, that the budget had during the period."""
    suspects = [row for row in rows if row.spent_micros > row.cap_micros]
    if not suspects:
        return
    columns = budget_changes.c
    statement = sa.select(columns.name, columns.changed_at, columns.old, columns.new).where(
        columns.kind == "budget", columns.name.in_({row.name for row in suspects})
    )
    changes = connection.execute(statement).all()
    raises = raises_of(connection, [(row.budget_id, row.period_id) for row in suspects])
    for row in suspects:
        period = (row.budget_id, row.period_id)
        its = [
            (change.changed_at, None, cap)
            for change in changes
            if change.name == row.name and row.start_ms <= change.changed_at < row.end_ms
            for cap in _caps(definition_of(row), change.old, change.new)
        ]
        highest = max(row.cap_micros, highest_cap(its, raises.get(period, ())))
        if row.spent_micros > highest:
            what = "spent exceeds the highest cap of the period"
            yield difference("P1", period, what, highest, row.spent_micros)


def _caps(definition: Definition, *texts: str | None) -> Iterator[int]:
    """Yield the caps among the facts of a change that are about this budget, not about another of its name."""
    facts = definition.to_json()
    fixed = facts.keys() - {"cap_micros", "mode", "carry_over_micros"}
    for text in texts:
        changed = json.loads(text) if text else {}
        if all(changed.get(name) == facts[name] for name in fixed):
            yield changed["cap_micros"]
