"""After any changes of budgets and groups, each agent's plan is what its groups and budgets make it."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daycap import DaycapError
from daycap.ledger import accounts, budgets, groups, tables
from daycap.ledger.apply import apply, wanted
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.tables import metadata
from daycap.protocol.counter import LeaseTerms
from tests.migrated import quiet_ledger

NOWHERE = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))
AGENTS, GROUPS, BUDGETS = "abc", ("g", "h", "i"), ("x", "y")

some_agents = st.lists(st.sampled_from(AGENTS), max_size=2, unique=True)
some_groups = st.lists(st.sampled_from(GROUPS), max_size=2, unique=True)
names = st.sampled_from(BUDGETS)
facts = st.fixed_dictionaries(
    {"cap_micros": st.integers(0, 9)},
    optional={
        "mode": st.sampled_from(["enforce", "watch"]),
        "labels": st.sampled_from([{}, {"tool": ["a"]}]),
        "period": st.sampled_from([{"period": "day"}, {"period": "hour"}]),
    },
)
scopes = st.one_of(
    st.builds(lambda agent: {"agent": agent}, st.sampled_from(AGENTS)),
    st.builds(lambda group: {"group": group}, st.sampled_from(GROUPS)),
)


def planned(text: str) -> set[tuple[str, str, bool, str]]:
    """Return what a plan's text says of each budget."""
    return {
        (each["budget"], each.get("mode", "enforce"), "labels" in each, json.dumps(each["period"]))
        for each in json.loads(text)
    }


class Definitions(RuleBasedStateMachine):
    """Changes that somebody makes; those that are refused change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        _, self.ledger = self.stack.enter_context(quiet_ledger())
        self.how = (self.ledger, NOWHERE)
        accounts.add(*self.how, dict.fromkeys(AGENTS, 1), "test")
        of_groups = {"g": {"agents": ["a"]}, "h": {"agents": ["b"], "groups": ["g"]}, "i": {"agents": ["c"]}}
        of_budgets = {"x": {"group": "h", "cap_micros": 5}, "y": {"group": "i", "cap_micros": 5}}
        apply(*self.how, wanted(of_groups, of_budgets), "test")

    def teardown(self) -> None:
        self.stack.close()

    @rule(group=st.sampled_from(GROUPS), agents=some_agents, inner=some_groups)
    def add_group(self, group: str, agents: list[str], inner: list[str]) -> None:
        with suppress(DaycapError):
            groups.add(*self.how, group, agents, inner, "test")

    @rule(group=st.sampled_from(GROUPS), agents=some_agents, inner=some_groups)
    def join(self, group: str, agents: list[str], inner: list[str]) -> None:
        with suppress(DaycapError):
            groups.join(*self.how, group, agents, inner, "test")

    @rule(group=st.sampled_from(GROUPS), agents=some_agents, inner=some_groups)
    def leave(self, group: str, agents: list[str], inner: list[str]) -> None:
        with suppress(DaycapError):
            groups.leave(*self.how, group, agents, inner, "test")

    @rule(group=st.sampled_from(GROUPS))
    def remove_group(self, group: str) -> None:
        with suppress(DaycapError):
            groups.remove(*self.how, group, "test")

    @rule(name=names, what=facts, scope=scopes)
    def add_budget(self, name: str, what: dict[str, Any], scope: dict[str, str]) -> None:
        with suppress(DaycapError):
            budgets.add(*self.how, name, {**what, **scope}, "test")

    @rule(name=names, what=facts, scope=st.one_of(st.just({}), scopes))
    def change_budget(self, name: str, what: dict[str, Any], scope: dict[str, str]) -> None:
        with suppress(DaycapError):
            budgets.alter(*self.how, name, {**what, **scope}, "test")

    @rule(name=names)
    def remove_budget(self, name: str) -> None:
        with suppress(DaycapError):
            budgets.remove(*self.how, name, "test")

    @rule(
        of_groups=st.dictionaries(
            st.sampled_from(GROUPS), st.fixed_dictionaries({"agents": some_agents, "groups": some_groups}), max_size=2
        ),
        of_budgets=st.dictionaries(names, st.builds(lambda what, scope: {**what, **scope}, facts, scopes), max_size=2),
        prune=st.booleans(),
    )
    def apply(self, of_groups: dict[str, Any], of_budgets: dict[str, Any], prune: bool) -> None:
        with suppress(DaycapError):
            file = wanted(of_groups, of_budgets)
            apply(*self.how, file, "test", prune=prune)
            assert apply(*self.how, file, "test", prune=prune).steps == []

    @invariant()
    def plans_are_right(self) -> None:
        with self.ledger.reading() as connection:
            rows = {table: connection.execute(table.select()).all() for table in metadata.sorted_tables}
        texts = {row.plan_id: row.rules for row in rows[tables.plans]}
        belongs = [(row.group_id, row.member_id) for row in rows[tables.group_members]]
        for account in rows[tables.agent_accounts]:
            of = {account.agent_account_id}
            while above := {group for group, member in belongs if member in of} - of:
                of |= above
            applying = {
                (row.budget_id, row.mode, row.labels != "{}", row.period)
                for row in rows[tables.budgets]
                if row.removed_at is None and (row.agent_account_id or row.group_id) in of
            }
            assert planned(texts.get(account.plan_id, "[]")) == applying


Definitions.TestCase.settings = settings(max_examples=50, stateful_step_count=8, deadline=None)
TestDefinitions = Definitions.TestCase
