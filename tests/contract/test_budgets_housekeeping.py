"""Expire and reconcile of budgets' periods, on every database: those that the counter may have, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.counters.redis import RedisCounter, counter_key
from daycap.ledger import accounts, budgets, opening, plan_check, walks
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import OpenDays
from daycap.ledger.settle import Outcome, settle
from daycap.ledger.slices import Place, all_of
from daycap.ledger.tables import agent_accounts, budget_leases, budget_periods
from daycap.protocol.counter import AgentDay, DayReading, DaySnapshot, SyncRequest
from daycap.protocol.runs import new_run
from daycap.protocol.wire import FinalizeEvent, Share
from tests.contract.conftest import DAY, NEXT, TERMS, ServerClock
from worker import housekeeping

GONE_MS = TERMS.ttl_ms + TERMS.grace_ms + 1
HOUR_MS = 3_600_000
MONTH = ("team/1", DAY[:7])
ONCE = ("run/1", "once")


def add(ledger: Ledger, publisher: CounterPublisher, name: str, period: str, **facts: object) -> None:
    wanted = {"agent": "agent", "cap_micros": 1000, "period": {"period": period}, **facts}
    budgets.add(ledger, publisher, name, wanted, "test")


@pytest.fixture
def agent(ledger: Ledger, publisher: CounterPublisher) -> str:
    accounts.add(ledger, publisher, {"agent": 1000}, "test")
    return "agent"


@pytest.fixture
def team(ledger: Ledger, publisher: CounterPublisher, agent: str) -> AgentDay:
    """A budget's month, open."""
    add(ledger, publisher, "team", "month")
    opening.open_on_request(ledger, publisher, *MONTH)
    return MONTH


@pytest.fixture
def run(ledger: Ledger, publisher: CounterPublisher, agent: str) -> AgentDay:
    """A budget that never ends, open."""
    add(ledger, publisher, "run", "once")
    opening.open_on_request(ledger, publisher, *ONCE)
    return ONCE


def take(counter: MemoryCounter | RedisCounter, ledger: Ledger, where: AgentDay, lease: str, micros: int) -> None:
    counter.sync([SyncRequest(*where, lease * 32, 0, 0, micros, micros, span=span(ledger, where))])


def span(ledger: Ledger, where: AgentDay) -> tuple[int, int]:
    columns = budget_periods.c
    statement = sa.select(columns.start_ms, columns.end_ms)
    with ledger.reading() as connection:
        row = connection.execute(statement.where(columns.budget_id == where[0], columns.period_id == where[1])).one()
        return row.start_ms, row.end_ms


def event(number: int, where: AgentDay, lease: str, micros: int, day: str = DAY) -> dict[str, Any]:
    """The agent's own lease is one of that day."""
    share = Share(*where, lease * 32)
    own = day.replace("-", "")
    at_ms = day_start_ms(day)
    return FinalizeEvent(own, number, number, "agent", day, micros, micros, at_ms, (share,)).to_wire()


def charge(ledger: Ledger, publisher: CounterPublisher, *events: dict[str, Any]) -> Outcome:
    outcome = settle(ledger, events, OpenDays("2026-11-01", "2026-12-31"))
    publisher.publish(ledger, outcome.snapshots)
    return outcome


def reading(counter: MemoryCounter, where: AgentDay) -> DayReading:
    (found,) = counter.read([where])
    assert found is not None
    return found


def expire(ledger: Ledger, publisher: CounterPublisher, ahead_ms: int = 0) -> dict[str, int]:
    """All steps. The queue has settled all before this time."""
    return all_of(
        lambda place: housekeeping.expire(ledger, publisher, lambda now_ms: now_ms + ahead_ms, place, fold_above=0)
    )


def reconcile(ledger: Ledger, publisher: CounterPublisher) -> dict[str, int]:
    return all_of(lambda place: housekeeping.reconcile(ledger, publisher, place))


def walked(ledger: Ledger, now_ms: int, ended: int = 1, begun: bool = True) -> list[AgentDay]:
    """The periods that end in the future, or ended within so many days."""
    found: list[AgentDay] = []
    place: Place = []
    while True:
        page, place = walks.step(ledger, place, [], now_ms - ended * DAY_MS, now_ms if begun else None)
        if not page:
            return found
        found += page


# --- expire -----------------------------------------------------------------------------------------------


def test_gone_runners_share_of_a_budget_returns(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock, team: AgentDay
) -> None:
    take(counter, ledger, team, "a", 300)
    clock.ms += GONE_MS
    take(counter, ledger, team, "b", 200)

    assert expire(ledger, publisher) == {"days": 2, "fenced": 0, "folded": 0, "given_up_micros": 300}

    assert reading(counter, team).leased_micros == 200


def test_a_budgets_lease_folds_by_what_it_drew(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock, team: AgentDay
) -> None:
    for lease in "ab":
        take(counter, ledger, team, lease, 100)
    charge(ledger, publisher, event(1, team, "a", 60), event(2, team, "b", 60))
    for lease, drawn in (("a", 60), ("b", 70)):  # An event of b is still under way.
        counter.sync([SyncRequest(*team, lease * 32, 100, 40, farewell=drawn, span=span(ledger, team))])
    clock.ms += GONE_MS

    assert expire(ledger, publisher)["folded"] == 1

    assert list(counter.leases([team])[0]) == ["b" * 32]
    with ledger.reading() as connection:
        rows = connection.execute(sa.select(budget_leases.c.lease_id, budget_leases.c.folded))
        assert sorted(tuple(row) for row in rows) == [("a" * 32, 1), ("b" * 32, 0)]
    charge(ledger, publisher, event(3, team, "b", 10))
    assert expire(ledger, publisher)["folded"] == 1
    assert (reading(counter, team).drawn_micros, reading(counter, team).spent_micros) == (130, 130)
    assert reconcile(ledger, publisher)["drift"] == 0


def test_only_periods_that_may_have_leases_are_walked(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock, team: AgentDay, run: AgentDay
) -> None:
    add(ledger, publisher, "hour", "hour")
    add(ledger, publisher, "seen", "hour", mode="watch")
    hours = [f"{DAY}T{hour:02}+00" for hour in (10, 12, 13)]
    for budget in ("hour/1", "seen/1"):
        opening.open_days(ledger, publisher, [(budget, hour) for hour in hours])
    begin_ms = clock.ms

    assert sorted(walked(ledger, clock.ms)) == [("hour/1", hours[0]), ("hour/1", hours[1]), run, team]
    assert len(walked(ledger, clock.ms, ended=2, begun=False)) == 5, "reconcile compares the one ahead, too"
    clock.ms = begin_ms + DAY_MS - HOUR_MS
    assert sorted(walked(ledger, clock.ms)) == [("hour/1", hours[1]), ("hour/1", hours[2]), run, team]
    clock.ms = begin_ms + 2 * DAY_MS
    assert sorted(walked(ledger, clock.ms)) == [run, team]


def test_each_verb_looks_back_as_far_as_it_must(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock, agent: str
) -> None:
    add(ledger, publisher, "hour", "hour")
    opening.open_on_request(ledger, publisher, "hour/1", f"{DAY}T12+00")
    ended_ms = clock.ms + HOUR_MS
    counted = []
    for verb, kept in ((expire, 1), (reconcile, 2)):
        for clock.ms in (ended_ms + kept * DAY_MS - 1, ended_ms + kept * DAY_MS):
            counted.append(verb(ledger, publisher)["days"])

    assert counted == [2, 1, 2, 1], "the agent's day is the other one"


def test_a_removed_budget_that_never_ended_leaves(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock, run: AgentDay
) -> None:
    budgets.remove(ledger, publisher, "run", "test")

    assert walked(ledger, clock.ms) == [run], "its leases may have to be given up"
    assert span(ledger, run) == (0, clock.ms + DAY_MS)
    clock.ms += 2 * DAY_MS
    assert walked(ledger, clock.ms) == []


def test_replaced_budgets_period_ends(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock, run: AgentDay
) -> None:
    budgets.alter(ledger, publisher, "run", {"labels": {"tool": ["search"]}}, "test")

    assert span(ledger, run) == (0, clock.ms + DAY_MS)


def test_late_event_opens_a_removed_period_for_a_day(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock, agent: str
) -> None:
    add(ledger, CounterPublisher(None, TERMS), "run", "once")  # It is not opened.
    budgets.remove(ledger, publisher, "run", "test")

    outcome = charge(ledger, publisher, event(1, ONCE, "a", 10, NEXT))

    assert (outcome.settled, outcome.dead_letters) == (1, [])
    assert span(ledger, ONCE) == (0, clock.ms + DAY_MS)


def test_call_of_an_older_plan_counts_after_the_removal(
    ledger: Ledger, publisher: CounterPublisher, clock: ServerClock, run: AgentDay
) -> None:
    clock.ms = day_start_ms(NEXT) - 1
    budgets.remove(ledger, publisher, "run", "test")

    assert charge(ledger, publisher, event(1, run, "a", 10, NEXT)).settled == 1


def test_a_walk_stops_and_goes_on_anywhere(
    ledger: Ledger,
    publisher: CounterPublisher,
    counter: MemoryCounter,
    clock: ServerClock,
    team: AgentDay,
    run: AgentDay,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(walks, "_AT_ONCE", 2)
    names = [f"b{number}" for number in range(3)]
    for name in names:
        add(ledger, publisher, name, "month")
    opening.open_days(ledger, publisher, [(f"{name}/1", MONTH[1]) for name in names])
    end_ms = span(ledger, team)[1]
    places: list[Place] = [[DAY, "agent"]]  # As a worker of an earlier release leaves it.
    seen = []
    while places[-1]:
        page, place = walks.step(ledger, places[-1], [DAY], clock.ms, clock.ms)
        seen.append(page)
        places.append(place)

    assert seen == [[("b0/1", MONTH[1]), ("b1/1", MONTH[1])], [("b2/1", MONTH[1]), team], [run], []]
    assert places[1:3] == [["budgets", [end_ms, "b1/1", MONTH[1]]], ["budgets", [end_ms, "team/1", MONTH[1]]]]
    assert walks.walk([DAY, NEXT], places[1], lambda *_: ["agent"]) == [], "an earlier release is done there"
    for where in (team, run):
        take(counter, ledger, where, "a", 100)
    clock.ms += GONE_MS
    done = housekeeping.expire(ledger, publisher, lambda now_ms: now_ms, [clock.ms, *places[2]])
    assert (done.counts["given_up_micros"], done.place) == (100, [clock.ms, *places[3]])


# --- reconcile --------------------------------------------------------------------------------------------


def test_unpublished_charge_of_a_budget_is_drift(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, team: AgentDay
) -> None:
    outcome = settle(ledger, [event(1, team, "a", 70)], OpenDays(DAY, DAY))
    publisher.publish(ledger, [each for each in outcome.snapshots if each.agent == "agent"])

    assert reconcile(ledger, publisher) == {"days": 2, "drift": 1}

    assert (reading(counter, team).spent_micros, reading(counter, team).drawn_micros) == (70, 70)


def test_lost_periods_open_with_their_bounds(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock, team: AgentDay
) -> None:
    counter.flush()

    assert reconcile(ledger, publisher) == {"days": 2, "drift": 2}
    clock.ms += GONE_MS + TERMS.guard_ms
    assert expire(ledger, publisher)["fenced"] == 0

    clock.ms = span(ledger, team)[1] - 1
    take(counter, ledger, team, "a", 100)
    assert reading(counter, team).leased_micros == 100


def test_restored_ledger_overtakes_a_budgets_counter(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, team: AgentDay
) -> None:
    later = DaySnapshot(*team, 7, "active", 1000, 600, 600, repairs=True, span=span(ledger, team))
    publisher.publish(ledger, [later])

    assert reconcile(ledger, publisher) == {"days": 2, "drift": 1}

    assert (reading(counter, team).seq, reading(counter, team).spent_micros) == (8, 0)
    assert reconcile(ledger, publisher) == {"days": 2, "drift": 0}
    charge(ledger, publisher, event(1, team, "a", 10))
    assert reading(counter, team).spent_micros == 10


def test_run_of_one_process_is_no_drift(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock, agent: str
) -> None:
    """It has no counter. One that processes share has."""
    alone, shared = (new_run(500, clock.ms + HOUR_MS, bytes(9) + bytes([number])).id for number in (1, 2))
    opening.open_on_request(ledger, publisher, shared, "once")
    for number, run in enumerate((alone, shared), start=1):
        outcome = settle(ledger, [event(number, (run, "once"), str(number), 70)], OpenDays(DAY, DAY))
        publisher.publish(ledger, [each for each in outcome.snapshots if each.agent == "agent"])

    assert reconcile(ledger, publisher) == {"days": 2, "drift": 1}

    assert counter.read([(alone, "once")]) == [None]
    assert reading(counter, (shared, "once")).spent_micros == 70


def test_removal_is_published_and_no_drift(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, clock: ServerClock, run: AgentDay
) -> None:
    budgets.remove(ledger, publisher, "run", "test")

    assert reading(counter, run).status == "paused"
    assert reconcile(ledger, publisher) == {"days": 2, "drift": 0}


def test_watched_budget_that_refuses_again_is_published(
    ledger: Ledger, publisher: CounterPublisher, counter: MemoryCounter, team: AgentDay
) -> None:
    """Meanwhile the counter hears nothing of it."""
    budgets.alter(ledger, publisher, "team", {"mode": "watch"}, "test")
    number = counter.read([team])[0]
    share = Share(*team)
    seen = FinalizeEvent("own", 1, 1, "agent", DAY, 400, 400, day_start_ms(DAY), (share,)).to_wire()
    charge(ledger, publisher, seen)
    assert counter.read([team])[0] == number

    budgets.alter(ledger, publisher, "team", {"mode": "enforce"}, "test")

    assert reading(counter, team).spent_micros == 400


def test_a_wrong_plan_is_repaired(
    ledger: Ledger,
    publisher: CounterPublisher,
    counter: MemoryCounter,
    agent: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accounts.add(ledger, publisher, {"other": 1000, "third": 1000}, "test")
    add(ledger, publisher, "run", "once")
    add(ledger, publisher, "its", "day", agent="other")
    plan, _ = counter.read_plan("agent", DAY) or (0, "")
    assert plan > 0
    with ledger.writing() as connection:
        accounts_of = agent_accounts.c.agent_account_id
        for name, wrong in (("agent", 0), ("third", plan)):
            connection.execute(sa.update(agent_accounts).where(accounts_of == name).values(plan_id=wrong))
    monkeypatch.setattr(plan_check, "_AT_ONCE", 2)

    first = plan_check.check_plans(ledger)
    assert first == (2, ["agent"], "other")
    assert plan_check.check_plans(ledger, "other") == (1, ["third"], "third")
    assert plan_check.check_plans(ledger, "third") == (0, [], None)

    assert reconcile(ledger, publisher) == {"days": 5, "drift": 2}
    assert reconcile(ledger, publisher) == {"days": 5, "drift": 0}
    assert [plan_check.check_plans(ledger, after).wrong for after in ("", "other")] == [[], []]
    assert (counter.read_plan("agent", DAY) or (0, ""))[0] == plan
    assert counter.read_plan("third", DAY) is None


# --- a real server ----------------------------------------------------------------------------------------


def test_redis_gives_up_folds_and_forgets(ledger: Ledger, redis_url: str) -> None:
    counter = RedisCounter(redis_url, 5)
    publisher = CounterPublisher(counter, TERMS)
    accounts.add(ledger, publisher, {"agent": 1000}, "test")
    add(ledger, publisher, "run", "once")
    opening.open_on_request(ledger, publisher, *ONCE)
    today = day_of(counter.now_ms())
    take(counter, ledger, ONCE, "a", 300)
    take(counter, ledger, ONCE, "b", 200)
    outcome = settle(ledger, [event(1, ONCE, "b", 150, today)], OpenDays(today, today))
    publisher.publish(ledger, outcome.snapshots)
    counter.sync([SyncRequest(*ONCE, "b" * 32, 200, 50, farewell=150, span=span(ledger, ONCE))])

    counts = expire(ledger, publisher, ahead_ms=GONE_MS + 60_000)

    assert (counts["given_up_micros"], counts["folded"]) == (300, 1)
    assert list(counter.leases([ONCE])[0]) == ["a" * 32]
    budgets.remove(ledger, publisher, "run", "test")
    with redis.Redis.from_url(redis_url) as client:
        assert 2 * DAY_MS < client.pttl(counter_key(*ONCE)) <= 3 * DAY_MS, "it is not kept until the year 10000"
    counter.close()
