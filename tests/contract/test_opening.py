"""Opening days on every database: each once, by whoever is first, and without a fence."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from daycap import InvalidInput
from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.ledger import accounts, days, opening
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import all_of, slice_of
from daycap.ledger.snapshots import read_snapshots
from daycap.ledger.tables import daily_agent_spending
from daycap.protocol.counter import Answer, DayReading, DaySnapshot, LeaseTerms, SyncRequest
from tests.contract.conftest import DAY, NEXT, ServerClock
from worker import housekeeping

AHEAD_MS = 2 * 3_600_000


def open_rows(ledger: Ledger, day: str) -> list[str]:
    statement = sa.select(daily_agent_spending.c.agent_account_id).where(daily_agent_spending.c.spending_date == day)
    with ledger.reading() as connection:
        return sorted(connection.scalars(statement))


def rollover(ledger: Ledger, publisher: CounterPublisher) -> int:
    return all_of(lambda place: opening.rollover(ledger, publisher, AHEAD_MS, place))["opened"]


def make_the_row(ledger: Ledger) -> list[DaySnapshot]:
    """As a worker that has committed, and has still to publish what is returned."""
    with ledger.writing() as connection:
        assert days.insert_missing(connection, [("agent", NEXT)], 1)
        return read_snapshots(connection, [("agent", NEXT)])


def reading(counter: MemoryCounter) -> DayReading:
    (found,) = counter.read([("agent", NEXT)])
    assert found is not None
    return found


def test_the_next_day_is_opened_ahead_of_midnight_for_active_agents(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock
) -> None:
    accounts.add(ledger, publisher, {"a": 100, "b": 200, "paused": 300}, "test")
    accounts.set_status(ledger, publisher, "paused", "paused", "test")
    assert rollover(ledger, publisher) == 0, "it is noon"

    clock.ms = day_start_ms(NEXT) - AHEAD_MS
    assert rollover(ledger, publisher) == 2
    assert rollover(ledger, publisher) == 0

    assert open_rows(ledger, NEXT) == ["a", "b"]
    readings = counter.read([("a", NEXT), ("b", NEXT)])
    assert [(found.cap_micros, found.fenced) for found in readings if found] == [(100, False), (200, False)]


def test_a_rollover_goes_in_steps_and_may_begin_anew_in_the_middle(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_AGENTS_AT_ONCE", 2)
    accounts.add(ledger, publisher, {f"agent-{number}": 100 for number in range(5)}, "test")
    clock.ms = day_start_ms(NEXT) - 1

    def step(place: list[object]) -> tuple[int, list[object] | None]:
        done = slice_of(lambda at: opening.rollover(ledger, publisher, AHEAD_MS, at), place, seconds=0)
        return done.counts["opened"], done.place

    assert step([]) == (2, [NEXT, "agent-1"])
    assert step([NEXT, "agent-1"]) == (2, [NEXT, "agent-3"])
    assert step([]) == (1, [NEXT, "agent-4"]), "what is missing is found from the beginning too"
    assert step([NEXT, "agent-3"]) == (0, None)


def test_others_that_overtake_the_opener_of_a_day_leave_no_fence(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock
) -> None:
    accounts.add(ledger, publisher, {"agent": 100}, "test")
    opened_at_ms = clock.ms = day_start_ms(NEXT) + 1
    made = make_the_row(ledger)

    # When others see the row before its opener has published it
    assert opening.open_on_request(ledger, publisher, "agent", NEXT) == 0
    all_of(lambda place: housekeeping.reconcile(ledger, publisher, place))
    assert reading(counter).fenced, "they do not know that nobody holds a lease of it"

    # Then the opener, who does, takes the fence away
    clock.ms += 500
    publisher.publish(ledger, made, opened_at_ms=opened_at_ms)
    assert not reading(counter).fenced


@pytest.mark.parametrize(("ttl_ms", "late_ms"), [(30_000, 10_001), (3_000, 4_001)])
def test_an_opener_that_comes_too_late_takes_no_fence_away(
    ledger: Ledger, counter: MemoryCounter, clock: ServerClock, ttl_ms: int, late_ms: int
) -> None:
    """By then a fence may have come and gone before, and leases may have been made and lost."""
    publisher = CounterPublisher(counter, LeaseTerms(ttl_ms, 1_000, 0))
    accounts.add(ledger, publisher, {"agent": 100}, "test")
    opened_at_ms = clock.ms = day_start_ms(NEXT) + 1
    made = make_the_row(ledger)
    clock.ms += late_ms
    publisher.publish(ledger, made)

    publisher.publish(ledger, made, opened_at_ms=opened_at_ms)

    assert reading(counter).fenced


def test_unpublished_day_ahead_opens_without_fence(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock
) -> None:
    accounts.add(ledger, publisher, {"agent": 100}, "test")
    clock.ms = day_start_ms(NEXT) - AHEAD_MS
    make_the_row(ledger)

    all_of(lambda place: housekeeping.reconcile(ledger, publisher, place))

    assert not reading(counter).fenced, "nobody can have leased of a day that has not begun"


@pytest.mark.parametrize("time_ms", [0, DAY_MS // 2, DAY_MS - 1])
def test_days_that_are_not_now_are_not_opened_on_request(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock, time_ms: int
) -> None:
    clock.ms = day_start_ms(DAY) + time_ms
    accounts.add(ledger, publisher, {"agent": 100}, "test")
    around = [day_of(clock.ms + offset * DAY_MS) for offset in range(-2, 3)]

    opened = [opening.open_on_request(ledger, publisher, "agent", day) for day in around if day != DAY]

    assert opened == [0, 1, 1, 0]
    assert [bool(open_rows(ledger, day)) for day in around] == [False, True, True, True, False]


def test_today_is_opened_on_request_in_its_last_millisecond(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock
) -> None:
    accounts.add(ledger, publisher, {"agent": 100}, "test")
    clock.ms = day_start_ms(NEXT) + DAY_MS - 1
    assert opening.open_on_request(ledger, publisher, "agent", NEXT) == 1


def test_what_is_asked_for_again_is_published_again_behind_a_fence(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock
) -> None:
    accounts.add(ledger, publisher, {"agent": 100}, "test")
    clock.ms = day_start_ms(NEXT) + 1
    assert opening.open_on_request(ledger, publisher, "agent", NEXT) == 1
    assert not reading(counter).fenced
    counter.flush()

    assert opening.open_on_request(ledger, publisher, "agent", NEXT) == 0

    assert reading(counter).fenced


def test_stranger_is_published_as_unknown(ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter) -> None:
    assert opening.open_on_request(ledger, publisher, "stranger", DAY) == 0
    (reply,) = counter.sync([SyncRequest("stranger", DAY, "a" * 32, 0, 0, 1, 1)])
    assert reply.answer is Answer.UNKNOWN_AGENT

    with pytest.raises(InvalidInput):
        opening.open_on_request(ledger, publisher, "no id", DAY)


def test_a_day_is_opened_in_the_ledger_where_there_is_no_counter(ledger: Ledger) -> None:
    alone = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))
    accounts.add(ledger, alone, {"agent": 100}, "test")
    tomorrow = day_of(alone.authoritative_ms() + DAY_MS)
    assert opening.open_on_request(ledger, alone, "agent", tomorrow) == 1
    assert open_rows(ledger, tomorrow) == ["agent"]


def test_the_counters_clock_is_known_while_it_is_away(publisher: CounterPublisher, clock: ServerClock) -> None:
    clock.ms = day_start_ms(NEXT) + 500
    publisher.now_ms()

    assert day_of(publisher.last_heard_ms()) == NEXT
