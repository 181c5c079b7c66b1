"""What belongs to budgets leaves every database at its own age, and the periods of other zone data count."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.ledger import accounts, budgets, opening, retention, tables
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import OpenDays
from daycap.ledger.settle import Outcome, settle
from daycap.ledger.slices import all_of
from daycap.periods import END_MS, PeriodRule
from daycap.protocol.wire import FinalizeEvent, Share
from daycap.settings import Settings
from tests.contract.conftest import DAY, TERMS, ServerClock

SETTINGS = Settings(close_after_days=7, retention_days=30, books_days=60)
START_MS = day_start_ms(DAY)


@pytest.fixture(autouse=True)
def agent(ledger: Ledger, publisher: CounterPublisher) -> None:
    accounts.add(ledger, publisher, {"agent": 1_000_000}, "test")


def day_after(days: int) -> str:
    return day_of(START_MS + days * DAY_MS)


def add(ledger: Ledger, name: str, rule: PeriodRule, cap: int = 1000) -> None:
    """As it was added before the period began: without a counter's time nothing is opened."""
    facts = {"agent": "agent", "cap_micros": cap, "period": rule.to_json()}
    budgets.add(ledger, CounterPublisher(None, TERMS), name, facts, "test")


def event(day: str, *shares: Share, number: int = 1, labels: dict[str, str] | None = None) -> dict[str, Any]:
    lease = f"own-{day}"
    its = tuple(sorted((labels or {}).items()))
    at_ms = day_start_ms(day)
    return FinalizeEvent(lease, number, number, "agent", day, 10, 10, at_ms, shares, labels=its).to_wire()


def settled(ledger: Ledger, *payloads: dict[str, Any]) -> Outcome:
    return settle(ledger, payloads, OpenDays("2026-01-01", "2027-12-31"))


def prune(ledger: Ledger, days: float) -> dict[str, int]:
    """Prune so many days after `DAY` began."""
    return all_of(lambda place: retention.prune(ledger, SETTINGS, START_MS + round(days * DAY_MS), place))


def rows(ledger: Ledger, table: sa.Table) -> list[Any]:
    with ledger.reading() as connection:
        return list(connection.execute(sa.select(table).order_by(*table.primary_key)))


# --- retention --------------------------------------------------------------------------------------------


def test_each_table_of_budgets_is_pruned_at_its_age(ledger: Ledger, publisher: CounterPublisher) -> None:
    add(ledger, "day", PeriodRule("day"), cap=5)
    assert settled(ledger, event(DAY, Share("day/1", DAY, "a" * 32))).settled == 1

    # One more day than an agent's: another version of the zones' data may let the period end a day later.
    assert prune(ledger, 8.999) == {"lease_totals": 1}
    assert prune(ledger, 9) == {"budget_leases": 1}
    assert prune(ledger, 30.999) == {}
    assert prune(ledger, 31) == {"settlements": 1, "shortfalls": 1, "contexts": 1}
    assert prune(ledger, 61) == {"daily_agent_spending": 1}
    assert prune(ledger, 61.999) == {}
    assert prune(ledger, 62) == {"budget_periods": 1}
    assert len(rows(ledger, tables.budgets)) == 1


def test_a_lasting_period_keeps_its_leases(ledger: Ledger, publisher: CounterPublisher, clock: ServerClock) -> None:
    add(ledger, "run", PeriodRule("once"))
    settled(ledger, event(DAY, Share("run/1", "once", "a" * 32)))

    assert prune(ledger, 1000) == {"lease_totals": 1, "settlements": 1, "contexts": 1, "daily_agent_spending": 1}
    assert [row.end_ms for row in rows(ledger, tables.budget_leases)] == [END_MS]

    budgets.remove(ledger, publisher, "run", "test")
    assert [row.end_ms for row in rows(ledger, tables.budget_leases)] == [clock.ms + DAY_MS]
    settled(ledger, event(DAY, Share("run/1", "once", "b" * 32)))
    pruned = prune(ledger, 1000)
    assert (pruned["budget_leases"], pruned["budget_periods"]) == (2, 1)


def test_a_context_is_kept_with_its_last_settlement(ledger: Ledger) -> None:
    labels = {"model": "m"}
    settled(ledger, event(DAY, labels=labels))
    settled(ledger, event(day_after(5), labels=labels))
    settled(ledger, event(day_after(3), labels=labels))

    (context,) = rows(ledger, tables.contexts)
    assert context.last_date == day_after(5)
    assert "contexts" not in prune(ledger, 35)
    assert {row.context_id for row in rows(ledger, tables.settlements)} == {context.context_id}
    assert prune(ledger, 36)["contexts"] == 1


def test_pruning_budgets_scans_no_table(ledger: Ledger, publisher: CounterPublisher) -> None:
    if ledger.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL's plan depends on how much there is")
    add(ledger, "day", PeriodRule("day"), cap=5)
    settled(ledger, event(DAY, Share("day/1", DAY, "a" * 32)))
    statements: list[tuple[str, Any]] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *seen: statements.append((seen[2], seen[3])))
    prune(ledger, 100)
    with ledger.reading() as connection:
        for statement, parameters in [each for each in statements if each[0].startswith(("SELECT", "DELETE"))]:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            assert not [row[3] for row in plan if row[3].startswith("SCAN")], statement


# --- other zone data --------------------------------------------------------------------------------------

KATHMANDU = PeriodRule("day", zone="Asia/Kathmandu")


def test_period_that_begins_later_here_is_charged(ledger: Ledger, publisher: CounterPublisher) -> None:
    """By the runner's data the period had begun before midnight UTC; by the worker's it begins after it."""
    add(ledger, "day", PeriodRule("day", zone="Atlantic/Azores"))
    period = PeriodRule("day", zone="Atlantic/Azores").named(day_after(1))
    assert day_of(period.start_ms) == day_after(1)

    outcome = settled(ledger, event(DAY, Share("day/1", period.id, "a" * 32)))

    assert (outcome.settled, outcome.dead_letters) == (1, [])
    (row,) = rows(ledger, tables.budget_periods)
    assert (row.spent_micros, row.start_ms, row.end_ms) == (10, period.start_ms, period.end_ms)


def test_bounds_that_the_ledger_has_are_binding(ledger: Ledger, publisher: CounterPublisher) -> None:
    add(ledger, "day", KATHMANDU)
    opening.open_on_request(ledger, publisher, "day/1", DAY)
    shifted = {"start_ms": KATHMANDU.named(DAY).start_ms + 900_000, "end_ms": KATHMANDU.named(DAY).end_ms + 900_000}
    with ledger.writing() as connection:
        connection.execute(sa.update(tables.budget_periods).values(**shifted))

    outcome = settled(ledger, event(DAY, Share("day/1", DAY, "a" * 32)))

    assert outcome.settled == 1
    (row,) = rows(ledger, tables.budget_periods)
    assert (row.start_ms, row.end_ms, row.spent_micros) == (*shifted.values(), 10)
    (its,) = [each for each in outcome.snapshots if each.agent == "day/1"]
    assert its.span == tuple(shifted.values())


def test_unknown_hour_is_set_aside_and_the_rest_settles(ledger: Ledger, publisher: CounterPublisher) -> None:
    """The runner's data has another offset, which is a part of the hour's id."""
    add(ledger, "hour", PeriodRule("hour", zone="Asia/Kathmandu"))
    good, other = f"{DAY}T05+0545", f"{DAY}T05+0530"

    outcome = settled(
        ledger,
        event(DAY, Share("hour/1", good, "a" * 32)),
        event(DAY, Share("hour/1", other, "b" * 32), number=2),
        event(DAY, number=3),
    )

    assert outcome.settled == 2
    (letter,) = outcome.dead_letters
    assert (letter.kind, letter.reason) == (
        "unknown_budget",
        f"there is no budget hour/1 with a period {other} on {DAY}",
    )
    assert [(row.period_id, row.spent_micros) for row in rows(ledger, tables.budget_periods)] == [(good, 20)]
