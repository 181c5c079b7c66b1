"""The machines with budgets: two agents of a group, an hour and a month of the group, a day of one agent's tool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from daycap.ledger import accounts, budgets, groups
from daycap.ledger.definitions import current
from daycap.protocol.plan import ENFORCE
from tests.properties.deployment import Deployment
from tests.properties.machines import FaultyWallets, LoneWallet, amounts, caps, which
from tests.properties.world import AGENT, World

OTHER, GROUP = "other", "team"
SEARCH = {"tool": "search"}
DEFINED: dict[str, dict[str, Any]] = {
    "hour": {"group": GROUP, "cap_micros": 100, "period": {"period": "hour", "zone": "Asia/Kolkata"}},
    "month": {"group": GROUP, "cap_micros": 150, "period": {"period": "month", "zone": "Europe/Zurich"}},
    "tool": {"agent": AGENT, "cap_micros": 60, "period": {"period": "day"}, "labels": SEARCH},
}
names = st.sampled_from(sorted(DEFINED))


class BudgetedDeployment(Deployment):
    """Budgets that apply to its agents, and can be changed."""

    def __init__(self, world: World, cap: int) -> None:
        super().__init__(world, cap)
        accounts.add(self.ledger, self.publisher, {OTHER: cap}, "test")
        groups.add(self.ledger, self.publisher, GROUP, [AGENT, OTHER], [], "test")
        self.members = {AGENT, OTHER}
        for name in DEFINED:
            self.add_budget(name)

    def add_budget(self, name: str) -> None:
        budgets.add(self.ledger, self.publisher, name, DEFINED[name], "test")

    def change_budget(self, name: str, **facts: Any) -> None:
        """Add it if it was removed."""
        if name in dict(self.budgets()):
            budgets.alter(self.ledger, self.publisher, name, facts, "test")
        else:
            self.add_budget(name)
        self.truth.check()

    def remove_budget(self, name: str) -> None:
        if name in dict(self.budgets()):
            budgets.remove(self.ledger, self.publisher, name, "test")
        else:
            self.add_budget(name)

    def change_members(self, agent: str) -> None:
        change = groups.leave if agent in self.members else groups.join
        change(self.ledger, self.publisher, GROUP, [agent], [], "test")
        self.members ^= {agent}

    def budgets(self) -> Iterator[tuple[str, Any]]:
        """The name and the definition of each."""
        with self.ledger.reading() as connection:
            found = current(connection)
        yield from ((name, definition) for name, (_, definition) in found.items())

    def make_room(self) -> int:
        """In every budget: where all is spent, nothing more goes wrong."""
        room = super().make_room()
        for name, definition in self.budgets():
            if definition.mode == ENFORCE:
                self.change_budget(name, cap_micros=max(definition.cap_micros, room + self._taken(name)))
        return room

    def _taken(self, name: str) -> int:
        """What calls take of all periods of a budget: at least as much as of the current one."""
        wheres = {where for wheres in self.truth.taken.values() for where in wheres}
        return sum(sum(self.truth.taken_of(where).values()) for where in wheres if where[0].partition("/")[0] == name)


class _Budgets(LoneWallet):
    """Rules about budgets, besides those of another machine."""

    deployment: BudgetedDeployment

    def make_deployment(self) -> Deployment:
        return BudgetedDeployment(self.world, cap=100)

    @rule(agent=st.sampled_from([AGENT, OTHER]), search=st.booleans())
    def call_for(self, agent: str, search: bool) -> None:
        self.deployment.agent, self.deployment.labels = agent, SEARCH if search else {}

    @rule(name=names, cap=caps)
    def set_budgets_cap(self, name: str, cap: int) -> None:
        self.deployment.change_budget(name, cap_micros=cap)

    @rule(name=names, mode=st.sampled_from(["enforce", "watch"]))
    def set_budgets_mode(self, name: str, mode: str) -> None:
        self.deployment.change_budget(name, mode=mode)

    @rule(name=names)
    def remove_or_add_budget(self, name: str) -> None:
        self.deployment.remove_budget(name)

    @rule(agent=st.sampled_from([AGENT, OTHER]))
    def change_members(self, agent: str) -> None:
        self.deployment.change_members(agent)

    @rule(number=which, estimate=amounts)
    def one_agent_takes_what_the_other_leaves(self, number: int, estimate: int) -> None:
        """For the deadline of each lease of a hold: the group's is shared, and others take what is not renewed."""
        room = self.deployment.make_room()
        one, other = self.runner(number), self.runner(number + 1)
        self.deployment.agent = AGENT
        if call := self.try_to_reserve(one, min(room, estimate)):
            self.deployment.end(call, None)
        self.deployment.a_minute_goes_by(paused=one)
        for runner, agent in ((other, OTHER), (one, OTHER), (one, AGENT)):
            self.deployment.agent = agent
            self.try_to_reserve(runner, estimate)


class LoneBudgets(_Budgets, LoneWallet):
    """One wallet, budgets, and nothing goes wrong."""


class FaultyBudgets(_Budgets, FaultyWallets):
    """Two wallets, budgets, and everything goes wrong."""
