"""The live table of the demo: what it shows is the ledger's, also while the counter has lost everything."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from rich.console import Console

from daycap.counters.redis import RedisCounter
from daycap.ledger import accounts, budgets, groups
from daycap.ledger.engine import Ledger
from daycap.ledger.opening import open_days
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.snapshots import read_snapshots
from daycap.ledger.tables import budget_periods
from daycap.ledger.tables import daily_agent_spending as spending
from daycap.protocol.counter import LeaseTerms
from demo.live import show_last
from demo.plan import TEAM_PERIOD, Plan, PlannedAgent
from demo.watch import Watch
from tests.migrated import migrated_sqlite

CAP, SPENT = 5_000_000, 1_234_500
AGENTS = ("agent-7", "agent-8")


class Stage:
    """A ledger where each agent spent something, its counter, and who watches both."""

    def __init__(self, redis_url: str, ledger: Ledger) -> None:
        self.ledger = ledger
        self.counter = RedisCounter(redis_url, timeout_s=2)
        self.publisher = CounterPublisher(self.counter, LeaseTerms(ttl_ms=30_000, guard_ms=1000, grace_ms=10_000))
        accounts.add(ledger, self.publisher, dict.fromkeys(AGENTS, CAP), "test")
        groups.add(ledger, self.publisher, "team", AGENTS, (), "test")
        facts = {"group": "team", "cap_micros": 2 * CAP, "period": TEAM_PERIOD.to_json()}
        budgets.add(ledger, self.publisher, "team", facts, "test")
        open_days(ledger, self.publisher, [("team/1", TEAM_PERIOD.at(self.counter.now_ms()).id)])
        with ledger.writing() as connection:
            connection.execute(sa.update(budget_periods).values(spent_micros=2 * SPENT))
            connection.execute(sa.update(spending).values(spent_micros=SPENT, settled_count=3, seq=spending.c.seq + 1))
        self.publish()
        plan = Plan(tuple(PlannedAgent(agent, CAP, 10) for agent in AGENTS), ())
        self.watch = Watch(plan, self.counter, ledger.engine, lambda: 0, "team/1")

    def publish(self) -> None:
        with self.ledger.reading() as connection:
            rows = connection.execute(sa.select(spending.c.agent_account_id, spending.c.spending_date))
            snapshots = read_snapshots(connection, [tuple(row) for row in rows])
        self.publisher.publish(self.ledger, snapshots)

    def picture(self, width: int) -> str:
        self.watch.look([])
        console = Console(width=width, height=40, file=io.StringIO(), force_terminal=True, color_system=None)
        with console.capture() as capture:
            show_last(console, self.watch, ["a synthetic day, seed 7"])
        said = capture.get()
        assert max(map(len, said.splitlines())) <= width
        return said


@pytest.fixture
def stage(redis_url: str, tmp_path: Path) -> Iterator[Stage]:
    ledger = Ledger(f"sqlite:///{migrated_sqlite(tmp_path / 'ledger.sqlite3')}")
    stage = Stage(redis_url, ledger)
    yield stage
    stage.counter.close()
    ledger.close()


def row_of(agent: str, picture: str) -> str:
    (row,) = [line for line in picture.splitlines() if line.startswith(agent)]
    return row


@pytest.mark.parametrize("width", [80, 160])
def test_the_ledgers_figure_outlives_the_counter(stage: Stage, redis_url: str, width: int) -> None:
    assert "$1.23" in row_of("agent-7", stage.picture(width))
    assert "░" in row_of("agent-7", stage.picture(width))

    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    lost = stage.picture(width)
    assert "$1.23" in row_of("agent-7", lost)
    assert "not open" in row_of("agent-7", lost)
    assert "$2.46" in row_of("team of 2", lost)

    stage.publish()
    fenced = row_of("agent-7", stage.picture(width))
    assert "$1.23" in fenced
    assert "fenced" in fenced


@pytest.mark.parametrize("width", [80, 160])
def test_each_figure_is_explained(stage: Stage, width: int) -> None:
    picture = stage.picture(width)
    header = next(line for line in picture.splitlines() if line.startswith("agent "))
    for figure in ("spent", "cap", "calls", "refused", "unavailable"):
        assert f" {figure}" in header
        assert f"{figure}: " in picture
    assert "…" not in picture
