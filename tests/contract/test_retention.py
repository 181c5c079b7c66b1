"""Closing and pruning on every database: what is old leaves the ledger, some at a time, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, wall_ms
from daycap.ledger import accounts, retention
from daycap.ledger.audit import audit
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import kept_days, open_days
from daycap.ledger.settle import Outcome, settle
from daycap.ledger.slices import Slice, all_of, slice_of
from daycap.ledger.tables import (
    agent_accounts,
    cap_changes,
    daily_agent_spending,
    dead_letters,
    lease_totals,
    settlements,
)
from daycap.protocol.counter import LeaseTerms
from daycap.protocol.wire import FinalizeEvent
from daycap.settings import Settings

NOW_MS = wall_ms()
SETTINGS = Settings(close_after_days=7, retention_days=30, books_days=60)
NOWHERE = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))


def day_ago(days: int) -> str:
    return day_of(NOW_MS - days * DAY_MS)


@pytest.fixture
def agent(ledger: Ledger) -> str:
    accounts.add(ledger, NOWHERE, {"agent": 100}, "test")
    return "agent"


def event(day: str, number: int = 1) -> dict[str, Any]:
    """An event of a lease of the day's own."""
    lease = f"lease-{day}"
    return FinalizeEvent(lease, number, number, "agent", day, 10, 10, 1).to_wire()


def settled_in_time(ledger: Ledger, *days: str) -> None:
    """Each day gets one event, when it was there."""
    for day in days:
        assert settle(ledger, [event(day)], retention.OpenDays(day, day)).settled == 1


def settled_now(ledger: Ledger, *payloads: object) -> Outcome:
    return settle(ledger, payloads, open_days(SETTINGS, NOW_MS))


def prune(ledger: Ledger, now_ms: int = NOW_MS) -> dict[str, int]:
    return all_of(lambda place: retention.prune(ledger, SETTINGS, now_ms, place))


def days_of(ledger: Ledger, table: sa.Table) -> list[str]:
    with ledger.reading() as connection:
        return list(connection.scalars(sa.select(table.c.spending_date).order_by(table.c.spending_date)))


def count(ledger: Ledger, table: sa.Table) -> int:
    with ledger.reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def test_a_day_is_closed_so_many_days_after_its_end(ledger: Ledger, agent: str) -> None:
    outcome = settled_now(ledger, event(day_ago(7)), event(day_ago(8)))

    assert outcome.settled == 1
    assert [(letter.kind, letter.payload) for letter in outcome.dead_letters] == [("day_closed", event(day_ago(8)))]
    assert days_of(ledger, settlements) == [day_ago(7)]


def test_a_day_that_is_not_yet_there_is_not_charged(ledger: Ledger, agent: str) -> None:
    assert [letter.kind for letter in settled_now(ledger, event(day_ago(-2))).dead_letters] == ["wrong_day"]


def test_operator_may_charge_a_kept_closed_day(ledger: Ledger, agent: str) -> None:
    settled_in_time(ledger, day_ago(30))

    late = [event(day_ago(30)), event(day_ago(30), 2), event(day_ago(31))]
    outcome = settle(ledger, late, kept_days(SETTINGS, NOW_MS))

    assert (outcome.settled, outcome.duplicates) == (1, 1)
    assert [letter.kind for letter in outcome.dead_letters] == ["day_closed"]


def test_each_table_is_pruned_at_its_own_age(ledger: Ledger, agent: str) -> None:
    days = [day_ago(ago) for ago in (61, 60, 31, 30, 8, 7, 0)]
    settled_in_time(ledger, *days)

    assert prune(ledger) == {"lease_totals": 5, "settlements": 3, "daily_agent_spending": 1}

    assert days_of(ledger, lease_totals) == [day_ago(7), day_ago(0)]
    assert days_of(ledger, settlements) == [day_ago(30), day_ago(8), day_ago(7), day_ago(0)]
    assert days_of(ledger, daily_agent_spending) == days[1:]
    assert (count(ledger, agent_accounts), count(ledger, cap_changes)) == (1, 1)
    assert prune(ledger) == {}


def test_accounts_and_their_changes_are_kept_for_ever(ledger: Ledger, agent: str) -> None:
    prune(ledger, NOW_MS + 10_000 * DAY_MS)

    assert count(ledger, daily_agent_spending) == 0
    assert (count(ledger, agent_accounts), count(ledger, cap_changes)) == (1, 1)


def test_a_dead_letter_is_kept_as_long_as_it_is_seen(ledger: Ledger, agent: str) -> None:
    settled_now(ledger, "nonsense", "more nonsense")
    with ledger.writing() as connection:
        old = sa.update(dead_letters).where(dead_letters.c.payload == '"nonsense"')
        connection.execute(old.values(last_seen_at=NOW_MS - 32 * DAY_MS))
        long = sa.update(dead_letters).where(dead_letters.c.payload != '"nonsense"')
        connection.execute(long.values(first_seen_at=NOW_MS - 32 * DAY_MS))

    assert prune(ledger) == {"dead_letters": 1}
    assert count(ledger, dead_letters) == 1


def test_pruning_goes_in_short_steps(ledger: Ledger, agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    settled_in_time(ledger, *(day_ago(ago) for ago in range(8, 13)))

    steps = []
    place: list[Any] | None = []
    while place is not None:
        done = slice_of(lambda at: retention.prune(ledger, SETTINGS, NOW_MS, at), place, seconds=0)
        steps.append(done.counts)
        place = done.place

    assert steps == [{"lease_totals": 2}, {"lease_totals": 2}, {"lease_totals": 1}, {}]


def test_an_audit_of_a_day_that_was_pruned_says_so(ledger: Ledger, agent: str) -> None:
    days = [day_ago(ago) for ago in (31, 8, 7)]
    settled_in_time(ledger, *days)
    prune(ledger)
    assert settle(ledger, [event(day_ago(8), 2)], kept_days(SETTINGS, NOW_MS)).settled == 1

    audits = [audit(ledger, NOWHERE, SETTINGS, day) for day in days]

    assert [found.pruned for found in audits] == [["leases", "settlements"], ["leases"], []]
    assert [found.differences for found in audits] == [[], [], []]
    assert [found.spent_micros for found in audits] == [10, 20, 10]


def test_an_audit_of_a_closed_day_still_compares_what_is_kept(ledger: Ledger, agent: str) -> None:
    settled_in_time(ledger, day_ago(8), day_ago(31))
    prune(ledger)
    with ledger.writing() as connection:
        connection.execute(sa.update(daily_agent_spending).values(spent_micros=200))

    promises = {
        day: {d["promise"] for d in audit(ledger, NOWHERE, SETTINGS, day).differences}
        for day in (day_ago(8), day_ago(31))
    }

    assert promises == {day_ago(8): {"P1", "P3"}, day_ago(31): {"P1"}}


def test_a_slice_goes_on_where_the_last_one_stopped() -> None:
    def step(place: list[Any]) -> Slice:
        at = place[0] if place else 0
        return Slice({"steps": 1}, [at + 1] if at < 3 else None)

    assert slice_of(step, [], seconds=0) == Slice({"steps": 1}, [1])
    assert slice_of(step, [1], seconds=60) == Slice({"steps": 3}, None)
    assert all_of(step) == {"steps": 4}


def test_no_row_of_a_day_is_looked_for_in_the_whole_table(ledger: Ledger, agent: str) -> None:
    """With 100,000 agents and years of days, one scan takes longer than everything else together."""
    if ledger.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL's plan depends on how much there is")
    statements: list[tuple[str, Any]] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *seen: statements.append((seen[2], seen[3])))

    settled_now(ledger, event(day_ago(0)), event(day_ago(1)), event(day_ago(0), 2))
    prune(ledger)

    with ledger.reading() as connection:
        for statement, parameters in list(statements):
            if not statement.startswith(("SELECT", "DELETE")):
                continue
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            assert not [row[3] for row in plan if row[3].startswith("SCAN")], statement
