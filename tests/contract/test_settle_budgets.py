"""Settle with budgets: an event counts in each row, up to that row's cap, as it was reserved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from daycap.clock import DAY_MS, day_start_ms
from daycap.ledger import accounts, settle, tables
from daycap.ledger.engine import Ledger, is_transient
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import OpenDays
from daycap.ledger.settle import Outcome
from daycap.protocol.labels import call_labels
from daycap.protocol.wire import FinalizeEvent, Share, new_lease_id
from tests.budget_rows import Figures, drawn, figures, recomputed
from tests.contract.conftest import DAY, NEXT, TERMS, ServerClock
from tests.contract.test_budgets_definitions import Office
from tests.migrated import quiet_ledger

START_MS = day_start_ms(DAY)
NOON_MS = START_MS + DAY_MS // 2
A, B = "a" * 32, "b" * 32
MONTH, HOUR, TODAY = ("month/1", "2026-11"), ("hour/1", f"{DAY}T12+00"), ("day/1", DAY)


class Team(Office):
    """Agents a, b and c; a and b are a team with a month, a has an hour of its own."""

    def __init__(self, ledger: Ledger, publisher: CounterPublisher) -> None:
        super().__init__(ledger, publisher)
        self.group("team", "ab")
        self.budget("month", 100, group="team", period={"period": "month"})
        self.budget("hour", 60, agent="a", period={"period": "hour"})

    def settle(self, *payloads: object) -> Outcome:
        outcome = settle.settle(self.ledger, payloads, OpenDays(DAY, NEXT))
        # P3, always: what each period has spent is proven by what was settled.
        assert figures(self.ledger) == recomputed(self.ledger)
        drawn(self.ledger)
        return outcome

    def plan_id(self, agent: str) -> int:
        return next(row.plan_id for row in self.rows(tables.agent_accounts) if row.agent_account_id == agent)

    def short(self) -> dict[tuple[str, str], int]:
        return {(row.reservation_id[-1], row.budget_id): row.uncovered_micros for row in self.rows(tables.shortfalls)}


@pytest.fixture
def team(ledger: Ledger, publisher: CounterPublisher) -> Team:
    return Team(ledger, publisher)


def share(where: tuple[str, str], held: int | None = None, number: int = 0) -> Share:
    """A share of a lease that a runner has of this period."""
    return Share(*where, new_lease_id(*where, bytes([number] * 16)), held)


def event(
    number: int = 1,
    actual: int = 10,
    *also: Share,
    agent: str = "a",
    lease: str = A,
    plan: int | None = None,
    held: int | None = None,
    at_ms: int = NOON_MS,
    day: str = DAY,
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    held = actual if held is None else held
    return FinalizeEvent(
        lease, number, number, agent, day, held, actual, at_ms, also, plan, call_labels(labels or {})
    ).to_wire()


def test_counts_in_each_row_up_to_its_cap(team: Team) -> None:
    both = (share(MONTH), share(HOUR))
    outcome = team.settle(event(1, 50, *both), event(2, 40, *both), event(3, 30, *both))

    assert (outcome.settled, outcome.charged_micros, outcome.uncovered_micros) == (3, 120, 0)
    assert figures(team.ledger) == {MONTH: Figures(100, 20, 3), HOUR: Figures(60, 60, 3)}
    assert team.short() == {("2", "hour/1"): 30, ("3", "hour/1"): 30, ("3", "month/1"): 20}
    assert drawn(team.ledger) == {MONTH: 120, HOUR: 120}
    assert outcome.unleased_micros == 0


def test_drawn_is_no_more_than_each_lease_held(team: Team) -> None:
    team.settle(event(1, 30, share(MONTH), share(HOUR, 12), held=20))
    assert drawn(team.ledger) == {MONTH: 20, HOUR: 12}
    own = next(row for row in team.rows(tables.lease_totals))
    assert (own.drawn_micros, own.events) == (20, 1)


def test_snapshots_of_each_row(team: Team) -> None:
    outcome = team.settle(event(1, 30, share(MONTH), share(HOUR)))
    found = {(each.agent, each.day): each for each in outcome.snapshots}
    assert found.keys() == {("a", DAY), MONTH, HOUR}
    hour = found[HOUR]
    assert hour.span == (NOON_MS, NOON_MS + 3_600_000)
    assert (hour.cap_micros, hour.spent_micros, hour.drawn_micros, hour.status) == (60, 30, 30, "active")
    assert [totals[:2] for totals in hour.leases] == [(share(HOUR).lease, 30)]
    assert found["a", DAY].plan == team.plan_id("a")


class TestVersion1:
    def test_charged_by_the_plan_in_force(self, team: Team) -> None:
        outcome = team.settle(event(1, 70), event(1, 50, agent="b", lease=B), event(1, 5, agent="c", lease="c" * 32))
        assert figures(team.ledger) == {MONTH: Figures(100, 20, 2), HOUR: Figures(60, 10, 1)}
        assert outcome.unleased_micros == 160
        assert drawn(team.ledger) == {MONTH: 120, HOUR: 70}

    def test_its_time_is_in_its_day(self, team: Team) -> None:
        times = (0, START_MS - 1, START_MS + 3_600_000, START_MS + DAY_MS, 2**53 - 1)
        team.settle(*(event(number, 1, at_ms=at_ms) for number, at_ms in enumerate(times, 1)))
        hours = {
            period[-5:]: each.events for (budget, period), each in figures(team.ledger).items() if "hour" in budget
        }
        assert hours == {"00+00": 2, "01+00": 1, "23+00": 2}

    def test_lowered_and_raised_cap_counts_it(self, team: Team) -> None:
        """`max(spent, drawn)` is what a counter lends no more: it must be all that was used."""
        team.set("month", cap_micros=10)
        team.settle(event(1, 40))
        team.set("month", cap_micros=100)
        row = next(row for row in team.rows(tables.budget_periods) if row.budget_id == "month/1")
        assert (row.cap_micros, row.spent_micros, row.drawn_micros) == (100, 10, 40)

    def test_drawn_is_all_of_an_overage(self, team: Team) -> None:
        team.settle(event(1, 40, held=3))
        assert drawn(team.ledger) == {MONTH: 40, HOUR: 40}

    def test_in_force_is_what_is_now(self, team: Team) -> None:
        team.leave("team", "a")
        team.join("team", "c")
        team.settle(event(1), event(1, agent="c", lease=B))
        assert figures(team.ledger) == {MONTH: Figures(10, 0, 1), HOUR: Figures(10, 0, 1)}


class TestPinned:
    """P12."""

    def test_to_its_plan(self, team: Team) -> None:
        plan = team.plan_id("a")
        team.leave("team", "a")
        team.budget("day", 5, agent="a")
        outcome = team.settle(event(1, 10, share(MONTH), share(HOUR), plan=plan))
        assert figures(team.ledger).keys() == {MONTH, HOUR}
        assert outcome.unleased_micros == 0

    def test_to_none_if_its_agent_had_none(self, team: Team) -> None:
        """It was reserved before a budget was added, or while its agent was in no group."""
        outcome = team.settle(event(1, 10, plan=0), event(2, 10, plan=0, labels={"tool": "search"}))
        assert (figures(team.ledger), outcome.unleased_micros) == ({}, 0)
        (day,) = [each for each in outcome.snapshots if each.agent == "a"]
        assert day.spent_micros == 20
        team.settle(event(3, 10))
        assert figures(team.ledger).keys() == {MONTH, HOUR}

    def test_to_its_periods(self, team: Team) -> None:
        plan = team.plan_id("a")
        team.settle(event(1, 10, share(MONTH), share(HOUR), plan=plan, at_ms=NOON_MS + 3_600_000))
        assert figures(team.ledger).keys() == {MONTH, HOUR}

    def test_to_a_budget_that_was_removed_or_replaced(self, team: Team) -> None:
        plan = team.plan_id("a")
        team.set("month", period={"period": "week"})
        outcome = team.settle(event(1, 10, share(MONTH), share(HOUR), plan=plan))
        assert figures(team.ledger).keys() == {MONTH, HOUR}
        paused = {each.agent: each.status for each in outcome.snapshots}
        assert paused == {"a": "active", "hour/1": "active", "month/1": "paused"}

    def test_what_it_does_not_name_is_charged(self, team: Team) -> None:
        outcome = team.settle(event(1, 10, share(MONTH), plan=team.plan_id("a"), held=4))
        assert figures(team.ledger) == {MONTH: Figures(10, 0, 1), HOUR: Figures(10, 0, 1)}
        assert (outcome.unleased_micros, drawn(team.ledger)) == (10, {MONTH: 4, HOUR: 10})

    def test_what_its_plan_does_not_have_is_charged(self, team: Team) -> None:
        """Whatever an event names, its call has held."""
        team.budget("day", 100, agent="c")
        team.settle(event(1, 10, share(MONTH), share(HOUR), share(TODAY), plan=team.plan_id("a")))
        assert figures(team.ledger).keys() == {MONTH, HOUR, TODAY}

    def test_unknown_plan_is_that_in_force(self, team: Team) -> None:
        team.settle(event(1, 10, plan=999))
        assert figures(team.ledger).keys() == {MONTH, HOUR}


def test_watch_counts_without_a_lease(team: Team) -> None:
    team.set("hour", mode="watch")
    outcome = team.settle(
        event(1, 50, share(MONTH), Share(*HOUR), plan=team.plan_id("a")), event(2, 30), event(3, 1, share(MONTH))
    )
    assert figures(team.ledger)[HOUR] == Figures(60, 21, 3)
    assert outcome.unleased_micros == 30
    assert [each.agent for each in outcome.snapshots] == ["a", "month/1"]


def test_narrowed_by_labels(team: Team) -> None:
    for name, labels in {
        "gpt": {"model": ["gpt-4o*", "o1"]},
        "tool": {"tool": "sea[r]ch?"},
        "both": {"model": "*mini", "tool": "*"},
    }.items():
        team.budget(name, 1000, agent="c", labels=labels)
    calls: list[dict[str, str]] = [
        {"model": "gpt-4o-mini"},
        {"model": "o1", "tool": "search"},
        {"model": "o1-mini", "tool": "sea[r]ch?"},
        {"model": "GPT-4o"},
        {"tool": "x"},
        {},
    ]
    for number, labels in enumerate(calls, 1):
        team.settle(event(number, 1, agent="c", labels=labels))
    counted = {budget: each.events for (budget, _), each in figures(team.ledger).items()}
    assert counted == {"gpt/1": 2, "tool/1": 1, "both/1": 1}


def test_labels_are_kept_once(team: Team) -> None:
    team.settle(*(event(number, 1, agent="c", labels={"tool": f"t{number % 2}"}) for number in range(1, 7)))
    team.settle(event(7, 1, agent="c", labels={"tool": "t1"}), event(8, 1, agent="c"))
    assert {row.labels for row in team.rows(tables.contexts)} == {'{"tool":"t0"}', '{"tool":"t1"}'}
    assert len(team.rows(tables.contexts)) == 2
    assert sum(row.context_id is None for row in team.rows(tables.settlements)) == 1


_OF_HOUR = share(HOUR).lease
_BAD = {
    "unknown budget": ([Share("nothing/1", "2026-11")], "unknown_budget", "no budget nothing/1"),
    "unknown number": ([Share("month/2", "2026-11")], "unknown_budget", "no budget month/2"),
    "no such period": ([Share("month/1", "2026-13")], "unknown_budget", "with a period 2026-13"),
    "another kind of period": ([Share("month/1", DAY)], "unknown_budget", f"with a period {DAY}"),
    "period of another day": ([Share("hour/1", "2026-11-26T00+00")], "unknown_budget", f"on {DAY}"),
    "month before": ([Share("month/1", "2026-10")], "unknown_budget", f"on {DAY}"),
    "lease of another budget": ([Share(*MONTH, _OF_HOUR)], "malformed", "not a lease of budget"),
    "lease of an agent": ([Share(*MONTH, new_lease_id("a", DAY, bytes(16)))], "malformed", "not a lease of budget"),
    "lease of the ledger's own": ([Share(*MONTH, "month/1/2026-11")], "malformed", "not a lease of budget"),
    "lease that is another's": ([Share(*MONTH, "free-hand-1")], "wrong_lease", "belongs to hour/1 on"),
    "lease of another period": ([Share(*HOUR[:1], f"{DAY}T13+00", "free-hand-1")], "wrong_lease", "belongs to hour/1"),
    "twice": ([share(MONTH), share(MONTH, number=1)], "malformed", "twice"),
    "16 budgets": ([Share(f"x/{n}", "once") for n in range(1, 17)], "malformed", "at most 15"),
}


def test_bad_budgets_become_dead_letters(team: Team) -> None:
    team.settle(event(1, 1, Share(*HOUR, "free-hand-1"), plan=team.plan_id("a"), lease="0" * 32))
    bad = [event(number, 1, *also) for number, (also, _, _) in enumerate(_BAD.values(), 1)]

    outcome = team.settle(event(100, 1), *bad, event(101, 1))

    assert (outcome.settled, figures(team.ledger)[HOUR].events) == (2, 3)
    found = {letter.payload["event"]: letter for letter in outcome.dead_letters}  # type: ignore[index]
    for number, (what, (_, kind, reason)) in enumerate(_BAD.items(), 1):
        letter = found.pop(number)
        assert (what, letter.kind) == (what, kind)
        assert reason in letter.reason
    assert not found
    kept = sorted((letter.kind, letter.reason) for letter in outcome.dead_letters)
    assert sorted((row.kind, row.reason) for row in team.rows(tables.dead_letters)) == kept
    # And leave no period that is not of their day.
    periods = {(row.budget_id, row.period_id) for row in team.rows(tables.budget_periods)}
    assert periods - {MONTH, HOUR} == {("hour/1", f"{DAY}T13+00")}


_MALFORMED: list[dict[str, Any]] = [
    {"also": {}},
    {"also": [1]},
    {"also": [{"budget": "month/1"}]},
    {"also": [{"budget": "month", "period": "2026-11"}]},
    {"also": [{"budget": "a", "period": DAY}]},
    {"also": [{"budget": "month/1", "period": "2026-11", "held": -1}]},
    {"also": [{"budget": "month/1", "period": "2026-11", "held": 1.0}]},
    {"plan": -1},
    {"plan": True},
    {"labels": []},
    {"labels": {"Model": "x"}},
    {"labels": {"model": 1}},
    {"labels": {"model": "x" * 129}},
    {"labels": {f"k{n}": "x" for n in range(9)}},
]


def test_malformed_budgets_and_labels(team: Team) -> None:
    bad = [{**event(number, 1, share(MONTH)), **changes} for number, changes in enumerate(_MALFORMED, 1)]
    outcome = team.settle(event(100, 1), *bad, event(101, 1))
    assert outcome.settled == 2
    assert [letter.kind for letter in outcome.dead_letters] == ["malformed"] * len(_MALFORMED)


def test_duplicates_and_conflicts_charge_nothing(team: Team) -> None:
    both = (share(MONTH), share(HOUR))
    first = team.settle(event(1, 10, *both), event(1, 10, *both))
    before = figures(team.ledger), team.rows(tables.budget_periods)
    again = team.settle(event(1, 10, *both), event(1, 10), event(1, 11, *both), event(1, 10, share(TODAY)))

    assert (first.settled, first.duplicates, again.settled, again.duplicates) == (1, 1, 0, 3)
    assert [letter.kind for letter in again.dead_letters] == ["conflict"]
    assert (figures(team.ledger), team.rows(tables.budget_periods)) == before


def test_bad_twin_does_not_hide_an_event(team: Team) -> None:
    outcome = team.settle(event(1, 10, Share("nothing/1", "2026-11")), event(1, 10), event(1, 10))
    assert (outcome.settled, outcome.duplicates, len(outcome.dead_letters)) == (1, 1, 1)
    assert figures(team.ledger)[MONTH] == Figures(10, 0, 1)


def test_16_budgets_settle(team: Team) -> None:
    also = []
    for number in range(15):
        team.budget(f"x{number}", 1000, agent="c")
        also.append(share((f"x{number}/1", DAY)))
    outcome = team.settle(event(1, 7, *also, agent="c", plan=team.plan_id("c")))
    assert (outcome.settled, outcome.unleased_micros) == (1, 0)
    assert figures(team.ledger) == {(f"x{number}/1", DAY): Figures(7, 0, 1) for number in range(15)}


def test_many_workers_keep_every_cap(team: Team, clock: ServerClock) -> None:
    """Settles of agents who share a month, in opposite orders, while its cap changes."""
    plans = {agent: team.plan_id(agent) for agent in "ab"}
    batches = [
        [
            event(number, 7, share(MONTH, number=lease), agent=agent, plan=plans[agent], lease=f"{lease:032x}")
            for number in range(1, 5)
        ]
        for lease in range(8)
        for agent in ["ab"[lease % 2]]
    ]
    together = threading.Barrier(4)

    def work(first: int) -> None:
        together.wait()
        for batch in batches[first:] + batches[:first]:
            _until_it_passes(partial(settle.settle, team.ledger, batch, OpenDays(DAY, NEXT)))

    def change() -> None:
        together.wait()
        for cap in (40, 70, 50, 100):
            _until_it_passes(partial(team.set, "month", cap_micros=cap))

    with ThreadPoolExecutor(4) as workers:
        for done in [workers.submit(change), *(workers.submit(work, first) for first in (0, 3, 6))]:
            done.result()

    assert len(team.rows(tables.settlements)) == 32
    found = figures(team.ledger)
    assert found == recomputed(team.ledger)
    assert found[MONTH].spent <= 100
    assert found[MONTH].spent + found[MONTH].uncovered == 32 * 7
    assert drawn(team.ledger)[MONTH] == 32 * 7
    assert found[HOUR] == Figures(60, 16 * 7 - 60, 16)


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


def test_paused_agent_is_charged_everywhere(team: Team) -> None:
    accounts.set_status(*team.books, "a", "paused", "test")
    team.settle(event(1, 10))
    assert figures(team.ledger).keys() == {MONTH, HOUR}


def test_bytes_of_each_further_budget() -> None:
    """At most 40 an event, on average."""
    events, grown = 4000, []
    for further in (0, 3):
        with quiet_ledger() as (_, ledger):
            office = Office(ledger, CounterPublisher(None, TERMS))
            also = []
            for number in range(further):
                office.budget(f"x{number}", 10**9, agent="c")
                also.append(share((f"x{number}/1", DAY)))
            before = pages(ledger)
            calls = [event(number, 1, *also, agent="c", plan=min(1, further)) for number in range(1, events + 1)]
            for start in range(0, events, 500):
                settle.settle(ledger, calls[start : start + 500], OpenDays(DAY, NEXT))
            assert len(office.rows(tables.settlements)) == events
            grown.append(pages(ledger) - before)
    assert (grown[1] - grown[0]) * 4096 / events / 3 < 8


def pages(ledger: Ledger) -> int:
    with ledger.reading() as connection:
        return int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
