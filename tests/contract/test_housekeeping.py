"""Expire and reconcile on every database: what they look at, what they leave alone, and what they count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.errors import CounterUnavailable
from daycap.ledger import accounts, days, walks
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import SLICE_S, Place, Slice, all_of
from daycap.ledger.snapshots import read_snapshots
from daycap.ledger.tables import daily_agent_spending
from daycap.protocol.counter import DayReading, DaySnapshot, LeaseTerms, LeaseTotals, PublishReply, SyncRequest
from tests.contract.conftest import DAY, NEXT, TERMS, ServerClock
from worker import housekeeping, metrics

A = "a" * 32
YESTERDAY = day_of(day_start_ms(DAY) - 1)
GONE_MS = TERMS.ttl_ms + TERMS.grace_ms + 1
"""A lease that has not been renewed for so long is given up."""


class Counter(MemoryCounter):
    """Something happens elsewhere just before it answers the next publish; it notes which days each publish tells."""

    def __init__(self, clock: ServerClock) -> None:
        super().__init__(clock)
        self.meanwhile: Callable[[], object] = lambda: None
        self.published: list[list[str]] = []

    def publish(self, snapshots: Sequence[DaySnapshot], terms: LeaseTerms, **until: Any) -> list[PublishReply | None]:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        self.published.append([snapshot.agent for snapshot in snapshots])
        return super().publish(snapshots, terms, **until)


@pytest.fixture
def counter(clock: ServerClock) -> Counter:
    return Counter(clock)


@pytest.fixture
def agents(ledger: Ledger, publisher: CounterPublisher) -> list[str]:
    """Today is open for three of them."""
    accounts.add(ledger, publisher, {f"agent-{number}": 100 for number in range(3)}, "test")
    return ["agent-0", "agent-1", "agent-2"]


@pytest.fixture
def nowhere() -> CounterPublisher:
    """For a set-up that has no counter."""
    return CounterPublisher(None, TERMS)


def take(counter: Counter, agent: str, need: int, day: str = DAY) -> None:
    counter.sync([SyncRequest(agent, day, A, 0, 0, need, need)])


def book(ledger: Ledger, *agent_days: tuple[str, str]) -> list[DaySnapshot]:
    """The rows of days, as a worker commits them; returned is what it has still to publish."""
    with ledger.writing() as connection:
        days.insert_missing(connection, agent_days, 1)
        return read_snapshots(connection, agent_days)


def spend(ledger: Ledger, agent: str, seqs: int = 1) -> list[DaySnapshot]:
    """As a worker that has settled 10 micros so many times, and has still to publish it."""
    here = (daily_agent_spending.c.agent_account_id == agent, daily_agent_spending.c.spending_date == DAY)
    columns = daily_agent_spending.c
    with ledger.writing() as connection:
        changed = {"spent_micros": columns.spent_micros + 10 * seqs, "seq": columns.seq + seqs}
        connection.execute(sa.update(daily_agent_spending).where(*here).values(changed))
        return read_snapshots(connection, [(agent, DAY)])


def reading(counter: Counter, agent: str, day: str = DAY) -> DayReading:
    (found,) = counter.read([(agent, day)])
    assert found is not None
    return found


def expire(
    ledger: Ledger, publisher: CounterPublisher, before_ms: int | None = None, place: Place | None = None
) -> Slice:
    """One step. The queue is empty, or has settled all before this time."""
    return housekeeping.expire(
        ledger, publisher, lambda now_ms: now_ms if before_ms is None else before_ms, place or []
    )


def reconcile(ledger: Ledger, publisher: CounterPublisher) -> dict[str, int]:
    return all_of(lambda place: housekeeping.reconcile(ledger, publisher, place))


# --- expire -----------------------------------------------------------------------------------------------


def test_gone_runners_money_is_given_up(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, clock: ServerClock, agents: list[str]
) -> None:
    take(counter, "agent-0", 30)
    take(counter, "agent-1", 20)
    clock.ms += GONE_MS

    assert expire(ledger, publisher).counts == {"days": 3, "fenced": 0, "folded": 0, "given_up_micros": 50}

    assert [reading(counter, agent).remaining_micros for agent in agents] == [100, 100, 100]
    assert expire(ledger, publisher).counts == {"days": 3, "fenced": 0, "folded": 0, "given_up_micros": 0}


def test_only_days_with_money_out_are_published(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, agents: list[str]
) -> None:
    """Of 100,000 agents few have a lease in this minute: the others cost one look."""
    take(counter, "agent-1", 1)
    counter.published.clear()

    expire(ledger, publisher)

    assert counter.published == [["agent-1"]]


def test_a_fence_over_a_day_without_leases_falls_in_its_time(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, clock: ServerClock, agents: list[str]
) -> None:
    counter.flush()
    assert reconcile(ledger, publisher)["drift"] == 3
    assert expire(ledger, publisher).counts == {"days": 3, "fenced": 3, "folded": 0, "given_up_micros": 0}

    clock.ms += GONE_MS + TERMS.guard_ms

    assert expire(ledger, publisher).counts == {"days": 3, "fenced": 0, "folded": 0, "given_up_micros": 300}
    assert [reading(counter, agent).remaining_micros for agent in agents] == [100, 100, 100]


def test_a_day_that_the_counter_lost_is_left_to_reconcile(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, agents: list[str]
) -> None:
    counter.flush()
    assert expire(ledger, publisher).counts == {"days": 3, "fenced": 0, "folded": 0, "given_up_micros": 0}
    assert counter.read([("agent-0", DAY)]) == [None]


def test_unknown_queue_gives_nothing_up(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, clock: ServerClock, agents: list[str]
) -> None:
    """P4: what is in the queue is spent."""
    take(counter, "agent-0", 30)
    clock.ms += GONE_MS

    assert expire(ledger, publisher, before_ms=0) == Slice({"days": 0}, None)

    assert reading(counter, "agent-0").leased_micros == 30


def test_yesterday_and_today_are_looked_at(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, clock: ServerClock, agents: list[str]
) -> None:
    take(counter, "agent-0", 30)
    clock.ms += DAY_MS
    book(ledger, *((agent, day) for agent in agents for day in (YESTERDAY, NEXT, day_of(clock.ms + DAY_MS))))

    done = all_of(lambda place: expire(ledger, publisher, place=place))

    assert done == {"days": 6, "fenced": 0, "folded": 0, "given_up_micros": 30}
    assert reading(counter, "agent-0").leased_micros == 0


def test_the_queue_is_asked_once_and_the_steps_go_by_its_answer(
    ledger: Ledger,
    publisher: CounterPublisher,
    counter: Counter,
    clock: ServerClock,
    agents: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(walks, "_AT_ONCE", 2)
    asked: list[int] = []
    for agent in agents:
        take(counter, agent, 10)
    began_ms = clock.ms

    def settled_before_ms(now_ms: int) -> int:
        asked.append(now_ms)
        return now_ms

    first = housekeeping.expire(ledger, publisher, settled_before_ms, [])
    assert first == Slice({"days": 2, "fenced": 0, "folded": 0, "given_up_micros": 0}, [began_ms, DAY, "agent-1"])
    clock.ms += GONE_MS
    assert first.place is not None
    second = housekeeping.expire(ledger, publisher, settled_before_ms, first.place)
    assert second == Slice({"days": 1, "fenced": 0, "folded": 0, "given_up_micros": 0}, [began_ms, DAY, "agent-2"])
    assert second.place is not None
    assert housekeeping.expire(ledger, publisher, settled_before_ms, second.place) == Slice({"days": 0}, None)
    assert asked == [began_ms]


def test_without_a_counter_there_is_nothing_to_do(ledger: Ledger, nowhere: CounterPublisher, agents: list[str]) -> None:
    assert expire(ledger, nowhere) == Slice({"days": 0}, None)
    assert housekeeping.reconcile(ledger, nowhere, []) == Slice({"days": 0, "drift": 0}, None)


def test_an_empty_ledger_has_nothing_to_do(ledger: Ledger, publisher: CounterPublisher) -> None:
    assert expire(ledger, publisher) == Slice({"days": 0}, None)
    assert housekeeping.reconcile(ledger, publisher, []) == Slice({"days": 0, "drift": 0}, None)


def test_vanished_counter_is_left_for_later(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, clock: ServerClock, agents: list[str]
) -> None:
    take(counter, "agent-0", 30)
    clock.ms += GONE_MS

    def go_away() -> None:
        raise CounterUnavailable("gone")

    counter.meanwhile = go_away
    assert expire(ledger, publisher).counts == {"days": 3, "fenced": 0, "folded": 0, "given_up_micros": 0}
    counter.meanwhile = go_away
    assert reconcile(ledger, publisher) == {"days": 3, "drift": 0}

    assert expire(ledger, publisher).counts == {"days": 3, "fenced": 0, "folded": 0, "given_up_micros": 30}


# --- reconcile --------------------------------------------------------------------------------------------


def drift() -> float:
    return next(iter(metrics.DRIFT.collect())).samples[0].value


def test_a_counter_that_says_what_the_ledger_says_is_no_drift(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, agents: list[str]
) -> None:
    before = drift()
    publisher.publish(ledger, spend(ledger, "agent-0"))

    assert housekeeping.reconcile(ledger, publisher, []) == Slice({"days": 3, "drift": 0}, [DAY, "agent-2"])

    assert drift() == before
    assert [reading(counter, agent).seq for agent in agents] == [2, 1, 1]


@pytest.mark.parametrize("time_ms", [0, DAY_MS - 1])
def test_every_day_that_the_counter_keeps_is_compared(
    ledger: Ledger,
    publisher: CounterPublisher,
    counter: Counter,
    clock: ServerClock,
    agents: list[str],
    time_ms: int,
) -> None:
    clock.ms = day_start_ms(DAY) + time_ms
    around = [day_of(clock.ms + offset * DAY_MS) for offset in range(-3, 3)]
    book(ledger, *(("agent-0", day) for day in around))

    assert reconcile(ledger, publisher) == {"days": 6, "drift": 3}

    found = counter.read([("agent-0", day) for day in around])
    assert [each is not None for each in found] == [False, True, True, True, True, False]


def test_who_settles_is_not_waited_for_where_nothing_differs(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, agents: list[str]
) -> None:
    take(counter, "agent-0", 30)
    with ledger.writing() as connection:
        connection.execute(sa.update(daily_agent_spending).values(updated_at=2))

        assert expire(ledger, publisher).counts["days"] == 3
        assert reconcile(ledger, publisher) == {"days": 3, "drift": 0}


def test_what_was_never_published_is_published_and_counted(
    ledger: Ledger,
    publisher: CounterPublisher,
    counter: Counter,
    agents: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = drift()
    spend(ledger, "agent-0")
    spend(ledger, "agent-2")

    assert reconcile(ledger, publisher) == {"days": 3, "drift": 2}

    assert drift() == before + 2
    assert "2 of 3 days differed" in caplog.text
    assert [reading(counter, agent).spent_micros for agent in agents] == [10, 0, 10]


def test_publish_under_way_is_no_drift(
    ledger: Ledger,
    publisher: CounterPublisher,
    counter: Counter,
    agents: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has committed and comes a moment later; of two, the other is lost."""
    under_way, _ = spend(ledger, "agent-0"), spend(ledger, "agent-1")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        publisher.publish(ledger, under_way)

    monkeypatch.setattr("time.sleep", sleep)

    assert reconcile(ledger, publisher) == {"days": 3, "drift": 1}
    assert len(waits) == 1
    assert waits[0] < SLICE_S, "nothing is settled meanwhile"
    assert [reading(counter, agent).seq for agent in agents] == [2, 2, 1]
    assert reconcile(ledger, publisher) == {"days": 3, "drift": 0}
    assert len(waits) == 1, "where none is behind nothing is waited for"


def test_drift_under_the_same_seq_is_repaired(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, agents: list[str]
) -> None:
    publisher.publish(ledger, [DaySnapshot("agent-1", DAY, 1, "active", 100, 70, repairs=True)])

    assert reconcile(ledger, publisher) == {"days": 3, "drift": 1}

    assert reading(counter, "agent-1").spent_micros == 0


def test_a_counter_that_is_lost_in_the_middle_is_opened_and_counted(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, agents: list[str]
) -> None:
    counter.meanwhile = counter.flush

    assert reconcile(ledger, publisher) == {"days": 3, "drift": 3}

    assert [reading(counter, agent).fenced for agent in agents] == [True, True, True]


def test_a_ledger_restored_from_an_older_copy_goes_past_the_counter(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, agents: list[str]
) -> None:
    publisher.publish(
        ledger, [DaySnapshot("agent-1", DAY, 7, "active", 100, 60, 60, (LeaseTotals(A, 60, 6, 6),), repairs=True)]
    )

    assert reconcile(ledger, publisher) == {"days": 3, "drift": 1}

    found = reading(counter, "agent-1")
    assert (found.seq, found.spent_micros) == (8, 0)
    assert reconcile(ledger, publisher) == {"days": 3, "drift": 0}
    publisher.publish(ledger, spend(ledger, "agent-1"))
    assert reading(counter, "agent-1").spent_micros == 10, "what comes after is believed"


def test_what_is_settled_and_published_in_the_middle_is_no_drift(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, agents: list[str]
) -> None:
    """The counter is ahead of what was read of the ledger before, not of the ledger."""
    counter.meanwhile = lambda: publisher.publish(ledger, spend(ledger, "agent-1"))

    assert reconcile(ledger, publisher) == {"days": 3, "drift": 0}

    assert (reading(counter, "agent-1").seq, reading(counter, "agent-1").spent_micros) == (2, 10)


def test_only_the_row_that_was_overtaken_goes_past_the_counter(
    ledger: Ledger, publisher: CounterPublisher, counter: Counter, agents: list[str]
) -> None:
    book(ledger, ("agent-1", NEXT))
    publisher.publish(ledger, [DaySnapshot("agent-1", DAY, 7, "active", 100, 60, repairs=True)])

    reconcile(ledger, publisher)

    with ledger.reading() as connection:
        found = read_snapshots(connection, [("agent-0", DAY), ("agent-1", DAY), ("agent-1", NEXT)])
    assert [snapshot.seq for snapshot in found] == [1, 8, 1]


def test_a_reconcile_goes_in_steps(
    ledger: Ledger, publisher: CounterPublisher, agents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "_AT_ONCE", 2)

    def step(place: list[Any]) -> Slice:
        return housekeeping.reconcile(ledger, publisher, place)

    assert step([]) == Slice({"days": 2, "drift": 0}, [DAY, "agent-1"])
    assert step([DAY, "agent-1"]) == Slice({"days": 1, "drift": 0}, [DAY, "agent-2"])
    assert step([DAY, "agent-2"]) == Slice({"days": 0, "drift": 0}, None)
