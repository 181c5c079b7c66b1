"""Settle on every database: each event once, none past its cap, nothing bad in the way of anything good."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, wall_ms
from daycap.ledger import accounts, charging, settle
from daycap.ledger.charging import Charged
from daycap.ledger.engine import Ledger, is_transient
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import open_days
from daycap.ledger.settle import Outcome
from daycap.ledger.tables import daily_agent_spending, dead_letters, lease_totals, settlements
from daycap.money import MAX_MICROS
from daycap.protocol.counter import DaySnapshot, LeaseTerms, LeaseTotals
from daycap.protocol.wire import FinalizeEvent
from daycap.settings import Settings

TODAY = day_of(wall_ms())
NOWHERE = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))
A, B = "a" * 32, "b" * 32


@pytest.fixture
def agent(ledger: Ledger) -> str:
    accounts.add(ledger, NOWHERE, {"agent": 100, "other": 100}, "test")
    return "agent"


def event(number: int = 1, actual: float = 10, held: float = 10, **changes: Any) -> dict[str, Any]:
    lease = changes.pop("lease", A)
    made = FinalizeEvent(lease, number, number, "agent", TODAY, 10, 10, 1)
    return {**made.to_wire(), "held": held, "actual": actual, **changes}


def settled(ledger: Ledger, *payloads: object) -> Outcome:
    return settle.settle(ledger, payloads, open_days(Settings(), wall_ms()))


def rows(ledger: Ledger, table: sa.Table) -> list[Any]:
    with ledger.reading() as connection:
        return list(connection.execute(sa.select(table).order_by(*table.primary_key)))


def day(ledger: Ledger, agent: str = "agent") -> Any:
    (row,) = (row for row in rows(ledger, daily_agent_spending) if row.agent_account_id == agent)
    return row


def test_a_batch_is_charged_in_order_and_never_past_the_cap(ledger: Ledger, agent: str) -> None:
    outcome = settled(ledger, *(event(number, actual=40, held=40) for number in (1, 2, 3, 4)))

    assert [row.charged_micros for row in rows(ledger, settlements)] == [40, 40, 20, 0]
    assert (outcome.settled, outcome.charged_micros, outcome.uncovered_micros) == (4, 100, 60)
    assert (day(ledger).spent_micros, day(ledger).uncovered_micros, day(ledger).settled_count) == (100, 60, 4)


def test_a_cap_below_what_is_spent_charges_nothing_more(ledger: Ledger, agent: str) -> None:
    settled(ledger, event(1, actual=90, held=90))
    accounts.set_cap(ledger, NOWHERE, agent, 50, "test")

    outcome = settled(ledger, event(2, actual=10))

    assert (outcome.charged_micros, outcome.uncovered_micros) == (0, 10)
    assert (day(ledger).spent_micros, day(ledger).cap_micros) == (90, 50)


def test_a_lowered_and_raised_cap_is_that_of_the_transaction(ledger: Ledger, agent: str) -> None:
    accounts.set_cap(ledger, NOWHERE, agent, 5, "test")
    settled(ledger, event(1, actual=10))
    accounts.set_cap(ledger, NOWHERE, agent, 50, "test")
    settled(ledger, event(2, actual=30, held=30))

    assert [row.charged_micros for row in rows(ledger, settlements)] == [5, 30]


def test_a_day_of_which_nothing_new_is_settled_stays_as_it_was(ledger: Ledger, agent: str) -> None:
    settled(ledger, event(1))
    before = day(ledger)

    settled(ledger, event(1), event(1, agent="other", lease=B))

    assert day(ledger) == before


def test_duplicates_in_and_between_batches_charge_once(ledger: Ledger, agent: str) -> None:
    first = settled(ledger, event(1), event(1), event(2))
    again = settled(ledger, event(2), event(1), event(3))

    assert (first.settled, first.duplicates, again.settled, again.duplicates) == (2, 1, 1, 2)
    assert day(ledger).spent_micros == 30
    (lease,) = rows(ledger, lease_totals)
    assert (lease.drawn_micros, lease.events, lease.last_event) == (30, 3, 3)


def test_a_conflict_is_kept_and_changes_nothing(ledger: Ledger, agent: str) -> None:
    settled(ledger, event(1))

    outcome = settled(ledger, event(1, actual=11), event(2), event(2, held=99))

    assert [letter.kind for letter in outcome.dead_letters] == ["conflict", "conflict"]
    assert day(ledger).spent_micros == 20


def test_drawn_is_no_more_than_was_held(ledger: Ledger, agent: str) -> None:
    outcome = settled(ledger, event(1, actual=30, held=10), event(2, actual=5, held=10))

    assert outcome.snapshots == [
        DaySnapshot("agent", TODAY, 2, "active", 100, 35, 15, (LeaseTotals(A, 15, 2, 2),), base_seq=1)
    ]


def test_the_snapshot_carries_what_changed(ledger: Ledger, agent: str) -> None:
    settled(ledger, event(1, lease=A))

    outcome = settled(ledger, event(1, lease=B))

    (snapshot,) = outcome.snapshots
    assert ([totals.lease for totals in snapshot.leases], snapshot.base_seq) == ([B], snapshot.seq - 1)


def test_every_settle_raises_seq(ledger: Ledger, agent: str) -> None:
    before = day(ledger).seq
    settled(ledger, event(1))
    settled(ledger, event(2))
    assert day(ledger).seq == before + 2


def test_a_gap_in_the_events_is_visible(ledger: Ledger, agent: str) -> None:
    settled(ledger, event(1), event(3))

    (lease,) = rows(ledger, lease_totals)
    assert (lease.events, lease.last_event) == (2, 3)


def test_a_day_without_a_row_gets_one_before_it_is_charged(ledger: Ledger, agent: str) -> None:
    yesterday = day_of(wall_ms() - DAY_MS)

    settled(ledger, event(1, day=yesterday))

    charged = {row.spending_date: row.spent_micros for row in rows(ledger, daily_agent_spending) if row.spent_micros}
    assert charged == {yesterday: 10}


def test_a_lease_is_one_agents_and_one_days(ledger: Ledger, agent: str) -> None:
    outcome = settled(ledger, event(1), event(2, agent="other"), event(3, day=day_of(wall_ms() - DAY_MS)))

    assert [letter.kind for letter in outcome.dead_letters] == ["wrong_lease", "wrong_lease"]
    assert day(ledger, "other").spent_micros == 0


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (None, "malformed"),
        ([], "malformed"),
        (event(v=3), "malformed"),
        (event(v=True), "malformed"),
        (event(held=1.0), "malformed"),
        (event(actual=-1), "malformed"),
        (event(actual=2**53), "malformed"),
        (event(actual=float("nan")), "malformed"),
        (event(event=0), "malformed"),
        (event(agent="no spaces"), "malformed"),
        (event(agent="x\x00y"), "malformed"),
        (event(day="2026-1-1"), "malformed"),
        (event(reservation=f"{A}-0"), "malformed"),
        (event(reservation=f"{B}-1"), "malformed"),
        ({**event(), "lease": "\ud800"}, "malformed"),
        (event(day="1970-01-01"), "day_closed"),
        (event(day="2999-01-01"), "wrong_day"),
        (event(agent="nobody"), "unknown_agent"),
    ],
)
def test_what_cannot_be_settled_is_kept_with_its_reason(ledger: Ledger, agent: str, payload: object, kind: str) -> None:
    outcome = settled(ledger, payload, event(7), payload)

    assert outcome.settled == 1
    (letter,) = rows(ledger, dead_letters)
    assert (letter.kind, letter.times) == (kind, 2 if kind != "unknown" else 1)
    assert letter.reason


def test_costs_that_no_cap_bounds_stop_at_the_largest_amount(ledger: Ledger, agent: str) -> None:
    for number in (1, 2, 3):
        settled(ledger, event(number, actual=MAX_MICROS, held=MAX_MICROS))

    assert (day(ledger).spent_micros, day(ledger).uncovered_micros) == (100, MAX_MICROS)
    (lease,) = rows(ledger, lease_totals)
    assert (lease.drawn_micros, lease.events) == (MAX_MICROS, 3)


def test_an_event_that_the_ledger_refuses_is_set_aside_alone(
    ledger: Ledger, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a row that the ledger will not take, for a reason that no check of ours foresaw
    write = charging.write

    def refuses_number_2(connection: sa.Connection, charged: list[Charged], *more: Any) -> None:
        write(connection, [each._replace(micros=-1) if of_number_2(each) else each for each in charged], *more)

    def of_number_2(charged: Charged) -> bool:
        return charged.counted.event.number == 2

    monkeypatch.setattr(settle, "write", refuses_number_2)

    outcome = settled(ledger, event(1), event(2), event(3))

    assert (outcome.settled, [letter.kind for letter in outcome.dead_letters]) == (2, ["failed"])
    assert [row.reservation_id for row in rows(ledger, settlements)] == [f"{A}-1", f"{A}-3"]
    assert day(ledger).spent_micros == 20


def test_a_batch_that_was_settled_one_by_one_is_reported_as_one(
    ledger: Ledger, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = charging.write

    def refuses_number_2(connection: sa.Connection, charged: list[Charged], *more: Any) -> None:
        write(connection, [each._replace(micros=-1) if of_number_2(each) else each for each in charged], *more)

    def of_number_2(charged: Charged) -> bool:
        return charged.counted.event.number == 2

    monkeypatch.setattr(settle, "write", refuses_number_2)
    first = event(1, actual=70, held=70)

    others = event(1, agent="other", lease=B)

    outcome = settled(ledger, first, others, first, event(2), event(3, actual=50, held=50))

    assert (outcome.settled, outcome.duplicates) == (3, 1)
    assert (outcome.charged_micros, outcome.uncovered_micros) == (110, 20)
    assert sorted(outcome.snapshots, key=lambda each: (each.agent, each.seq, each.base_seq)) == [
        DaySnapshot("agent", TODAY, 2, "active", 100, 70, 70, (LeaseTotals(A, 70, 1, 1),), base_seq=1),
        DaySnapshot("agent", TODAY, 2, "active", 100, 70, 70, (LeaseTotals(A, 70, 1, 1),), base_seq=2),
        DaySnapshot("agent", TODAY, 3, "active", 100, 100, 120, (LeaseTotals(A, 120, 2, 3),), base_seq=2),
        DaySnapshot("other", TODAY, 2, "active", 100, 10, 10, (LeaseTotals(B, 10, 1, 1),), base_seq=1),
    ]
    assert [(letter.kind, letter.times) for letter in rows(ledger, dead_letters)] == [("failed", 1)]


@pytest.mark.parametrize("busy_at", [1, 2])
def test_what_only_time_can_help_is_raised_and_nothing_is_set_aside(
    ledger: Ledger, agent: str, monkeypatch: pytest.MonkeyPatch, busy_at: int
) -> None:
    """P7: the queue delivers it again, whether the batch meets it or an event that is tried alone."""
    calls = iter(range(1, 3))

    def fails(*_: object) -> None:
        if next(calls) < busy_at:
            raise ValueError("this batch it refuses")
        raise sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))

    monkeypatch.setattr(settle, "write", fails)

    with pytest.raises(sa.exc.OperationalError):
        settled(ledger, event(1))
    assert (rows(ledger, settlements), rows(ledger, dead_letters)) == ([], [])
    assert len(list(calls)) == 2 - busy_at  # It was not tried once more.


def test_the_first_and_the_last_open_day_are_open(ledger: Ledger, agent: str) -> None:
    yesterday = day_of(wall_ms() - DAY_MS)
    open_ones = open_days(Settings(), wall_ms())._replace(oldest=yesterday, newest=TODAY)
    outcome = settle.settle(ledger, [event(1), event(1, lease=B, day=yesterday)], open_ones)
    assert (outcome.settled, outcome.dead_letters) == (2, [])


def test_many_workers_at_once_charge_each_event_once_and_keep_the_cap(ledger: Ledger, agent: str) -> None:
    batches = [[event(number, actual=7, held=7, lease=f"{lease:032x}") for number in range(1, 6)] for lease in range(8)]
    together = threading.Barrier(4)

    def work(first: int) -> None:
        together.wait()
        for batch in batches[first:] + batches[:first]:
            _until_it_passes(partial(settled, ledger, *batch))

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(work, (0, 2, 4, 6)))

    assert len(rows(ledger, settlements)) == 40
    assert day(ledger).spent_micros == sum(row.charged_micros for row in rows(ledger, settlements)) == 100
    assert day(ledger).uncovered_micros == 40 * 7 - 100


def test_concurrent_cap_change_and_settles(ledger: Ledger, agent: str) -> None:
    caps = [30, 60, 90, 40, 100]

    def change() -> None:
        for cap in caps:
            _until_it_passes(partial(accounts.set_cap, ledger, NOWHERE, agent, cap, "test"))

    def charge() -> None:
        for number in range(1, 41):
            _until_it_passes(partial(settled, ledger, event(number, actual=3, held=3)))

    with ThreadPoolExecutor(2) as workers:
        for done in [workers.submit(change), workers.submit(charge)]:
            done.result()

    assert day(ledger).spent_micros == sum(row.charged_micros for row in rows(ledger, settlements)) <= 100
    assert day(ledger).cap_micros == 100


def _until_it_passes(work: Callable[[], object]) -> None:
    """As the queue does: what the ledger could not take now is delivered again."""
    for _ in range(50):
        try:
            work()
        except sa.exc.SQLAlchemyError as error:
            if not is_transient(error):
                raise
        else:
            return
    raise AssertionError("the ledger stayed busy")
