"""Transactions that lock many rows take them in one order: PostgreSQL never has to break one off.

Each test runs two pieces of work. The first stops after each statement that locks rows, in turn; the second runs until
it is done or waits for a lock; then the first goes on.
"""

from __future__ import annotations

import functools
import itertools
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of, wall_ms
from daycap.ledger import (
    accounts,
    agent_days,
    anchors,
    apply,
    budgets,
    days,
    dead_letters,
    groups,
    membership,
    opening,
    retention,
    settle,
    tables,
)
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import all_of
from daycap.protocol.counter import LeaseTerms
from daycap.protocol.wire import FinalizeEvent
from daycap.settings import Settings
from tests.migrated import migrate
from tests.pgbouncer import missing
from tests.postgresql import LocalPostgreSQL

NOWHERE = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))
TODAY, YESTERDAY, CLOSED = (day_of(wall_ms() - ago * DAY_MS) for ago in (0, 1, 20))
_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
_runs = itertools.count()


class World:
    """Four agents of a run's own, whose order in English is a B c D, and by their bytes B D a c."""

    def __init__(self, ledger: Ledger, with_budgets: bool) -> None:
        self.ledger, self.run = ledger, next(_runs)
        self.agents = self.a, self.b, self.c, self.d = [f"{name}{self.run}" for name in "aBcD"]
        accounts.add(ledger, NOWHERE, {agent: 1000 for agent in self.agents if agent != self.a}, "test")
        accounts.add(ledger, NOWHERE, {self.a: 1000}, "test")
        # Z is before y by their bytes, and its periods are after those of y.
        self.budgets = {f"Z{self.run}": (self.c, "hour"), f"y{self.run}": (self.b, "day")}
        for budget, (agent, period) in self.budgets.items() if with_budgets else ():
            facts = {"agent": agent, "cap_micros": 1000, "period": {"period": period}}
            budgets.add(ledger, NOWHERE, budget, facts, "test")
        with ledger.writing() as connection:
            connection.execute(
                sa.delete(tables.daily_agent_spending).where(
                    tables.daily_agent_spending.c.agent_account_id.in_((self.a, self.d))
                )
            )
            days.insert_missing(connection, [(self.a, YESTERDAY), (self.d, YESTERDAY)], 1)
        self.settle(*self.agents, *self.bad, on=[CLOSED])

    @property
    def bad(self) -> list[str]:
        """What is no agent's id, and so becomes a dead letter."""
        return [f"no agent {number} {self.run}" for number in range(3)]

    def settle(self, *agents: str, on: Sequence[str] = (YESTERDAY, TODAY)) -> None:
        """An event of each agent and day that others have too, and one of a lease of its own."""
        events = [
            FinalizeEvent(f"{agent}.{day}{own}", 1, 1, agent, day, 1, 1, 1).to_wire()
            for agent in agents
            for day in on
            for own in ("", f".{next(_runs)}")
        ]
        settle.settle(self.ledger, events, retention.kept_days(Settings(), wall_ms()))

    def settle_all(self) -> None:
        self.settle(*self.agents, *self.bad)

    def settle_backwards(self) -> None:
        self.settle(*reversed(self.bad), self.d, self.c, self.a)

    def settle_closed(self) -> None:
        self.settle(*reversed(self.bad), *reversed(self.agents), on=[CLOSED])

    def open_some(self) -> None:
        opening.open_days(self.ledger, NOWHERE, [(self.a, TODAY), (self.d, YESTERDAY), (self.c, YESTERDAY)])
        self.settle(self.c, self.b, self.a)

    def roll_over(self) -> None:
        on = [day for day in (TODAY, YESTERDAY) for _ in self.agents]
        opening.open_days(self.ledger, NOWHERE, zip([*self.agents, *self.agents], on, strict=True))

    def change(self) -> None:
        accounts.set_status(self.ledger, NOWHERE, self.c, "paused", "test")
        accounts.set_cap(self.ledger, NOWHERE, self.a, 500, "test")
        anchors.set_anchor(self.ledger, NOWHERE, self.a, f"of {self.a}", "test")

    def add(self) -> None:
        new = [f"{name}-{self.run}-{next(_runs)}" for name in "aBc"]
        accounts.add(self.ledger, NOWHERE, dict.fromkeys(new, 1), "test", {each: f"of {each}" for each in new})

    def define(self) -> None:
        team = f"team{self.run}"
        facts = {budget: {"group": team, "cap_micros": 5} for budget in (f"new{self.run}", *self.budgets)}
        apply.apply(self.ledger, NOWHERE, apply.wanted({team: {"agents": self.agents}}, facts), "test")

    def set_caps(self) -> None:
        facts = {
            budget: {"agent": agent, "cap_micros": 5, "period": {"period": period}}
            for budget, (agent, period) in self.budgets.items()
        }
        apply.apply(self.ledger, NOWHERE, apply.wanted({}, facts), "test")

    def prune(self) -> None:
        settings = Settings(retention_days=8)
        all_of(lambda place: retention.prune(self.ledger, settings, wall_ms() + 9 * DAY_MS, place))

    def drop(self) -> None:
        letters = tables.dead_letters.c
        own = sa.select(letters.dead_letter_id).where(letters.payload.contains(f' {self.run}"'))
        with self.ledger.reading() as connection:
            ids = sorted(connection.scalars(own), reverse=True)
        with suppress(dead_letters.UnknownDeadLetter):  # Another one was quicker.
            dead_letters.drop(self.ledger, ids, lambda _: None)


class Pause:
    """Stops a thread after its `nth` statement that locks rows until the other has gone as far as it can."""

    def __init__(self, ledger: Ledger, nth: int) -> None:
        self._ledger, self._left, self._thread = ledger, nth, 0
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __enter__(self) -> Pause:
        sa.event.listen(self._ledger.engine, "after_cursor_execute", self._after)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        sa.event.remove(self._ledger.engine, "after_cursor_execute", self._after)

    def run(self, work: Callable[[], object]) -> None:
        self._thread = threading.get_ident()
        try:
            work()
        finally:
            self._thread = 0
            self.reached.set()

    def _after(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        locks = " FOR " in statement or not statement.startswith("SELECT")
        if locks and threading.get_ident() == self._thread:
            self._left -= 1
            if self._left == 0:
                self.reached.set()
                assert self.go_on.wait(20)

    @property
    def was_needed(self) -> bool:
        return self._left <= 0


def meet(
    ledger: Ledger, watch: sa.Connection, first: Callable[[], object], second: Callable[[], object], nth: int
) -> bool:
    """Run `second` after the `nth` statement of `first` that locks rows. Returns whether there is one."""
    with ThreadPoolExecutor(2) as pool, Pause(ledger, nth) as pause:
        works: list[Future[Any]] = [pool.submit(pause.run, first)]
        assert pause.reached.wait(20)
        works.append(pool.submit(second))
        while not works[1].done() and not watch.exec_driver_sql(_WAITS).scalar():
            time.sleep(0.001)
        pause.go_on.set()
        for work in works:
            work.result(20)
    return pause.was_needed


@pytest.fixture(scope="module")
def english() -> Iterator[str]:
    """The URL of a database that sorts as people do who speak English."""
    directory = Path(tempfile.mkdtemp(prefix="daycap-english-"))
    directory.chmod(0o755)
    (directory / "server").mkdir()
    locale = directory / "locale" / "en_US.UTF-8"
    locale.parent.mkdir()
    command = ["localedef", "-i", "en_US", "-f", "UTF-8", str(locale)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        missing("locales")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCPATH", f"{locale.parent}:/usr/lib/locale")
        server = LocalPostgreSQL(directory / "server")
    url = sa.make_url(server.new_database())
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE english TEMPLATE template0 LOCALE 'en_US.UTF-8'")
    engine.dispose()
    yield url.set(database="english").render_as_string(hide_password=False)
    server.close()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def ledger(english: str) -> Iterator[Ledger]:
    ledger = Ledger(english)
    migrate(ledger)
    yield ledger
    ledger.close()


_PAIRS = [
    (World.settle_all, World.settle_backwards),
    (World.settle_all, World.open_some),
    (World.settle_all, World.change),
    (World.settle_all, World.drop),
    (World.settle_all, World.add),
    (World.roll_over, World.settle_backwards),
    (World.roll_over, World.change),
    (World.change, World.settle_all),
    (World.settle_closed, World.prune),
    (World.prune, World.settle_closed),
    (World.drop, World.settle_all),
    (World.drop, World.drop),
    (World.add, World.settle_all),
    (World.define, World.settle_backwards),
    (World.define, World.change),
    (World.settle_all, World.define),
    (World.roll_over, World.define),
    (World.set_caps, World.settle_backwards),
    (World.settle_all, World.set_caps),
]


@pytest.mark.parametrize(("first", "second"), _PAIRS, ids=lambda work: work.__name__)
def test_no_two_wait_for_each_other(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, first: Callable[[World], None], second: Callable[[World], None]
) -> None:
    monkeypatch.setattr(membership, "_AT_ONCE", 2)
    monkeypatch.setattr(
        agent_days, "AT_ONCE", 2
    )  # Several statements for one batch, as for one of thousands of agents.
    with sa.create_engine(ledger.engine.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect() as watch:
        before = watch.exec_driver_sql(_DEADLOCKS).scalar()
        for nth in itertools.count(1):
            world = World(ledger, with_budgets=bool({first, second} & {World.define, World.set_caps}))
            if not meet(ledger, watch, functools.partial(first, world), functools.partial(second, world), nth):
                break
        ledger.close()  # What a session counts is sure to be seen when it has ended.
        assert (nth > 2, watch.exec_driver_sql(_DEADLOCKS).scalar()) == (True, before)


def test_plans_of_two_changes_have_both(ledger: Ledger) -> None:
    how = (ledger, NOWHERE)
    with sa.create_engine(ledger.engine.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect() as watch:
        for nth in itertools.count(1):
            world = World(ledger, with_budgets=False)
            team, budget = f"team{world.run}", f"budget{world.run}"
            groups.add(*how, team, [], [], "test")
            budgets.add(*how, f"{budget}-first", {"group": team, "cap_micros": 1}, "test")
            join = functools.partial(groups.join, *how, team, [world.a], [], "test")
            add = functools.partial(budgets.add, *how, budget, {"group": team, "cap_micros": 1}, "test")
            needed = meet(ledger, watch, join, add, nth)
            with ledger.reading() as connection:
                of_plan = sa.select(tables.plans.c.rules).join_from(
                    tables.agent_accounts, tables.plans, tables.plans.c.plan_id == tables.agent_accounts.c.plan_id
                )
                plan = connection.scalar(of_plan.where(tables.agent_accounts.c.agent_account_id == world.a))
            assert f"{budget}/1" in (plan or "")
            if not needed:
                break
    assert nth > 2
