"""Watches the demo while it runs: the runners' journals, the counter, the ledger and the broker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import sqlalchemy as sa

from daycap.clock import day_of
from daycap.errors import CounterUnavailable
from daycap.ledger.tables import budget_periods
from daycap.ledger.tables import daily_agent_spending as spending
from daycap.protocol.counter import Counter, DayReading
from demo.journal import End, Entry
from demo.plan import TEAM_PERIOD, Plan

_RATE_OVER_S = 3.0
_AT_ONCE = 300


@dataclass(slots=True)
class Tally:
    """How many calls ended, and how. `unavailable` counts errors; one call may get several."""

    calls: int = 0
    finalized: int = 0
    released: int = 0
    refused: int = 0
    unavailable: int = 0

    def add(self, entry: Entry) -> None:
        self.calls += 1
        self.finalized += entry.end is End.FINALIZED
        self.released += entry.end is End.RELEASED
        self.refused += entry.end is End.REFUSED
        self.unavailable += entry.unavailable


class Watch:
    """Reads everything in `look`. What does not answer keeps its last value."""

    def __init__(self, plan: Plan, counter: Counter, ledger: sa.Engine, backlog: Callable[[], int], team: str) -> None:
        self.plan = plan
        self._team = team
        self._counter = counter
        self._ledger = ledger
        self._backlog = backlog
        self._began_s = time.monotonic()
        self._agents = [agent.agent for agent in plan.agents]
        self._past = deque([(0.0, 0, 0)])
        self.entries: list[Entry] = []
        self.total = Tally()
        self.tally = {agent: Tally() for agent in self._agents}
        self.readings: dict[str, DayReading | None] = {}
        """The counter's days, None for one that is not open: the counter has just lost its data."""
        self.spent_micros: dict[str, int] = {}
        """The ledger's days."""
        self.team: DayReading | None = None
        """The counter's month of the budget that all agents share."""
        self.team_spent_micros = 0
        """The ledger's."""
        self.settled = 0
        self.waiting: int | None = None
        """Messages in the finalize queue; None while the broker does not answer."""
        self.remark = ""
        """A note for the display."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the runners began."""
        return time.monotonic() - self._began_s

    @property
    def rates(self) -> tuple[float, float]:
        """Recent rates per second: calls ended, events settled."""
        (then_s, calls, settled), (now_s, calls_now, settled_now) = self._past[0], self._past[-1]
        seconds = max(now_s - then_s, 1e-9)
        return (calls_now - calls) / seconds, (settled_now - settled) / seconds

    def look(self, entries: Sequence[Entry]) -> None:
        """Read the runners' new entries, the counter, the ledger and the broker."""
        for entry in entries:
            self.total.add(entry)
            self.tally[entry.agent].add(entry)
        self.entries += entries
        with suppress(CounterUnavailable):
            self._read_counter()
        with suppress(sa.exc.SQLAlchemyError):
            self._read_ledger()
        try:
            self.waiting = self._backlog()
        except Exception:
            self.waiting = None  # Broker clients raise many errors, and this number is only for display.
        self._past.append((self.elapsed_s, self.total.calls, self.settled))
        while self._past[0][0] < self.elapsed_s - _RATE_OVER_S and len(self._past) > 2:
            self._past.popleft()

    def _read_counter(self) -> None:
        now_ms = self._counter.now_ms()
        days = [(agent, day_of(now_ms)) for agent in self._agents]
        *readings, self.team = self._counter.read([*days, (self._team, TEAM_PERIOD.at(now_ms).id)])
        self.readings = dict(zip(self._agents, readings, strict=True))

    def _read_ledger(self) -> None:
        # The agents belong to this demo, so it made all their settlements.
        settled, latest = 0, dict[str, int]()
        with self._ledger.connect() as connection:
            for start in range(0, len(self._agents), _AT_ONCE):
                batch = self._agents[start : start + _AT_ONCE]
                columns = (spending.c.agent_account_id, spending.c.settled_count, spending.c.spent_micros)
                statement = sa.select(*columns).where(spending.c.agent_account_id.in_(batch))
                for agent, count, spent in connection.execute(statement.order_by(spending.c.spending_date)):
                    settled += count
                    latest[agent] = spent
            team = sa.select(sa.func.sum(budget_periods.c.spent_micros)).where(budget_periods.c.budget_id == self._team)
            self.team_spent_micros = int(connection.scalar(team) or 0)
        self.settled, self.spent_micros = settled, latest
