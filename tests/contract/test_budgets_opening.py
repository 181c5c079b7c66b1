"""Opening budgets' periods ahead, on every database: each once, with its bounds, and without a fence."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from daycap.clock import day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.ledger import accounts, budgets, days, opening, tables
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import all_of, slice_of
from daycap.ledger.tables import budget_periods
from daycap.periods import PeriodRule
from daycap.protocol.counter import AgentDay
from daycap.protocol.runs import new_run
from tests.contract.conftest import DAY, NEXT, TERMS, ServerClock

AHEAD_MS = 2 * 3_600_000


@pytest.fixture(autouse=True)
def agents(ledger: Ledger, publisher: CounterPublisher) -> None:
    accounts.add(ledger, publisher, {"a": 100}, "test")


def add(ledger: Ledger, name: str, kind: str, zone: str = "UTC", **facts: object) -> None:
    period = {"period": kind, "zone": zone} if zone != "UTC" else {"period": kind}
    add_by(ledger, name, {"agent": "a", "cap_micros": 50, "period": period, **facts})


def add_by(ledger: Ledger, name: str, facts: dict[str, object]) -> None:
    """As it was added before the period began: without a counter's time nothing is opened."""
    budgets.add(ledger, CounterPublisher(None, TERMS), name, facts, "test")


def rollover(ledger: Ledger, publisher: CounterPublisher, ahead_ms: int = AHEAD_MS) -> int:
    return all_of(lambda place: opening.rollover(ledger, publisher, ahead_ms, place))["opened"]


def opened(ledger: Ledger) -> list[AgentDay]:
    columns = budget_periods.c
    with ledger.reading() as connection:
        rows = connection.execute(sa.select(columns.budget_id, columns.period_id))
        return sorted((budget, period) for budget, period in rows)


def test_periods_open_when_they_last_or_begin_soon(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock
) -> None:
    add(ledger, "day", "day")
    add(ledger, "zurich", "day", "Europe/Zurich")  # Its next one begins an hour before.
    add(ledger, "run", "once")
    add(ledger, "seen", "day", mode="watch")
    add(ledger, "gone", "day")
    budgets.remove(ledger, publisher, "gone", "test")

    assert rollover(ledger, publisher) == 3, "it is noon"
    assert opened(ledger) == [("day/1", DAY), ("run/1", "once"), ("zurich/1", DAY)]
    assert rollover(ledger, publisher) == 0
    clock.ms = day_start_ms(NEXT) - AHEAD_MS - 3_600_000
    assert rollover(ledger, publisher) == 1
    clock.ms += 3_599_999
    assert rollover(ledger, publisher) == 0
    clock.ms += 1
    assert rollover(ledger, publisher) == 2, "the agent's own day, too"

    assert opened(ledger)[1:3] == [("day/1", NEXT), ("run/1", "once")]
    assert opened(ledger)[3:] == [("zurich/1", DAY), ("zurich/1", NEXT)]
    readings = counter.read(opened(ledger))
    assert [(found.cap_micros, found.fenced) for found in readings if found] == [(50, False)] * 5


def test_what_has_ended_and_runs_are_not_opened_ahead(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock
) -> None:
    for name, until_ms in (("ended", clock.ms), ("lasts", clock.ms + 1)):
        facts = {"agent": "a", "cap_micros": 50, "period": {"period": "once", "until_ms": until_ms}}
        add_by(ledger, name, facts)
    run = new_run(50, clock.ms + AHEAD_MS, bytes(10))
    with ledger.writing() as connection:
        days.insert_missing(connection, [(run.id, "once")], clock.ms)
        connection.execute(sa.delete(budget_periods))

    assert rollover(ledger, publisher) == 1

    assert opened(ledger) == [("lasts/1", "once")]


def test_opening_reads_no_run(ledger: Ledger) -> None:
    """There may be thousands a day, and the ledger keeps them."""
    if ledger.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL's plan depends on how much there is")
    statements: list[tuple[str, object]] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *seen: statements.append((seen[2], seen[3])))
    with ledger.reading() as connection:
        opening._next_budgets(connection, "", "")
        of_budgets = [each for each in statements if "FROM budgets" in each[0]]
        assert len(of_budgets) == 2
        for statement, parameters in of_budgets:
            (plan,) = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]
            assert "INDEX ix_budgets_period_budget_id" in plan[3]


def test_opened_periods_have_their_rules_bounds(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock
) -> None:
    for zone in ("Asia/Tokyo", "America/New_York"):
        add(ledger, zone[:4], "month", zone)
        add(ledger, zone[:4] + "-hour", "hour", zone)

    rollover(ledger, publisher)

    with ledger.reading() as connection:
        rows = connection.execute(sa.select(budget_periods, tables.budgets.c.period).join(tables.budgets)).all()
    assert len(rows) == 6, "two hours of each"
    for row in rows:
        rule = PeriodRule.from_json(json.loads(row.period))
        assert rule.named(row.period_id)[1:] == (row.start_ms, row.end_ms)


def test_budgets_open_in_steps_from_any_place(
    ledger: Ledger, publisher: CounterPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_BUDGETS_AT_ONCE", 2)
    for number in range(3):
        add(ledger, f"d{number}", "day")
    add(ledger, "m", "month")

    def step(place: list[object]) -> tuple[int, list[object] | None]:
        done = slice_of(lambda at: opening.rollover(ledger, publisher, AHEAD_MS, at), place, seconds=0)
        return done.counts["opened"], done.place

    day, month = '{"period": "day"}', '{"period": "month"}'
    assert step([DAY, "a"]) == (2, ["budgets", [day, "d1/1"]])
    assert step(["budgets", [day, "d1/1"]]) == (1, ["budgets", [day, "d2/1"]])
    assert step([]) == (0, ["budgets", [day, "d1/1"]])
    assert step(["budgets", [day, "d2/1"]]) == (1, ["budgets", [month, "m/1"]])
    assert step(["budgets", [month, "m/1"]]) == (0, None)


def test_opening_many_budgets_takes_few_statements(ledger: Ledger, publisher: CounterPublisher) -> None:
    def statements(ahead_ms: int) -> int:
        counted: list[str] = []

        def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            counted.append(statement)

        sa.event.listen(ledger.engine, "before_cursor_execute", count)
        rollover(ledger, publisher, ahead_ms)
        sa.event.remove(ledger.engine, "before_cursor_execute", count)
        return len(counted)

    add(ledger, "first", "hour")
    few = statements(0)
    row = {"agent_account_id": "a", "labels": "{}", "period": '{"period": "hour"}', "mode": "enforce", "cap_micros": 1}
    more = [{"budget_id": f"b{number:03}/1", "name": "b", "created_at": 1, "updated_at": 1} for number in range(300)]
    with ledger.writing() as connection:
        connection.execute(sa.insert(tables.budgets), [row | each for each in more])

    assert statements(0) == few
    assert len(opened(ledger)) == 301
