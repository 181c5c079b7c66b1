"""Runs: a cap for one task, whichever agents make its calls; here in one process, on both faces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from daycap import CapExceeded, InvalidAmount, InvalidInput, RunEnded
from daycap.protocol.runs import is_run, new_run, read_run
from tests.in_loop import FACES

CAP = 100_000


@pytest.fixture(params=FACES.values(), ids=[*FACES])
def wallet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    wallet = request.param.from_env(environ={"DAYCAP_LEDGER_URL": f"sqlite:///{tmp_path}/spend.db"})
    wallet.add_agent("a", 1_000_000)
    wallet.add_agent("a.search", 1_000_000)
    yield wallet
    wallet.close()


def rows(tmp_path: Path, statement: str) -> list[Any]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/spend.db", poolclass=sa.NullPool)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


def reserve(run: Any, micros: int, **how: Any) -> Any:
    """A hold of the run; the face of the loop is driven by its wallet."""
    agent = how.pop("agent", run.agent)
    labels = {**how.pop("labels", {}), **run.labels}
    return run._wallet.reserve(agent, micros, labels=labels, **how)


def begin(wallet: Any, cap: int = CAP, **how: Any) -> Any:
    run = getattr(wallet, "_wallet", wallet).run("a", cap, **how)
    run._wallet = wallet if hasattr(wallet, "_wallet") else run._wallet
    return run


def test_agents_share_the_cap_of_a_run(wallet: Any, tmp_path: Path) -> None:
    run = begin(wallet)
    reserve(run, 60_000).finalize(50_000)
    reserve(run, 40_000, agent="a.search").finalize(40_000)

    with pytest.raises(CapExceeded) as refused:
        reserve(run, 20_000, agent="a.search")

    (full,) = refused.value.full
    assert (full.budget, full.period, full.cap_micros) == (run.labels["run"], "once", CAP)
    assert full.spent_micros + full.held_micros + full.waiting_micros == 90_000
    assert full.remaining_micros == 10_000
    reserve(run, 10_000).finalize(9_000)
    assert wallet.flush() == ()
    assert rows(tmp_path, "SELECT spent_micros, uncovered_micros, settled_count, cap_micros FROM budget_periods") == [
        (99_000, 0, 3, CAP)
    ]
    with pytest.raises(CapExceeded) as refused:
        reserve(run, 2_000)
    assert (refused.value.full[0].spent_micros, refused.value.full[0].waiting_micros) == (99_000, 0)


def test_refusal_names_run_and_cap(wallet: Any) -> None:
    wallet.set_cap("a", 50_000)
    run = begin(wallet)
    reserve(run, 50_000)
    with pytest.raises(CapExceeded) as refused:
        reserve(run, 60_000)
    assert [full.budget for full in refused.value.full] == [None, run.labels["run"]]


def test_run_that_never_calls_leaves_nothing(wallet: Any, tmp_path: Path) -> None:
    with begin(wallet):
        pass
    wallet.flush()
    assert rows(tmp_path, "SELECT * FROM budgets") == []


def test_inner_run_counts_in_the_outer(wallet: Any) -> None:
    outer = begin(wallet)
    inner = outer.run(90_000)
    reserve(inner, 60_000).finalize(60_000)
    with pytest.raises(CapExceeded) as refused:
        reserve(inner, 50_000)
    assert [full.budget for full in refused.value.full] == [inner.labels["run"], outer.labels["run"]]
    inner.end()
    reserve(outer, 40_000).finalize(40_000)
    assert wallet.flush() == ()


def test_inner_run_ends_with_the_outer(wallet: Any) -> None:
    with begin(wallet) as outer:
        inner = outer.run(90_000)
        innermost = inner.run(80_000)
        reserve(innermost, 60_000).finalize(60_000)
    for run in (outer, inner, innermost):
        with pytest.raises(RunEnded):
            reserve(run, 1)
        with pytest.raises(RunEnded):
            run.reserve(1)
        with pytest.raises(RunEnded):
            run.run(1)
        run.end()


def test_runs_form_at_most_15_levels(wallet: Any) -> None:
    run = begin(wallet)
    for _ in range(14):
        run = run.run(CAP)
    reserve(run, CAP).release()
    with pytest.raises(InvalidInput, match="at most 15 levels"):
        run.run(CAP)


def test_ended_run_makes_no_more_holds(wallet: Any) -> None:
    with begin(wallet) as run:
        hold = reserve(run, 10_000)
    with pytest.raises(RunEnded):
        reserve(run, 1)
    hold.finalize(20_000)
    assert wallet.flush() == ()
    run.end()


def test_overage_takes_what_the_run_has_left(wallet: Any) -> None:
    run = begin(wallet)
    reserve(run, 60_000).finalize(90_000)
    with pytest.raises(CapExceeded):
        reserve(run, 10_001)
    reserve(run, 10_000).release()


def test_budget_of_a_label_binds_in_a_run(wallet: Any) -> None:
    wallet.add_budget("search", 5_000, agent="a", labels={"tool": "search"})
    run = begin(wallet)
    with pytest.raises(CapExceeded) as refused:
        reserve(run, 6_000, labels={"tool": "search"})
    assert [full.budget for full in refused.value.full] == ["search/1"]
    reserve(run, CAP).release()


def test_forked_child_is_not_in_its_parents_run(wallet: Any) -> None:
    run = begin(wallet)
    if (pid := os.fork()) == 0:
        try:
            reserve(run, 1)
        except RunEnded:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_bad_runs_are_refused(wallet: Any) -> None:
    with pytest.raises(InvalidAmount):
        begin(wallet, -1)
    with pytest.raises(InvalidInput, match="at most"):
        begin(wallet, hours=0)
    for hours in ("3", None, float("nan"), 1e-9, 8_785):
        with pytest.raises(InvalidInput, match="at most"):
            begin(wallet, hours=hours)
    with pytest.raises(InvalidInput, match="labels are a mapping"):
        begin(wallet).reserve(1, labels="text")
    with pytest.raises(InvalidInput, match="DAYCAP_REDIS_URL"):
        begin(wallet, shared=True)
    with pytest.raises(InvalidInput, match="shared=True"):
        _ = begin(wallet).id
    with pytest.raises(InvalidInput, match="not the id of a run"):
        wallet.join_run("run.x")
    now_ms = wallet._book.clock.now_ms()
    first, second, far = (new_run(1, now_ms + end_ms, bytes([end_ms % 7] * 10)).id for end_ms in (6, 8, 10**12))
    for wrong, why in (
        (f"{first},{second},{first}", "part of itself"),
        (far, "at most 8784 hours"),
        (7, "not the id"),
        (b"run", "not the id"),
        ("", "DAYCAP_RUN"),
        (first, "DAYCAP_REDIS_URL"),
    ):
        with pytest.raises(InvalidInput, match=why):
            wallet.join_run(wrong)
    with pytest.raises(RunEnded):
        wallet.reserve("a", 1, labels={"run": new_run(1, 2, bytes(10)).id})


def test_id_says_cap_and_end() -> None:
    run = new_run(2_000_000, 1_795_900_000_000, bytes(range(10)))
    assert run.id == "run.aaaqeayeaudaocaj.2000000.1795900000000/1"
    assert read_run(run.id) == run
    assert is_run(run.id)
    for wrong in ("run.aaaqeayeaudaocaj.2000000.1795900000000", "run.a.1.2/1", run.id + "1", f"{run.id}\n", 7, None):
        with pytest.raises(InvalidInput):
            read_run(wrong)
    for beyond in ("9999999999999999.1795900000000", "1.253402300800000", "1.0"):
        with pytest.raises(InvalidInput):
            read_run(f"run.aaaqeayeaudaocaj.{beyond}/1")
        assert not is_run(f"run.aaaqeayeaudaocaj.{beyond}/1")
