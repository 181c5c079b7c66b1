"""The audit of budgets' periods on every database: it finds each number that is wrong, and says what it cannot know."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.ledger import accounts, audit_counter, budgets, opening, retention
from daycap.ledger.audit import Audit, audit
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import OpenDays
from daycap.ledger.settle import settle
from daycap.ledger.slices import all_of
from daycap.ledger.tables import budget_leases, budget_periods, contexts, settlements, shortfalls
from daycap.protocol.counter import DaySnapshot, SyncRequest
from daycap.protocol.wire import FinalizeEvent, Share
from daycap.settings import Settings
from tests.contract.conftest import DAY, NEXT, TERMS, ServerClock
from worker import housekeeping

SETTINGS = Settings(close_after_days=7, retention_days=30, books_days=60)
MONTH = ("team/1", DAY[:7])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_counter, "_BETWEEN_TRIES_S", 0)


@pytest.fixture(autouse=True)
def settled(ledger: Ledger, publisher: CounterPublisher) -> None:
    """Two agents' month has cost 130 and had no room for 20 more; one of them has a budget that only watches."""
    accounts.add(ledger, publisher, {"a": 1000, "b": 1000}, "test")
    add(ledger, publisher, "team", 130)
    add(ledger, publisher, "seen", 1000, mode="watch")
    opening.open_on_request(ledger, publisher, *MONTH)
    for number in (1, 2, 3):
        charge(ledger, publisher, number)


def add(ledger: Ledger, publisher: CounterPublisher, name: str, cap: int, kind: str = "month", **facts: object) -> None:
    wanted = {"agent": "a", "cap_micros": cap, "period": {"period": kind}, **facts}
    budgets.add(ledger, publisher, name, wanted, "test")


def charge(ledger: Ledger, publisher: CounterPublisher, number: int, day: str = DAY) -> None:
    shares = (Share(*MONTH, "t" * 32),) if day.startswith(MONTH[1]) else ()  # Otherwise it counts by the plan.
    at_ms = day_start_ms(day)
    event = FinalizeEvent(f"own-{day}", number, number, "a", day, 50, 50, at_ms, shares)
    outcome = settle(ledger, [event.to_wire()], OpenDays("2026-01-01", "2027-12-31"))
    assert outcome.settled == 1
    publisher.publish(ledger, outcome.snapshots)


def found(ledger: Ledger, publisher: CounterPublisher, day: str | None = None) -> Audit:
    return audit(ledger, publisher, SETTINGS, day)


def differences(ledger: Ledger, publisher: CounterPublisher) -> list[tuple[Any, ...]]:
    return [tuple(each.values()) for each in found(ledger, publisher).differences]


def change(ledger: Ledger, statement: sa.Update | sa.Delete) -> None:
    with ledger.writing() as connection:
        assert connection.execute(statement).rowcount


def of_team(**values: int) -> sa.Update:
    return sa.update(budget_periods).where(budget_periods.c.budget_id == MONTH[0]).values(**values)


def test_books_that_add_up_have_no_difference(ledger: Ledger, publisher: CounterPublisher) -> None:
    charge(ledger, publisher, 4, NEXT)

    today = found(ledger, publisher)

    assert (today.budgets, today.budgets_pruned, today.differences) == (2, {}, [])
    assert (today.settlements, today.spent_micros) == (3, 150), "those of the day alone"
    assert found(ledger, publisher, "2026-11-01").budgets == 2
    assert found(ledger, publisher, "2026-12-01").budgets == 0


@pytest.mark.parametrize(
    ("promise", "what", "expected", "wrong", "column"),
    [
        ("P3", "settled_count differs from its settlements", 3, 4, "settled_count"),
        ("P3", "spent_micros differs from its settlements", 130, 129, "spent_micros"),
        ("P3", "uncovered_micros differs from its settlements", 20, 0, "uncovered_micros"),
        ("P2", "drawn_micros differs from its leases", 150, 149, "drawn_micros"),
    ],
)
def test_each_wrong_number_is_found(
    ledger: Ledger, publisher: CounterPublisher, promise: str, what: str, expected: int, wrong: int, column: str
) -> None:
    change(ledger, of_team(**{column: wrong}))

    each = differences(ledger, publisher)

    assert (promise, "team/1", f"2026-11: {what}", expected, wrong) in each
    assert len(each) == (2 if column == "spent_micros" else 1), "the counter has the right one"


@pytest.mark.parametrize("table", [settlements, shortfalls, contexts, budget_leases], ids=lambda table: table.name)
def test_a_lost_row_is_found(ledger: Ledger, publisher: CounterPublisher, table: sa.Table) -> None:
    """Of the month and, except for its shortfall and leases, of the budget that watches."""
    with ledger.reading() as connection:
        row = connection.execute(sa.select(table).order_by(*table.primary_key)).first()
    assert row is not None
    key = next(iter(table.primary_key))
    change(ledger, sa.delete(table).where(key == row._mapping[key.name]))

    assert {each[0] for each in differences(ledger, publisher)} == {"P2" if table is budget_leases else "P3"} | (
        {"P2"} if table is settlements else set()
    )


def test_spending_above_every_cap_is_found(ledger: Ledger, publisher: CounterPublisher, clock: ServerClock) -> None:
    budgets.alter(ledger, publisher, "team", {"cap_micros": 100}, "test")
    assert differences(ledger, publisher) == [], "it was 130 in this month"

    change(ledger, of_team(spent_micros=131))
    assert ("P1", "team/1", "2026-11: spent exceeds the highest cap of the period", 130, 131) in differences(
        ledger, publisher
    )


def test_cap_of_another_budget_of_the_name_excuses_nothing(ledger: Ledger, publisher: CounterPublisher) -> None:
    budgets.alter(ledger, publisher, "team", {"cap_micros": 900, "labels": {"tool": ["x"]}}, "test")
    change(ledger, of_team(spent_micros=131))

    assert "P1" in {each[0] for each in differences(ledger, publisher)}


def test_counter_that_differs_is_found(ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter) -> None:
    with ledger.reading() as connection:
        row = connection.execute(sa.select(budget_periods).where(budget_periods.c.budget_id == MONTH[0])).one()
    span = (row.start_ms, row.end_ms)
    wrong = DaySnapshot(*MONTH, row.seq, "active", 131, 129, 150, repairs=True, span=span)
    publisher.publish(ledger, [wrong])

    assert differences(ledger, publisher) == [
        ("P3", "team/1", "2026-11: cap_micros in the counter", 130, 131),
        ("P3", "team/1", "2026-11: spent_micros in the counter", 130, 129),
    ]


def test_folded_leases_count(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock
) -> None:
    with ledger.reading() as connection:
        row = connection.execute(sa.select(budget_periods).where(budget_periods.c.budget_id == MONTH[0])).one()
    span = (row.start_ms, row.end_ms)
    counter.sync([SyncRequest(*MONTH, "t" * 32, 150, 0, farewell=150, span=span)])
    clock.ms += TERMS.ttl_ms + TERMS.grace_ms + 1
    folded = all_of(lambda at: housekeeping.expire(ledger, publisher, lambda now_ms: now_ms, at, fold_above=0))
    assert folded["folded"] == 1

    assert differences(ledger, publisher) == []


def test_what_is_no_longer_kept_is_not_compared(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock
) -> None:
    add(ledger, publisher, "run", 1000, kind="once")
    charge(ledger, publisher, 5)
    clock.ms += 33 * DAY_MS
    charge(ledger, publisher, 6, day_of(clock.ms))
    now_ms = clock.ms
    all_of(lambda place: retention.prune(ledger, SETTINGS, now_ms, place))

    last, today = found(ledger, publisher, "2026-11-30"), found(ledger, publisher)

    assert (last.budgets, last.budgets_pruned, last.differences) == (3, {"leases": 2, "settlements": 3}, [])
    assert (today.budgets, today.budgets_pruned, today.differences) == (3, {"settlements": 1}, [])
