"""An audit beside the work: it holds nothing up, and finds nothing wrong in what moves."""

from __future__ import annotations

from daycap.protocol.wire import CONTROL_QUEUE
from tests.faults.load import spend, spending
from tests.spine import Spine

MANY = 300_000
"""Settlements that take an audit the better part of a second."""


def test_events_are_settled_during_an_audit(spine: Spine) -> None:
    agent, wallet = spine.add("agent-7", 5_000_000), spine.wallet()
    spine.add("agent-8", 5_000_000)
    spine.execute(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY}) INSERT INTO settlements"
        " (reservation_id, agent_account_id, spending_date, held_micros, actual_micros, charged_micros, settled_at)"
        f" SELECT 'lease-' || i, 'agent-8', '{spine.today}', 1, 1, 0, 0 FROM n"
    )

    asked = spine.app.send_task("daycap.audit", queue=CONTROL_QUEUE)
    spend(wallet, agent, 1)
    spine.wait_for(lambda: spine.day_row(agent)["settled_count"])

    assert not asked.ready()
    assert {found["agent"] for found in asked.get(30)["result"]["differences"]} == {"agent-8"}


def test_a_day_that_moves_is_no_difference(spine: Spine) -> None:
    agent, wallet = spine.add("agent-7", 5_000_000), spine.wallet()

    with spending(wallet, agent, 0.001):
        for _ in range(20):
            assert spine.ask("daycap.audit")["differences"] == []

    assert wallet.flush(20) == ()
