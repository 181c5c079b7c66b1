"""A publish carries what changed; leases that are over are folded into the day's sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from daycap.counters.memory import MemoryCounter
from daycap.ledger import accounts
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import OpenDays
from daycap.ledger.settle import settle
from daycap.ledger.tables import daily_agent_spending, lease_totals
from daycap.protocol.counter import (
    ACTIVE,
    DIFFERS,
    NOT_OPEN,
    Answer,
    DaySnapshot,
    LeaseKey,
    LeaseTotals,
    PublishReply,
    SyncReply,
    SyncRequest,
)
from daycap.protocol.wire import FinalizeEvent
from tests.contract.conftest import DAY, TERMS, ServerClock
from tests.simulation.scripts_in_process import ScriptsInProcess
from worker import housekeeping

A, B, C = "a" * 32, "b" * 32, "c" * 32
AnyCounter = MemoryCounter | ScriptsInProcess
GONE_MS = TERMS.ttl_ms + TERMS.grace_ms + 1


class Day:
    """One agent's day in a counter: open at seq 1, cap 100."""

    def __init__(self, counter: AnyCounter, clock: ServerClock) -> None:
        self.counter, self.clock = counter, clock
        first = DaySnapshot("agent", DAY, 1, ACTIVE, 100, 0)
        counter.publish([first], TERMS, first_until_ms=clock.ms + 1)

    def publish(
        self,
        seq: int,
        *leases: LeaseTotals,
        base: int | None = None,
        spent: int = 0,
        drawn: int = 0,
        folded: tuple[str, ...] = (),
        repairs: bool = False,
        expire: tuple[str, ...] = (),
    ) -> PublishReply:
        snapshot = DaySnapshot("agent", DAY, seq, ACTIVE, 100, spent, drawn, leases, base, folded, repairs)
        (reply,) = self.counter.publish(
            [snapshot],
            TERMS,
            expire_before_ms=self.clock.ms if expire else 0,
            overdue={("agent", DAY): expire},
        )
        assert reply is not None
        return reply

    def sync(
        self, lease: str, granted: int = 0, returned: int = 0, need: int = 0, farewell: int | None = None
    ) -> SyncReply:
        (reply,) = self.counter.sync([SyncRequest("agent", DAY, lease, granted, returned, need, need, farewell)])
        return reply

    @property
    def state(self) -> tuple[int, int, int, int]:
        """Seq, spent, drawn and leased."""
        (reading,) = self.counter.read([("agent", DAY)])
        assert reading is not None
        return reading.seq, reading.spent_micros, reading.drawn_micros, reading.leased_micros

    def settled(self, lease: str) -> tuple[int, int]:
        """Drawn and events of a lease."""
        (totals,) = self.counter.read_leases([LeaseKey("agent", DAY, lease)])
        assert totals is not None
        return totals.drawn_micros, totals.events


@pytest.fixture(params=[MemoryCounter, ScriptsInProcess])
def either(request: pytest.FixtureRequest, clock: ServerClock) -> AnyCounter:
    make: Callable[[ServerClock], AnyCounter] = request.param
    return make(clock)


@pytest.fixture
def day(either: AnyCounter, clock: ServerClock) -> Day:
    return Day(either, clock)


def test_a_delta_opens_nothing(day: Day) -> None:
    day.counter.flush()
    assert day.publish(2, base=1).behind == NOT_OPEN
    assert day.counter.read([("agent", DAY)]) == [None]


def test_a_delta_waits_for_its_base(day: Day) -> None:
    assert day.publish(4, LeaseTotals(A, 9, 1, 1), base=3, spent=9, drawn=9).behind == 1
    assert day.state == (1, 0, 0, 0)


def test_a_delta_is_taken_from_any_later_seq(day: Day) -> None:
    day.sync(A, need=20)
    assert day.publish(4, LeaseTotals(A, 5, 1, 1), base=1, spent=5, drawn=5).behind is None
    assert day.publish(6, LeaseTotals(A, 9, 2, 2), base=2, spent=9, drawn=9).behind is None
    assert (day.state, day.settled(A)) == ((6, 9, 9, 11), (9, 2))


def test_an_overtaken_delta_changes_nothing(day: Day) -> None:
    day.publish(3, LeaseTotals(A, 9, 2, 2), base=1, spent=9, drawn=9)
    assert day.publish(2, LeaseTotals(A, 5, 1, 1), base=1, spent=5, drawn=5) == PublishReply(day.clock.ms, 3)
    assert (day.state, day.settled(A)) == ((3, 9, 9, 0), (9, 2))


def test_another_sum_after_a_delta_is_a_difference(day: Day) -> None:
    assert day.publish(2, LeaseTotals(A, 5, 1, 1), base=1, spent=5, drawn=6).behind == DIFFERS
    assert (day.state, day.settled(A)) == ((1, 0, 0, 0), (0, 0))


@pytest.mark.parametrize(("spent", "drawn"), [(6, 5), (5, 6)])
def test_other_amounts_at_the_same_seq_differ(day: Day, spent: int, drawn: int) -> None:
    day.publish(2, LeaseTotals(A, 5, 1, 1), base=1, spent=5, drawn=5)
    assert day.publish(2, base=2, spent=5, drawn=5).behind is None
    assert day.publish(2, base=2, spent=spent, drawn=drawn).behind == DIFFERS


def test_a_duplicate_tells_what_is_missing(day: Day) -> None:
    """A ledger restored from a copy may come to the same seq with the same amounts, drawn by other leases."""
    day.publish(2, LeaseTotals(A, 5, 1, 1), base=1, spent=5, drawn=5)
    assert day.publish(2, LeaseTotals(A, 5, 1, 1), base=2, spent=5, drawn=5).behind is None
    assert day.publish(2, LeaseTotals(B, 5, 1, 1), base=2, spent=5, drawn=5).behind == DIFFERS


def test_only_a_repair_is_taken_whole_by_an_open_day(day: Day) -> None:
    assert day.publish(2, LeaseTotals(A, 5, 1, 1), spent=5, drawn=5).behind == 1
    assert day.publish(2, LeaseTotals(A, 5, 1, 1), spent=5, drawn=5, repairs=True).behind is None
    assert day.state == (2, 5, 5, 0)


def test_folded_leases_leave_their_sum(day: Day) -> None:
    day.sync(A, need=20)
    day.sync(A, granted=20, returned=11)
    day.publish(2, LeaseTotals(A, 9, 1, 1), LeaseTotals(B, 4, 1, 1), base=1, spent=13, drawn=13)
    assert day.publish(3, base=2, spent=13, drawn=13, folded=(A,)).behind is None
    assert (day.state, day.settled(A), day.settled(B)) == ((3, 13, 13, 0), (0, 0), (4, 1))
    # The next repair, whoever sends it, keeps the sum.
    assert not day.publish(3, LeaseTotals(B, 4, 1, 1), spent=13, drawn=13, repairs=True).repaired
    assert day.state == (3, 13, 13, 0)


def test_a_repair_removes_what_was_folded_and_keeps_what_lends(day: Day) -> None:
    day.publish(2, LeaseTotals(A, 9, 1, 1), base=1, spent=9, drawn=9)
    day.sync(B, need=30)
    day.publish(4, LeaseTotals(C, 1, 1, 1), spent=10, drawn=10, folded=(A,), repairs=True)
    assert (day.state, day.settled(A), day.settled(C)) == ((4, 10, 10, 30), (0, 0), (1, 1))
    assert day.sync(B, granted=30, need=61).answer is Answer.REFUSED
    assert day.sync(B, granted=30, need=60).answer is Answer.OK


def test_a_restored_ledger_takes_nothing_drawn_back(day: Day) -> None:
    day.publish(5, LeaseTotals(A, 60, 3, 3), base=1, spent=60, drawn=60)
    day.publish(6, LeaseTotals(A, 20, 1, 1), spent=20, drawn=20, repairs=True)
    assert (day.state, day.settled(A)) == ((6, 20, 60, 0), (60, 3))
    assert day.sync(B, need=41).answer is Answer.REFUSED


def test_an_old_copy_loses_leases_that_were_folded(clock: ServerClock) -> None:
    counter = ScriptsInProcess(clock)
    day = Day(counter, clock)
    day.publish(2, LeaseTotals(A, 9, 1, 1), LeaseTotals(B, 4, 1, 1), base=1, spent=13, drawn=13)
    copy = counter.copy()
    day.publish(3, base=2, spent=13, drawn=13, folded=(A,))
    counter.restart(copy)
    assert day.publish(3, LeaseTotals(B, 4, 1, 1), spent=13, drawn=13).opened
    assert (day.state, day.settled(A)) == ((3, 13, 13, 0), (0, 0))


def test_a_delta_gives_up_only_what_it_names(day: Day) -> None:
    day.sync(A, need=20)
    day.sync(B, need=30)
    day.clock.ms += GONE_MS
    day.sync(C, need=5)
    assert day.publish(1, base=1, expire=(A, C)).given_up_micros == 20
    assert day.state == (1, 0, 0, 35)
    assert day.publish(1, base=1, expire=(A, B, C)).given_up_micros == 30


def test_a_farewell_keeps_what_is_not_settled(day: Day) -> None:
    day.sync(A, need=20)
    for _ in range(2):
        day.sync(A, granted=20, returned=11, farewell=1)
        assert day.state == (1, 0, 0, 9)
    day.publish(2, LeaseTotals(A, 9, 1, 1), base=1, spent=9, drawn=9)
    assert day.state == (2, 9, 9, 0)


def test_a_farewell_of_an_unknown_lease_is_not_kept(day: Day) -> None:
    assert day.sync(A, granted=20, returned=11, farewell=1).answer is Answer.OK
    assert day.state == (1, 0, 0, 0)
    assert day.counter.leases([("agent", DAY)]) == [{}]


# --- the worker ---------------------------------------------------------------------------------------------------


class Runner:
    """Reserves and finalizes one call at a time, each with a lease of its own if `anew`."""

    def __init__(self, ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock) -> None:
        self.ledger, self.publisher, self.counter, self.clock = ledger, publisher, counter, clock
        accounts.add(ledger, publisher, {"agent": 10_000}, "test")
        self.granted: dict[str, int] = {}
        self.fold_above = 0

    def take(self, lease: str, micros: int = 10) -> None:
        granted = self.granted.get(lease, 0)
        (reply,) = self.counter.sync([SyncRequest("agent", DAY, lease, granted, 0, micros, micros)])
        assert reply.answer is Answer.OK
        self.granted[lease] = reply.granted_micros

    def settle(self, lease: str, number: int = 1, *, publish: bool = True) -> None:
        event = FinalizeEvent(lease, number, number, "agent", DAY, 10, 10, self.clock.ms)
        outcome = settle(self.ledger, [event.to_wire()], OpenDays(DAY, DAY))
        assert outcome.dead_letters == []
        if publish:
            self.publisher.publish(self.ledger, outcome.snapshots)

    def say_farewell(self, lease: str, events: int) -> None:
        self.counter.sync([SyncRequest("agent", DAY, lease, self.granted[lease], 0, farewell=events)])

    def expire(self) -> int:
        """Returns how many leases were folded."""
        done = housekeeping.expire(self.ledger, self.publisher, lambda now_ms: now_ms, [], fold_above=self.fold_above)
        return done.counts["folded"]

    def folded(self) -> set[str]:
        with self.ledger.reading() as connection:
            statement = sa.select(lease_totals.c.lease_id).where(lease_totals.c.folded == 1)
            return set(connection.scalars(statement))

    def agree(self, spent: int) -> None:
        """The counter has what the ledger has, and all of it is `spent`."""
        with self.ledger.reading() as connection:
            row = connection.execute(sa.select(daily_agent_spending)).one()
        (reading,) = self.counter.read([("agent", DAY)])
        assert reading is not None
        assert (row.spent_micros, row.drawn_micros) == (spent, spent)
        assert (reading.seq, reading.spent_micros, reading.drawn_micros) == (row.seq, spent, spent)


@pytest.fixture
def runner(
    ledger: Ledger,
    publisher: CounterPublisher,
    counter: MemoryCounter,
    clock: ServerClock,
) -> Runner:
    return Runner(ledger, publisher, counter, clock)


def test_the_next_publish_brings_what_was_lost(runner: Runner) -> None:
    for lease in (A, B, C):
        runner.take(lease)
    runner.settle(A, publish=False)
    runner.settle(B, publish=False)
    runner.settle(C)
    runner.agree(30)
    keys = [LeaseKey("agent", DAY, lease) for lease in (A, B, C)]
    assert [totals and totals.events for totals in runner.counter.read_leases(keys)] == [1, 1, 1]


def test_a_duplicate_is_heard_after_its_publish_was_lost(runner: Runner) -> None:
    runner.take(A)
    runner.settle(A, publish=False)
    runner.settle(A)
    runner.agree(10)
    (totals,) = runner.counter.read_leases([LeaseKey("agent", DAY, A)])
    assert totals == LeaseTotals(A, 10, 1, 1)


def test_a_lease_is_folded_once_it_is_over(runner: Runner) -> None:
    for lease in (A, B):
        runner.take(lease)
        runner.settle(lease)
    runner.say_farewell(A, events=1)
    assert runner.expire() == 0, "its deadline may not be over for a request on its way"
    runner.clock.ms += GONE_MS
    assert (runner.expire(), runner.folded()) == (1, {A})
    assert [set(leases) for leases in runner.counter.leases([("agent", DAY)])] == [{B}]
    runner.agree(20)
    assert runner.expire() == 0


def test_a_lease_with_an_event_on_its_way_is_not_folded(runner: Runner) -> None:
    runner.take(A, 20)
    runner.settle(A, 1)
    runner.say_farewell(A, events=2)
    runner.clock.ms += GONE_MS
    assert (runner.expire(), runner.folded()) == (0, set()), "what it drew is given up"
    assert (runner.expire(), runner.folded()) == (0, set()), "and would be forgotten"
    runner.settle(A, 2)
    assert (runner.expire(), runner.folded()) == (1, {A})
    runner.agree(20)


def test_a_lease_without_events_is_folded(runner: Runner) -> None:
    runner.take(A)
    runner.counter.sync([SyncRequest("agent", DAY, A, 10, 10, farewell=0)])
    runner.clock.ms += GONE_MS
    assert (runner.expire(), runner.counter.leases([("agent", DAY)])) == (1, [{}])
    runner.agree(0)


@pytest.mark.parametrize("number", [1, 2])
def test_an_event_of_a_folded_lease_is_heard_of_again(runner: Runner, number: int) -> None:
    """A duplicate, for which an outbox asks, or one that nobody expected: charged once, and counted once."""
    runner.take(A)
    runner.settle(A)
    runner.say_farewell(A, events=1)
    runner.clock.ms += GONE_MS
    assert runner.expire() == 1
    runner.settle(A, number)
    runner.agree(10 * number)
    assert runner.folded() == set()
    (totals,) = runner.counter.read_leases([LeaseKey("agent", DAY, A)])
    assert totals == LeaseTotals(A, 10 * number, number, number)


def test_a_lost_fold_is_told_with_the_next_publish(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    for lease in (A, B):
        runner.take(lease)
        runner.settle(lease)
    runner.say_farewell(A, events=1)
    runner.clock.ms += GONE_MS
    with monkeypatch.context() as context:
        context.setattr(runner.publisher, "publish", lambda *_, **__: [])
        assert runner.expire() == 1
    runner.settle(B, 2)
    runner.agree(30)
    assert [set(leases) for leases in runner.counter.leases([("agent", DAY)])] == [{B}]


def test_a_flushed_counter_opens_with_the_sum(runner: Runner) -> None:
    for lease in (A, B):
        runner.take(lease)
        runner.settle(lease)
    runner.say_farewell(A, events=1)
    runner.clock.ms += GONE_MS
    assert runner.expire() == 1
    runner.counter.flush()
    assert housekeeping.reconcile(runner.ledger, runner.publisher, []).counts == {"days": 1, "drift": 1}
    runner.agree(20)
    assert housekeeping.reconcile(runner.ledger, runner.publisher, []).counts == {"days": 1, "drift": 0}


def test_what_a_former_release_settled_is_counted(runner: Runner) -> None:
    for lease in (A, B):
        runner.take(lease)
    with runner.ledger.writing() as connection:
        columns = "lease_id, agent_account_id, spending_date, drawn_micros, events, last_event"
        connection.exec_driver_sql(f"INSERT INTO lease_totals ({columns}) VALUES ('{A}', 'agent', '{DAY}', 10, 1, 1)")
        values = "seq = seq + 1, spent_micros = 10, settled_count = 1"
        connection.exec_driver_sql(f"UPDATE daily_agent_spending SET {values}")
    runner.settle(B)
    runner.agree(20)
    (totals,) = runner.counter.read_leases([LeaseKey("agent", DAY, A)])
    assert totals == LeaseTotals(A, 10, 1, 1)


def test_many_short_leases_leave_a_small_counter(runner: Runner) -> None:
    runner.fold_above = 40
    leases = [f"lease-{number}" for number in range(60)]
    for lease in leases:
        runner.take(lease)
        runner.settle(lease)
        runner.say_farewell(lease, events=1)
    runner.clock.ms += GONE_MS
    assert runner.expire() == 60
    assert runner.counter.leases([("agent", DAY)]) == [{}]
    runner.agree(600)
