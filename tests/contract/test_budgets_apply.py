"""A file of groups and budgets is applied as a whole, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from daycap import InvalidInput, UnknownAgent, UnknownGroup
from daycap.ledger import budgets, groups, tables
from daycap.ledger.apply import Applied, apply, wanted
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from tests.contract.test_budgets_definitions import Office

GROUPS = {"inner": {"agents": ["a"]}, "outer": {"agents": ["b"], "groups": ["inner"]}}
BUDGETS = {"month": {"group": "outer", "cap_micros": 9, "period": {"period": "month"}}}


@pytest.fixture
def office(ledger: Ledger, publisher: CounterPublisher) -> Office:
    return Office(ledger, publisher)


def run(office: Office, of_groups: dict[str, Any], of_budgets: dict[str, Any], **how: Any) -> Applied:
    return apply(*office.books, wanted(of_groups, of_budgets), "ann", "file", **how)


def steps(applied: Applied) -> list[tuple[str, str]]:
    return [(step["action"], step["name"]) for step in applied.steps]


def test_applies_once(office: Office) -> None:
    first = run(office, GROUPS, BUDGETS)
    assert (steps(first), first.done) == ([("add", "inner"), ("add", "outer"), ("add", "month")], True)
    assert [office.plan(agent) for agent in "abc"] == [["month/1"], ["month/1"], []]
    changes = office.rows(tables.budget_changes)
    again = run(office, GROUPS, BUDGETS)
    assert (again.steps, again.done, again.left) == ([], False, [])
    assert office.rows(tables.budget_changes) == changes
    assert office.seqs() == {"a": 2, "b": 2, "c": 1}


def test_changes_what_differs(office: Office) -> None:
    run(office, GROUPS, {**BUDGETS, "tool": {"agent": "c", "cap_micros": 1}})
    # Members change places: what was below is above. The budget of c moves to b, the month gets another cap.
    moved = {"inner": {"agents": ["c"], "groups": ["outer"]}, "outer": {"agents": ["b"]}}
    month = {"month": {**BUDGETS["month"], "cap_micros": 10}}
    applied = run(office, moved, {**month, "tool": {"agent": "b", "cap_micros": 1}})
    assert steps(applied) == [("change", "inner"), ("change", "outer"), ("change", "month"), ("change", "tool")]
    assert [step["restarts"] for step in applied.steps] == [False, False, False, True]
    assert (applied.steps[0]["old"], applied.steps[0]["new"]) == (
        {"agents": ["a"]},
        {"agents": ["c"], "groups": ["outer"]},
    )
    assert [office.plan(agent) for agent in "abc"] == [[], ["month/1", "tool/2"], []]
    assert budgets.find(*office.books, ["month"])[0].cap_micros == 10


def test_others_stay_unless_pruned(office: Office) -> None:
    run(office, GROUPS, BUDGETS)
    kept = run(office, {"inner": {"agents": ["a"]}}, {})
    assert (kept.steps, kept.left) == ([], ["group outer", "budget month"])
    pruned = run(office, {"inner": {"agents": ["a"]}}, {}, prune=True)
    assert (steps(pruned), pruned.left) == ([("remove", "outer"), ("remove", "month")], [])
    assert [each.group for each in groups.find(office.ledger)] == ["inner"]
    assert [office.plan(agent) for agent in "abc"] == [[], [], []]
    assert run(office, {}, {}, prune=True).done
    assert groups.find(office.ledger) == []


def test_dry_run_changes_nothing(office: Office) -> None:
    dry = run(office, GROUPS, BUDGETS, dry_run=True)
    assert (len(dry.steps), dry.done) == (3, False)
    assert [office.rows(table) for table in (tables.groups, tables.budgets, tables.plans)] == [[], [], []]
    assert office.seqs() == dict.fromkeys("abc", 1)
    agreed = run(office, GROUPS, BUDGETS, shown=dry.digest)
    assert agreed.steps == dry.steps
    with pytest.raises(InvalidInput, match="look at them again"):
        run(office, GROUPS, BUDGETS, shown=dry.digest)


@pytest.mark.parametrize("dry_run", [True, False])
def test_one_mistake_stops_all(office: Office, dry_run: bool) -> None:
    many = {f"x{number}": {"group": "outer", "cap_micros": 1} for number in range(16)}
    for of_groups, of_budgets, error, message in (
        ({**GROUPS, "inner": {"groups": ["outer"]}}, BUDGETS, InvalidInput, "would contain itself"),
        ({**GROUPS, "more": {"agents": ["z"]}}, BUDGETS, UnknownAgent, "agent z"),
        ({**GROUPS, "more": {"groups": ["nowhere"]}}, BUDGETS, UnknownGroup, "nowhere"),
        (GROUPS, {**BUDGETS, "x": {"group": "nowhere", "cap_micros": 1}}, UnknownGroup, "nowhere"),
        (GROUPS, {**BUDGETS, **many}, InvalidInput, "more than 16 budgets"),
        (GROUPS, {**BUDGETS, "x": {"group": "outer", "cap_micros": 1, "mode": "?"}}, InvalidInput, "budget x: mode"),
        ({**GROUPS, "more": {"colour": []}}, BUDGETS, InvalidInput, "group more has no 'colour'"),
    ):
        with pytest.raises(error, match=message):
            run(office, of_groups, of_budgets, dry_run=dry_run)
    assert [office.rows(table) for table in (tables.groups, tables.budgets, tables.plans)] == [[], [], []]
