"""The worker dies, and what it had not settled is settled by the next one, once."""

from __future__ import annotations

from tests.spine import Spine

M = 1_000_000


def test_worker_killed_and_started_again_settles_what_waited(spine: Spine) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    spine.worker.kill()
    for _ in range(50):
        wallet.reserve(agent, 1_000).finalize(700)

    spine.worker.restart()

    assert wallet.flush(timeout=30) == ()
    assert spine.day_row(agent)["spent_micros"] == 50 * 700
