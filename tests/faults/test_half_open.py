"""The worker's connections to its broker go dead without a word."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from pytest_celery import RedisTestBroker

from tests.faults.ledger import LockedLedger
from tests.faults.load import ACTUAL, spend, spend_one_that_is_taken
from tests.faults.proxy import Proxy
from tests.spine import Spine

M = 1_000_000


@pytest.fixture
def proxy(celery_broker: RedisTestBroker) -> Iterator[Proxy]:
    proxy = Proxy(celery_broker.container.port)
    yield proxy
    proxy.close()


@pytest.fixture
def own_settings(proxy: Proxy) -> dict[str, str]:
    return {
        "DAYCAP_BROKER_URL": f"redis://127.0.0.1:{proxy.port}/0",
        "DAYCAP_LEASE_TTL_SECONDS": "3",
        "DAYCAP_RESEND_SECONDS": "1",  # What the broker hands to a dead connection is lost.
    }


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_whose_broker_goes_silent_finds_it_again(
    spine: Spine, proxy: Proxy, locked_ledger: LockedLedger, busy: bool
) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet(broker_url=spine.broker.container.url)
    with redis.Redis.from_url(spine.broker.container.url) as broker, locked_ledger:
        spine.wait_for(lambda: broker.hlen("unacked") == 0)
        if busy:
            spend_one_that_is_taken(wallet, agent, broker)
        proxy.silence()
    spend(wallet, agent, 20)
    proxy.heal()

    assert wallet.flush(timeout=40) == ()
    assert spine.settled_once(agent) == (20 + busy, (20 + busy) * ACTUAL)
