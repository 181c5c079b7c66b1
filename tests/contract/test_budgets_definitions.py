"""Budgets and groups: what is added, changed, removed and refused, and the plans that follow."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from daycap import (
    BudgetExists,
    DaycapError,
    GroupExists,
    InvalidAmount,
    InvalidInput,
    UnknownAgent,
    UnknownBudget,
    UnknownGroup,
)
from daycap.clock import DAY_MS
from daycap.counters.memory import MemoryCounter
from daycap.errors import CounterUnavailable
from daycap.ledger import accounts, budgets, groups, membership, opening, plans, tables
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.protocol.counter import DaySnapshot
from daycap.protocol.plan import read_plan
from tests.contract.conftest import DAY, ServerClock

MONTH = {"period": "month", "zone": "Europe/Zurich"}


class Office:
    """Somebody who adds budgets and groups to a ledger with three agents, a, b and c."""

    def __init__(self, ledger: Ledger, publisher: CounterPublisher) -> None:
        self.books = (ledger, publisher)
        self.ledger = ledger
        accounts.add(*self.books, dict.fromkeys("abc", 1000), "test")

    def budget(self, name: str, cap: int = 100, **facts: Any) -> budgets.Budget:
        return budgets.add(*self.books, name, {"cap_micros": cap, **facts}, "ann")

    def set(self, name: str, **facts: Any) -> budgets.Budget:
        return budgets.alter(*self.books, name, facts, "ann", "because")

    def group(self, name: str, agents: str = "", *inner: str) -> groups.Group:
        return groups.add(*self.books, name, list(agents), inner, "ann")

    def join(self, name: str, agents: str = "", *inner: str) -> groups.Group:
        return groups.join(*self.books, name, list(agents), inner, "ann")

    def leave(self, name: str, agents: str = "", *inner: str) -> groups.Group:
        return groups.leave(*self.books, name, list(agents), inner, "ann")

    def rows(self, table: sa.Table) -> list[Any]:
        with self.ledger.reading() as connection:
            return list(connection.execute(sa.select(table).order_by(*table.primary_key.columns)))

    def plan(self, agent: str) -> list[str]:
        """The budgets of the agent's plan."""
        account = next(row for row in self.rows(tables.agent_accounts) if row.agent_account_id == agent)
        text = {0: "[]"} | {row.plan_id: row.rules for row in self.rows(tables.plans)}
        return [each.budget for each in read_plan(account.plan_id, text[account.plan_id]).budgets]

    def seqs(self) -> dict[str, int]:
        return {row.agent_account_id: row.seq for row in self.rows(tables.daily_agent_spending)}


@pytest.fixture
def office(ledger: Ledger, publisher: CounterPublisher) -> Office:
    return Office(ledger, publisher)


def test_budget_of_an_agent(office: Office) -> None:
    found = office.budget("tool", 2_000_000, agent="a", labels={"tool": "search"})
    assert found == budgets.find(*office.books, agent="a")[0]
    assert found[:8] == ("tool", "tool/1", "a", None, 2_000_000, {"period": "day"}, {"tool": ["search"]}, "enforce")
    assert (found.period_id, found.end_ms - found.start_ms) == (DAY, DAY_MS)
    assert (found.period_cap_micros, found.spent_micros) == (2_000_000, 0)
    assert [office.plan(agent) for agent in "abc"] == [["tool/1"], [], []]
    assert office.seqs() == {"a": 2, "b": 1, "c": 1}


def test_budget_of_nested_groups(office: Office, counter: MemoryCounter) -> None:
    office.group("inner", "ab")
    office.group("outer", "c", "inner")
    month = office.budget("month", group="outer", period=MONTH)
    assert (month.period_id, month.group) == ("2026-11", "outer")
    office.budget("hour", group="inner", period={"period": "hour"}, mode="watch")
    assert [office.plan(agent) for agent in "abc"] == [["hour/1", "month/1"], ["hour/1", "month/1"], ["month/1"]]
    assert office.seqs() == {"a": 3, "b": 3, "c": 2}
    assert len(office.rows(tables.plans)) == 2  # Equal plans share a row.
    assert [each.name for each in budgets.find(*office.books, agent="a")] == ["hour", "month"]
    assert [each.name for each in budgets.find(*office.books, group="outer")] == ["month"]


def test_counter_has_the_plan_at_once(office: Office, counter: MemoryCounter) -> None:
    office.group("team", "ab")
    office.budget("x", group="team")
    (plan,) = office.rows(tables.plans)
    assert [counter.read_plan(agent, DAY) for agent in "abc"] == [(plan.plan_id, plan.rules)] * 2 + [None]
    office.set("x", cap_micros=5)
    assert counter.read_plan("a", DAY) == (plan.plan_id, plan.rules)
    office.leave("team", "a")
    assert counter.read_plan("a", DAY) is None
    budgets.remove(*office.books, "x", "ann")
    assert counter.read_plan("b", DAY) is None


def test_members_who_join_and_leave(office: Office) -> None:
    office.group("inner", "a")
    office.group("outer")
    office.budget("x", group="outer")
    assert office.join("outer", "b", "inner") == ("outer", ["b"], ["inner"], ["x"])
    office.join("inner", "ac")
    assert [office.plan(agent) for agent in "abc"] == [["x/1"]] * 3
    office.leave("outer", "", "inner")
    assert [office.plan(agent) for agent in "abc"] == [[], ["x/1"], []]
    assert office.leave("outer", "b").agents == []
    assert office.plan("b") == []


def test_later_agent_joins(office: Office) -> None:
    office.group("team", "ab")
    office.budget("x", group="team")
    accounts.add(*office.books, {"late": 5}, "test")
    office.join("team", "c")
    groups.join(*office.books, "team", ["late"], [], "ann")
    assert office.plan("late") == office.plan("a") == ["x/1"]
    assert len(office.rows(tables.plans)) == 1


def test_diamond_counts_once(office: Office) -> None:
    office.group("left", "a")
    office.group("right", "a")
    office.group("top", "", "left", "right")
    office.budget("x", group="top")
    assert office.plan("a") == ["x/1"]
    office.leave("left", "a")
    assert office.plan("a") == ["x/1"]
    assert office.seqs()["a"] == 2


def test_cap_and_mode_change_in_place(office: Office) -> None:
    office.budget("x", agent="a")
    assert office.set("x", cap_micros=7)[1:5] == ("x/1", "a", None, 7)
    assert office.seqs()["a"] == 2
    assert office.set("x", mode="watch")[1] == "x/1"
    assert office.seqs()["a"] == 3
    office.set("x", mode="watch", cap_micros=7)
    assert office.seqs()["a"] == 3
    assert [row.plan_id for row in office.rows(tables.agent_accounts)] == [2, 0, 0]


def test_another_scope_is_a_new_number(office: Office) -> None:
    office.group("team", "bc")
    office.budget("x", agent="a")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"period": {"period": "hour"}}, "a"),
        ({"labels": {"model": "m*"}}, "a"),
        ({"group": "team"}, "bc"),
        ({"agent": "b"}, "b"),
    ]
    for number, (facts, agents) in enumerate(changes, 2):
        changed = office.set("x", **facts)
        assert (changed.budget, changed.cap_micros) == (f"x/{number}", 100)
        assert [office.plan(agent) for agent in "abc"] == [[f"x/{number}"] * (agent in agents) for agent in "abc"]
    assert [row.removed_at is None for row in office.rows(tables.budgets)] == [False] * 4 + [True]
    assert (changed.labels, changed.period) == ({"model": ["m*"]}, {"period": "hour"})


def test_removed_name_is_free_again(office: Office) -> None:
    office.budget("x", agent="a")
    budgets.remove(*office.books, "x", "ann")
    assert (office.plan("a"), budgets.find(*office.books)) == ([], [])
    with pytest.raises(UnknownBudget, match="x: there is no such budget"):
        budgets.remove(*office.books, "x", "ann")
    assert office.budget("x", agent="a").budget == "x/2"
    assert office.plan("a") == ["x/2"]


def test_cap_reaches_open_periods(office: Office, clock: ServerClock, monkeypatch: pytest.MonkeyPatch) -> None:
    office.budget("x", agent="a")
    row = {"budget_id": "x/1", "cap_micros": 100, "spent_micros": 0, "uncovered_micros": 0, "settled_count": 0}
    row |= {"seq": 4, "updated_at": 1, "drawn_micros": 0}
    with office.ledger.writing() as connection:
        ends = {"old": clock.ms, "now": clock.ms + 1, "next": clock.ms + DAY_MS}
        periods = [{**row, "period_id": name, "start_ms": 0, "end_ms": end} for name, end in ends.items()]
        connection.execute(sa.insert(tables.budget_periods), periods)
    published: list[Any] = []

    def read_rows(_: sa.Connection, wanted: list[tuple[str, str]]) -> list[DaySnapshot]:
        published.extend(wanted)
        return []

    monkeypatch.setattr(plans, "read_rows", read_rows)
    office.set("x", cap_micros=9)
    assert sorted(published) == [("x/1", DAY), ("x/1", "next"), ("x/1", "now")]
    assert [(row.period_id, row.cap_micros, row.seq) for row in office.rows(tables.budget_periods)] == [
        (DAY, 9, 2),
        ("next", 9, 5),
        ("now", 9, 5),
        ("old", 100, 4),
    ]


@pytest.mark.parametrize("mode", ["enforce", "watch"])
def test_new_budget_is_open_without_a_fence(office: Office, counter: MemoryCounter, mode: str) -> None:
    """An event that held nothing of it inserts the period's row; nobody could tell then that nothing was lent."""
    office.budget("x", agent="a", mode=mode)
    office.set("x", cap_micros=101, labels={"tool": "search"})
    first, second = counter.read([("x/1", DAY), ("x/2", DAY)])
    assert first is not None
    assert second is not None
    assert (first.status, first.fenced) == ("paused", False)
    assert (second.status, second.fenced, second.remaining_micros) == ("active", False, 101)


def test_budget_without_a_counter_is_opened_later(office: Office, counter: MemoryCounter) -> None:
    def away() -> int:
        raise CounterUnavailable("away")

    now_ms, counter.now_ms = counter.now_ms, away
    office.budget("x", agent="a")
    counter.now_ms = now_ms
    assert office.rows(tables.budget_periods) == []

    opening.open_on_request(*office.books, "x/1", DAY)
    (reading,) = counter.read([("x/1", DAY)])
    assert reading is not None
    assert not reading.fenced


def test_every_change_is_recorded(office: Office, clock: ServerClock) -> None:
    office.group("team", "a")
    office.budget("x", group="team")
    office.set("x", cap_micros=7)
    office.leave("team", "a")
    budgets.remove(*office.books, "x", "bob", "over")
    groups.remove(*office.books, "team", "bob")
    facts = {"group": "team", "cap_micros": 100, "period": {"period": "day"}, "labels": {}, "mode": "enforce"}
    changes = [
        (row.kind, row.name, row.old and json.loads(row.old), row.new and json.loads(row.new), row.changed_by)
        for row in office.rows(tables.budget_changes)
    ]
    assert changes == [
        ("group", "team", None, {}, "ann"),
        ("group", "team", {}, {"agents": ["a"]}, "ann"),
        ("budget", "x", None, facts, "ann"),
        ("budget", "x", facts, {**facts, "cap_micros": 7}, "ann"),
        ("group", "team", {"agents": ["a"]}, {}, "ann"),
        ("budget", "x", {**facts, "cap_micros": 7}, None, "bob"),
        ("group", "team", {}, None, "bob"),
    ]
    assert {row.changed_at for row in office.rows(tables.budget_changes)} == {clock.ms}
    assert [row.reason for row in office.rows(tables.budget_changes)][2:6:1] == [None, "because", None, "over"]


BAD: list[tuple[dict[str, Any], type[DaycapError], str]] = [
    ({"agent": "z"}, UnknownAgent, "agent z: there is no such agent"),
    ({"group": "z"}, UnknownGroup, "z: there is no such group"),
    ({}, InvalidInput, "needs either an agent or a group"),
    ({"agent": "a", "group": "team"}, InvalidInput, "needs either an agent or a group"),
    ({"agent": "a", "cap_micros": -1}, InvalidAmount, "micros"),
    ({"agent": "a", "cap_micros": 1.5}, InvalidAmount, "micros"),
    ({"agent": "a", "mode": "stop"}, InvalidInput, "mode is enforce or watch"),
    ({"agent": "a", "period": {"period": "day", "zone": "Mars/Base"}}, InvalidInput, "unknown time zone"),
    ({"agent": "a", "period": {"period": "day", "weekday": 3}}, InvalidInput, "does not apply"),
    ({"agent": "a", "labels": {"model": 5}}, InvalidInput, "needs a value"),
    ({"agent": "a", "colour": "red"}, InvalidInput, "budget x: there is no 'colour'"),
]


def test_bad_budget_is_refused(office: Office) -> None:
    office.group("team")
    for facts, error, message in BAD:
        with pytest.raises(error, match=message):
            office.budget("x", **facts)
    for name in ("", "a b", "a/b", "x" * 129, "\u00e4"):
        with pytest.raises(InvalidInput, match="not the name of a budget"):
            office.budget(name, agent="a")
        with pytest.raises(InvalidInput, match="not the name of a group"):
            office.group(name)
    with pytest.raises(InvalidInput, match="the id of a run"):
        office.budget("run.aaaqeayeaudaocaj.2000000.1795900000000", agent="a")
    assert office.rows(tables.budgets) == []


def test_what_exists_is_not_added_again(office: Office) -> None:
    office.group("x")
    with pytest.raises(GroupExists, match="daycap group join"):
        office.group("x")
    office.budget("x", agent="a")
    with pytest.raises(BudgetExists, match="daycap budget set"):
        office.budget("x", agent="b")


def test_who_changes_must_be_said(office: Office) -> None:
    with pytest.raises(InvalidInput, match="changed_by is empty"):
        groups.add(*office.books, "team", [], [], " ")


def test_unknown_members_are_refused(office: Office) -> None:
    office.group("team")
    with pytest.raises(UnknownAgent, match="agent z"):
        office.join("team", "az")
    with pytest.raises(UnknownGroup, match="other: "):
        office.join("team", "a", "other")
    with pytest.raises(UnknownGroup, match="other: "):
        office.join("other", "a")
    with pytest.raises(InvalidInput, match="agent a is not a member of group team"):
        office.leave("team", "a")
    assert office.rows(tables.group_members) == []


def test_cycle_is_refused(office: Office) -> None:
    for number in range(8):
        office.group(f"g{number}", "", *([f"g{number - 1}"] if number else []))
        with pytest.raises(InvalidInput, match="would contain itself"):
            office.join("g0", "", f"g{number}")


def test_at_most_eight_levels(office: Office) -> None:
    for number in range(8):
        office.group(f"g{number}", "a", *([f"g{number - 1}"] if number else []))
    office.budget("x", group="g7")
    assert office.plan("a") == ["x/1"]
    with pytest.raises(InvalidInput, match="more than 8 levels"):
        office.group("over", "", "g7")
    office.group("under")
    with pytest.raises(InvalidInput, match="more than 8 levels"):
        office.join("g0", "", "under")
    office.join("g1", "", "under")


def test_used_group_is_not_removed(office: Office) -> None:
    office.group("inner", "a")
    office.group("outer", "", "inner")
    office.budget("x", group="inner")
    for message, clear in (
        ("has members, such as agent a", lambda: office.leave("inner", "a")),
        ("has a budget, x", lambda: budgets.remove(*office.books, "x", "ann")),
        ("is a member of group outer", lambda: office.leave("outer", "", "inner")),
    ):
        with pytest.raises(InvalidInput, match=message):
            groups.remove(*office.books, "inner", "ann")
        clear()
    groups.remove(*office.books, "inner", "ann")
    with pytest.raises(UnknownGroup):
        groups.remove(*office.books, "inner", "ann")
    assert [each.group for each in groups.find(office.ledger)] == ["outer"]
    assert office.group("inner", "b") == ("inner", ["b"], [], [])


def test_at_most_sixteen_budgets_on_a_call(office: Office) -> None:
    office.group("team", "ab")
    for number in range(15):
        scope: dict[str, Any] = {"group": "team"} if number % 2 else {"agent": "a"}
        office.budget(f"x{number}", **scope)
    with pytest.raises(InvalidInput, match="agent a could count in more than 16 budgets"):
        office.budget("one-more", group="team", mode="watch")
    office.group("other", "c")
    office.budget("y", group="other")
    with pytest.raises(InvalidInput, match="more than 16"):
        office.join("other", "", "team")
    for value in range(3):  # None of these counts together with another.
        office.budget(f"y{value}", agent="b", labels={"tool": f"t{value}"})
    assert len(office.plan("b")) == 7 + 3


def test_ten_thousand_agents_at_once(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_AT_ONCE", 2)
    monkeypatch.setattr(plans, "_PUBLISHED_AT_ONCE", 2)
    office.group("team", "abc")
    office.budget("x", group="team")
    assert [office.plan(agent) for agent in "abc"] == [["x/1"]] * 3
    assert office.seqs() == dict.fromkeys("abc", 2)


def test_failure_changes_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.group("team", "abc")

    def fail(*_: object) -> int:
        raise InvalidInput("broken")

    monkeypatch.setattr(plans.Planner, "plan_id", fail)
    with pytest.raises(InvalidInput, match="broken"):
        office.budget("x", group="team")
    assert (office.rows(tables.budgets), office.rows(tables.plans)) == ([], [])
    assert office.seqs() == dict.fromkeys("abc", 1)


def test_changes_since_a_number(office: Office, clock: ServerClock) -> None:
    office.group("team", "ab")
    before = plans.changed_since(office.ledger, 0)
    clock.ms += 1
    assert plans.changed_since(office.ledger, before.last) == (before.last, set(), [])
    office.budget("x", group="team")
    after = plans.changed_since(office.ledger, before.last)
    assert (after.last, after.agents, after.periods) == (before.last + 1, {"a", "b"}, [("x/1", DAY)])


def test_pages_by_name(office: Office) -> None:
    for name in ("b2", "b1", "b3"):
        office.budget(name, agent="a")
        office.group(name)
    assert [each.name for each in budgets.find(*office.books, after="b1", limit=1)] == ["b2"]
    assert [each.group for each in groups.find(office.ledger, after="b1")] == ["b2", "b3"]
    with pytest.raises(UnknownBudget, match="zz"):
        budgets.find(*office.books, ["b1", "zz"])
    with pytest.raises(UnknownGroup, match="zz"):
        groups.find(office.ledger, ["b1", "zz"])
    with pytest.raises(InvalidInput, match="limit"):
        groups.find(office.ledger, limit=0)
