"""Several workers on one ledger, a ledger that is killed under them, and clockwork that runs twice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from daycap.counters.redis import counter_key
from daycap.ledger.engine import Ledger
from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK
from tests.events import event
from tests.faults.conftest import made
from tests.faults.load import ACTUAL, HELD, spending
from tests.migrated import migrate
from tests.pgbouncer import PgBouncer
from tests.postgresql import LocalPostgreSQL
from tests.processes import ROOT, LocalBeat, LocalWorker
from tests.spine import Spine

M = 1_000_000

_SPEND_ALL = """
import sys, time
from daycap import BudgetUnavailable, CapExceeded, Wallet
finalized = 0
with Wallet.from_env() as wallet:
    while True:
        try:
            hold = wallet.reserve("agent-7", 1_000)
        except CapExceeded:
            break
        except BudgetUnavailable:
            continue
        hold.finalize(1_200 if finalized % 3 else 400)
        finalized += 1
        time.sleep(0.003)  # Messages of few events, for both workers.
    assert wallet.flush(timeout=60) == ()
print(finalized)
"""

_RESERVE_AND_DIE = """
import os, signal
from daycap import Wallet
Wallet.from_env().reserve("agent-7", 70_000)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, empty_ledger: Path, tmp_path: Path) -> Iterator[str]:
    """A migrated ledger on each database that there is, or on PostgreSQL behind a pooler."""
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(empty_ledger, tmp_path / 'ledger.sqlite3')}"
        return
    server: LocalPostgreSQL = request.getfixturevalue("postgresql")
    url = server.new_database()
    ledger = Ledger(url)
    migrate(ledger)
    ledger.close()
    if request.param == "postgresql":
        yield url
        return
    with closing(PgBouncer(made(tmp_path / "pooler"), url)) as pooler:
        yield pooler.url


@pytest.fixture
def own_settings(ledger_url: str) -> dict[str, str]:
    return {
        "DAYCAP_LEDGER_URL": ledger_url,
        "DAYCAP_LEASE_TTL_SECONDS": "3",
        "DAYCAP_GRACE_SECONDS": "1",
        "DAYCAP_RESEND_SECONDS": "1",
    }


@pytest.mark.parametrize("ledger_url", ["sqlite", "postgresql", "pgbouncer"], indirect=True)
def test_two_workers_charge_each_event_once_and_never_past_the_cap(spine: Spine, second_worker: LocalWorker) -> None:
    """P1, P2, P3: four runner processes spend one small cap to its end, each third call within what it held."""
    agent = spine.add("agent-7", 300_000)

    runners = [
        subprocess.Popen(
            [sys.executable, "-c", _SPEND_ALL],
            cwd=ROOT,
            env={**os.environ, **spine.environment},
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    finalized = sum(int(runner.communicate(timeout=90)[0]) for runner in runners)

    count, spent = spine.settled_once(agent)
    assert count == finalized
    assert spent <= 300_000
    # Both had their share of it, and nobody an event twice
    assert all(re.search("settled [1-9]", worker.logs()) for worker in (spine.worker.container, second_worker))
    assert spine.ask("daycap.audit")["differences"] == []


def test_two_workers_that_reach_a_cap_at_the_same_time_do_not_pass_it(spine: Spine, second_worker: LocalWorker) -> None:
    """P1: events that come one after the other are in two transactions at once."""
    agents = [f"agent-{number}" for number in range(60)]
    spine.ask("daycap.add_agents", caps=dict.fromkeys(agents, 2_500), changed_by="test")

    for agent in agents:
        for number in range(1, 6):
            one = event(agent, spine.today, number=number, lease=agent, held=1_000, actual=1_000)
            # With an answer that is waited for, so that each is settled alone.
            spine.app.send_task(FINALIZE_TASK, kwargs={"events": [one]}, queue=FINALIZE_QUEUE, ignore_result=False)

    spine.wait_for(lambda: spine.rows("SELECT count(*) AS n FROM settlements")[0]["n"] == 300, timeout_s=60)
    days = spine.rows("SELECT DISTINCT spent_micros, uncovered_micros, settled_count FROM daily_agent_spending")
    assert days == [{"spent_micros": 2_500, "uncovered_micros": 2_500, "settled_count": 5}]
    assert all(re.search("settled 1", worker.logs()) for worker in (spine.worker.container, second_worker))


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_killed_postgresql_costs_no_event(spine: Spine, postgresql: LocalPostgreSQL) -> None:
    agent, wallet, worker = spine.add("agent-7", 50 * M), spine.wallet(), spine.worker.container

    with spending(wallet, agent, pause_s=0.05) as load:
        spine.wait_for(lambda: spine.day_row(agent)["settled_count"] > 0)
        postgresql.kill()
        spine.wait_for(lambda: "not settled, retrying" in worker.logs())
        answer = spine.app.send_task("daycap.check_ledger", queue=CONTROL_QUEUE).get(20)
        postgresql.start()
        assert answer["error"] == "LedgerUnavailable"

    assert wallet.flush(timeout=30) == ()
    assert spine.settled_once(agent) == (load.calls, load.calls * ACTUAL)
    assert worker.status == "running"


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_two_beats_give_up_what_a_dead_runner_left_once(spine: Spine, tmp_path: Path) -> None:
    agent = spine.add("agent-7", 5 * M)
    killed = (
        "import os; from daycap import Wallet; Wallet.from_env().reserve('agent-7', 70_000); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed], cwd=ROOT, env={**os.environ, **spine.environment}, check=False)
    wallet = spine.wallet(slice_seconds=0)
    hold = wallet.reserve(agent, HELD)
    beats = [LocalBeat(made(tmp_path / f"beat-{n}"), spine.environment) for n in (1, 2)]
    key = counter_key(agent, spine.today)
    before = spine.redis.hgetall(key)

    spine.wait_for(lambda: spine.redis.hget(key, "leased") == str(HELD), timeout_s=40)
    for beat in beats:
        assert beat.status == "running"
        beat.teardown()

    after = spine.redis.hgetall(key)
    assert after["given_up"] == "70000"
    assert {name: after[name] for name in ("run_id", "seq", "cap", "spent")} == {
        name: before[name] for name in ("run_id", "seq", "cap", "spent")
    }
    hold.finalize(ACTUAL)
    assert wallet.flush(timeout=20) == ()
    assert spine.ask("daycap.audit")["differences"] == []
