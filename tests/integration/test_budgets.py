"""Budgets through the whole spine: several runners, one worker, one Redis."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from daycap import BudgetUnavailable, CapExceeded, RunEnded
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import all_of
from daycap.periods import PeriodRule
from daycap.protocol.counter import LeaseTerms
from tests.in_loop import FACES
from tests.spine import Spine
from worker.housekeeping import reconcile

pytestmark = pytest.mark.parametrize("face", FACES.values(), ids=FACES)

MONTH = PeriodRule("month", "Europe/Zurich")


def budget(spine: Spine, name: str, cap_micros: int, **facts: Any) -> None:
    facts = {"period": {"period": "day"}, **facts}
    spine.ask("daycap.add_budget", name=name, facts={"cap_micros": cap_micros, **facts}, changed_by="test")


def group(spine: Spine, name: str, *agents: str) -> None:
    for agent in agents:
        spine.add(agent, 10_000_000)
    spine.ask("daycap.add_group", group=name, agents=list(agents), member_groups=[], changed_by="test")


@pytest.fixture(autouse=True)
def of_this_face(spine: Spine, face: Any) -> None:
    spine.face = face.from_settings


def period_row(spine: Spine, budget: str) -> dict[str, Any]:
    (row,) = spine.rows("SELECT * FROM budget_periods WHERE budget_id = ?", budget)
    return row


def reserves(wallet: Any, agent: str, micros: int, **how: Any) -> Any:
    """A hold; None where a cap refused it. On a busy machine an answer may come too late: it is asked again."""
    while True:
        try:
            return wallet.reserve(agent, micros, **how)
        except CapExceeded:
            return None
        except BudgetUnavailable:
            time.sleep(0.05)


def test_agents_of_a_group_share_a_month(spine: Spine) -> None:
    group(spine, "team", "a", "b")
    budget(spine, "team-month", 1_000_000, group="team", period=MONTH.to_json())
    first, second = spine.wallet(), spine.wallet()
    hold = first.reserve("a", 600_000)
    with pytest.raises(CapExceeded) as refused:
        second.reserve("b", 500_000)
    (full,) = refused.value.full
    assert (full.budget, full.cap_micros, full.leased_micros) == ("team-month/1", 1_000_000, 600_000)

    hold.finalize(100_000)

    again = spine.wait_for(lambda: reserves(second, "b", 800_000))
    again.finalize(800_000)
    assert first.flush() == second.flush() == ()
    row = period_row(spine, "team-month/1")
    period = MONTH.at(spine.counter.now_ms())
    assert [row["period_id"], row["start_ms"], row["end_ms"]] == [*period]
    assert (row["spent_micros"], row["drawn_micros"], row["settled_count"]) == (900_000, 900_000, 2)
    (reading,) = spine.counter.read([("team-month/1", period.id)])
    assert reading is not None
    assert (reading.spent_micros, reading.cap_micros, reading.seq) == (900_000, 1_000_000, row["seq"])
    assert spine.settled_once("a") == (1, 100_000)
    assert spine.settled_once("b") == (1, 800_000)


def test_labelled_calls_have_a_cap_of_their_own(spine: Spine) -> None:
    spine.add("a", 10_000_000)
    budget(spine, "search", 100_000, agent="a", labels={"tool": ["search*"]})
    wallet = spine.wallet()

    wallet.reserve("a", 90_000, labels={"tool": "search-web"}).finalize(90_000)
    assert reserves(wallet, "a", 20_000, labels={"tool": "search"}) is None
    wallet.reserve("a", 20_000, labels={"tool": "mail"}).finalize(20_000)
    wallet.reserve("a", 20_000).finalize(20_000)

    assert wallet.flush() == ()
    assert period_row(spine, "search/1")["spent_micros"] == 90_000
    assert spine.settled_once("a") == (3, 130_000)


def test_new_budget_binds_running_runners(spine: Spine) -> None:
    spine.add("a", 10_000_000)
    wallet = spine.wallet()
    wallet.reserve("a", 500_000).release()
    budget(spine, "brake", 50_000, agent="a", period={"period": "hour"})

    spine.wait_for(lambda: (hold := reserves(wallet, "a", 60_000)) is None or hold.release())

    wallet.reserve("a", 40_000).finalize(40_000)
    spine.ask("daycap.remove_budget", name="brake", changed_by="test")
    spine.wait_for(lambda: reserves(wallet, "a", 60_000)).finalize(60_000)
    assert wallet.flush() == ()
    assert period_row(spine, "brake/1")["spent_micros"] == 40_000


def test_many_runners_use_a_full_parent_up(spine: Spine) -> None:
    """20 runners, 20 agents, one month: no false refusal that lasts, and no micro too much."""
    agents = [f"agent-{number}" for number in range(20)]
    group(spine, "all", *agents)
    budget(spine, "all-month", 1_000_000, group="all", period=MONTH.to_json())
    wallets = [spine.wallet() for _ in agents]

    def work(number: int) -> int:
        wallet, spent = wallets[number], 0
        while True:
            hold = reserves(wallet, agents[number], 2_000)
            if hold is None:
                return spent
            hold.finalize(1_000)
            spent += 1_000

    with ThreadPoolExecutor(20) as pool:
        spent = sum(pool.map(work, range(20)))
    for wallet in wallets:
        assert wallet.flush(20) == ()
    while spent < 999_000:  # What is idle in the others comes back.
        hold = spine.wait_for(lambda: reserves(wallets[0], agents[0], 1_000))
        hold.finalize(1_000)
        spent += 1_000
    assert wallets[0].flush() == ()
    row = period_row(spine, "all-month/1")
    assert (row["spent_micros"], row["uncovered_micros"]) == (spent, 0)


def test_run_is_shared_by_processes(spine: Spine) -> None:
    group(spine, "team", "a", "b")
    first, second = spine.wallet(), spine.wallet()
    run = of(first).run("a", 100_000, shared=True)
    joined = of(second).join_run(run.id, agent="b")
    hold = first.reserve("a", 60_000, labels=run.labels)
    with pytest.raises(CapExceeded) as refused:
        second.reserve("b", 50_000, labels=joined.labels)
    (full,) = refused.value.full
    assert (full.budget, full.period, full.leased_micros) == (run.id, "once", 60_000)

    hold.finalize(20_000)
    again = spine.wait_for(lambda: reserves(second, "b", 80_000, labels=joined.labels))
    again.finalize(80_000)

    assert first.flush() == second.flush() == ()
    row = period_row(spine, run.id)
    assert (row["spent_micros"], row["settled_count"], row["cap_micros"]) == (100_000, 2, 100_000)
    assert row["end_ms"] == int(run.id.split(".")[3].removesuffix("/1"))
    assert reserves(first, "a", 1, labels=run.labels) is None


def test_process_joins_a_run_several_times(spine: Spine) -> None:
    """The first to end it ends it for nobody else, and what is left of it leaves the process."""
    spine.add("a", 10_000_000)
    wallet = spine.wallet()
    run = of(wallet).run("a", 100_000, shared=True)
    first, second = (of(wallet).join_run(run.id, agent="a") for _ in range(2))
    with first:
        wallet.reserve("a", 60_000, labels=first.labels).finalize(20_000)
    first.end()
    with pytest.raises(RunEnded):
        first.reserve(1)
    hold = wallet.reserve("a", 80_000, labels=second.labels)
    second.end()
    run.end()
    with pytest.raises(RunEnded):
        wallet.reserve("a", 1, labels=run.labels)
    again = of(wallet).join_run(run.id)
    with pytest.raises(CapExceeded):
        wallet.reserve("a", 1, labels=again.labels)
    hold.finalize(70_000)
    wallet.reserve("a", 10_000, labels=again.labels).finalize(10_000)
    again.end()
    assert wallet.flush() == ()
    book = of(wallet)._book
    spine.wait_for(lambda: of(wallet)._renewer.renew() and len(book.leases.all()) == 1)
    row = period_row(spine, run.id)
    assert (row["spent_micros"], row["settled_count"]) == (100_000, 3)


def test_run_of_one_process_asks_no_counter(spine: Spine) -> None:
    """Neither to create it nor when its events settle; and reconcile does not miss it there."""
    spine.add("a", 10_000_000)
    wallet = spine.wallet()
    run = of(wallet).run("a", 100_000)
    wallet.reserve("a", 60_000, labels=run.labels).finalize(60_000)
    assert wallet.flush() == ()
    assert period_row(spine, run.labels["run"])["spent_micros"] == 60_000

    ledger = Ledger(spine.settings.ledger_url)
    publisher = CounterPublisher(spine.counter, LeaseTerms(30_000, 1_000, 10_000))
    counts = all_of(lambda place: reconcile(ledger, publisher, place))
    ledger.close()
    assert counts["drift"] == 0
    assert spine.redis.keys("daycap:{run.*") == []


def of(wallet: Any) -> Any:
    """The wallet itself, whatever drives its event loop."""
    return getattr(wallet, "_wallet", wallet)
