"""Housekeeping on a real worker: in slices, between which events are settled."""

from __future__ import annotations

from typing import Any

from daycap.protocol.wire import CONTROL_QUEUE
from tests.events import event
from tests.spine import Spine


def send(spine: Spine, task: str, **kwargs: Any) -> Any:
    return spine.app.send_task(task, kwargs=kwargs, queue=CONTROL_QUEUE, ignore_result=False)


def opened(spine: Spine) -> int:
    (row,) = spine.rows("SELECT count(*) AS n FROM daily_agent_spending WHERE agent_account_id LIKE 'many-%'")
    return row["n"]


def test_events_are_settled_in_the_middle_of_a_rollover(spine: Spine) -> None:
    agent, many = spine.add("agent-7", 5_000_000), 20_000
    spine.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
        "INSERT INTO agent_accounts (agent_account_id, daily_cap_micros, status, created_at, updated_at) "
        "SELECT printf('many-%05d', i), 100, 'active', 1, 1 FROM n"
    )

    send(spine, "daycap.rollover")
    spine.wait_for(lambda: opened(spine) > 0)
    spine.deliver(event(agent, spine.today))

    assert opened(spine) < many, "an event waited until every agent was through"
    spine.wait_for(lambda: opened(spine) >= many)


def test_what_beat_sends_again_too_early_is_dropped(spine: Spine) -> None:
    """A worker that comes back after a day finds more than a thousand of them."""
    spine.add("agent-7", 5_000_000)
    assert send(spine, "daycap.reconcile").get(20)["days"] == 1

    assert send(spine, "daycap.reconcile", every_s=300).get(20) == {}
    assert send(spine, "daycap.reconcile", every_s=0.001).get(20)["days"] == 1
    assert send(spine, "daycap.reconcile", place=[spine.today, ""], every_s=300).get(20)["days"] == 1


def test_pruning_follows_a_rollover(spine: Spine) -> None:
    agent = spine.add("agent-7", 5_000_000)
    spine.deliver(event(agent, spine.today))
    for table in ("settlements", "lease_totals", "daily_agent_spending"):
        spine.execute(f"UPDATE {table} SET spending_date = '2001-01-01'")

    send(spine, "daycap.rollover").get(20)

    spine.wait_for(lambda: not spine.rows("SELECT 1 FROM daily_agent_spending WHERE spending_date = '2001-01-01'"))
    assert spine.rows("SELECT 1 FROM settlements") == []


def test_beat_ends_a_raise(spine: Spine) -> None:
    agent = spine.add("raised", 1_000_000)
    made = spine.ask("daycap.raise_cap", agent=agent, by_micros=500_000, changed_by="test", for_ms=1)
    assert made["cap_micros"] == 1_500_000
    assert spine.wait_for(lambda: send(spine, "daycap.adjust_caps").get(20).get("ended"))
    (reading,) = spine.counter.read([(agent, spine.today)])
    assert reading is not None
    assert reading.cap_micros == 1_000_000
    assert spine.ask("daycap.find_raises", agent=agent, ended=True)[0]["ended_by"] == "daycap"
    assert spine.ask("daycap.reset_cap", agent=agent, changed_by="test")["amount_micros"] == 0
