"""The worker dies, and what it had not settled is settled by the next one, once."""

from __future__ import annotations

import pytest
import redis

from tests.faults.ledger import LockedLedger
from tests.spine import Spine

M = 1_000_000


@pytest.fixture
def own_settings() -> dict[str, str]:
    return {"DAYCAP_LEASE_TTL_SECONDS": "3", "DAYCAP_GRACE_SECONDS": "1"}


def test_worker_killed_and_started_again_settles_what_waited(spine: Spine) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    spine.worker.kill()
    for _ in range(50):
        wallet.reserve(agent, 1_000).finalize(700)

    spine.worker.restart()

    assert wallet.flush(timeout=30) == ()
    assert spine.day_row(agent)["spent_micros"] == 50 * 700


def test_what_a_killed_worker_had_taken_holds_up_nothing_for_longer_than_its_leases(
    spine: Spine, locked_ledger: LockedLedger
) -> None:
    """P5: while it is unacknowledged, nobody's money is given up and no fence falls."""
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    with redis.Redis.from_url(spine.settings.broker_url) as broker:
        with locked_ledger:
            wallet.reserve(agent, 1_000).finalize(700)
            spine.wait_for(lambda: broker.hlen("unacked"))
            spine.worker.kill()

        spine.worker.restart()

        spine.wait_for(lambda: not broker.hlen("unacked"), timeout_s=40)
    assert wallet.flush(timeout=30) == ()
    assert spine.day_row(agent)["spent_micros"] == 700
