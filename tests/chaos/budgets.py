"""What the agents of a round share: an hour of two of them, and a month of all, through a group within a group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from daycap.ledger.audit_counter import Difference
from daycap.ledger.engine import Ledger
from daycap.ledger.tables import budget_periods
from daycap.periods import PeriodRule
from daycap.protocol.counter import AgentDay
from demo.journal import End, Entry
from tests.chaos.deployment import Deployment

HOUR, MONTH = PeriodRule("hour", "Asia/Kolkata"), PeriodRule("month", "Europe/Zurich")
HOUR_MICROS, MONTH_MICROS = 70_000, 200_000
"""Each is full before the agents' own caps are."""

_ROUND_MS = 15 * 60_000
"""No round takes longer: an hour that begins within this time may be used."""


class Shared:
    """The budgets of one round, and what truly was spent of them."""

    def __init__(self, round_: str, agents: list[str]) -> None:
        self._round, self._agents = round_, agents
        self._inner = agents[:2]
        self._budgets = {f"{round_}-hour/1": (HOUR, self._inner), f"{round_}-month/1": (MONTH, agents)}

    def changes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The tasks that make it so, with their arguments."""
        inner, outer = f"{self._round}-inner", f"{self._round}-outer"
        yield "daycap.add_group", {"group": inner, "agents": self._inner, "member_groups": []}
        yield "daycap.add_group", {"group": outer, "agents": self._agents[2:], "member_groups": [inner]}
        hour = {"group": inner, "cap_micros": HOUR_MICROS, "period": HOUR.to_json()}
        yield "daycap.add_budget", {"name": f"{self._round}-hour", "facts": hour}
        month = {"group": outer, "cap_micros": MONTH_MICROS, "period": MONTH.to_json()}
        yield "daycap.add_budget", {"name": f"{self._round}-month", "facts": month}

    def periods(self, now_ms: int) -> list[AgentDay]:
        """The periods that this round may use."""
        found = {(b, rule.at(at).id) for b, (rule, _) in self._budgets.items() for at in (now_ms, now_ms + _ROUND_MS)}
        return sorted(found)

    def recorded(self, ledger: Ledger) -> list[AgentDay]:
        """The periods that the ledger has."""
        return [(row.budget_id, row.period_id) for row in self._rows(ledger)]

    def _rows(self, ledger: Ledger) -> list[Any]:
        these = budget_periods.c.budget_id.in_(self._budgets)
        with ledger.reading() as connection:
            return list(connection.execute(sa.select(budget_periods).where(these)))

    def compare(
        self, ledger: Ledger, deployment: Deployment, entries: Sequence[Entry], estimates: Mapping[str, int]
    ) -> Iterator[Difference]:
        """P1, P4, P12: each call counts in its budgets, which spend no more than they may, summed over their periods.

        `estimates`: what each call reserved, by reservation. What it cost beyond that may be held of one of its
        budgets, and not of another.
        """
        rows = self._rows(ledger)
        counter = deployment.counter()
        try:
            readings = counter.read([(row.budget_id, row.period_id) for row in rows])
        finally:
            counter.close()
        for budget, (_, agents) in self._budgets.items():
            calls = [entry for entry in entries if entry.end is End.FINALIZED and entry.agent in agents]
            cost = sum(entry.actual_micros for entry in calls)
            excess = sum(max(0, each.actual_micros - estimates[each.reservation]) for each in calls)
            cap = given_up = booked = counted = 0
            for row, reading in zip(rows, readings, strict=True):
                where = (row.budget_id, row.period_id)
                if row.budget_id != budget:
                    continue
                if row.spent_micros > row.cap_micros:
                    yield Difference("P1", budget, "spent exceeds the cap", row.cap_micros, row.spent_micros)
                cap, booked = cap + row.cap_micros, booked + row.spent_micros + row.uncovered_micros
                counted += row.settled_count
                given_up += deployment.in_all(reading, where).given_up_micros if reading is not None else 0
            if (counted, booked) != (len(calls), cost):
                what = "its calls and their cost"
                yield Difference("P12", budget, what, str((len(calls), cost)), str((counted, booked)))
            if cost > (most := cap + given_up + excess):
                yield Difference("P4", budget, "true spending", most, cost)
