"""What is kept for each agent and each event."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import redis

from daycap.clock import wall_ms
from daycap.ledger.retention import open_days
from daycap.ledger.settle import settle
from tests.benchmarks.bench_wallet import quiet_wallet
from tests.benchmarks.figures import Figure
from tests.benchmarks.place import Place, batches, place

_AGENTS, _EVENTS = 10_000, 100_000


def figures() -> Iterator[Figure]:
    """In the runner, in Redis, in the ledger."""
    with place(_AGENTS) as here:
        here.open_days()
        with redis.Redis.from_url(here.settings.redis_url) as client:
            runner, server = _leased(here, client)
        yield Figure("memory of a runner for an active agent", runner, "bytes", at_most=1536)
        yield Figure("Redis for an agent's day with a lease", server, "bytes", at_most=700)
        yield Figure("ledger for an event", _ledger(here), "bytes", at_most=200)


def _leased(here: Place, client: redis.Redis) -> tuple[float, float]:
    """Bytes of the runner and of the server for each agent; the server's are of the day and of its one lease."""
    with quiet_wallet(here.settings) as wallet:
        wallet.reserve(here.agents[0], 10).release()
        gc.collect()
        tracemalloc.start()
        for agent in here.agents[1:]:
            wallet.reserve(agent, 10).release()
        gc.collect()
        runner = tracemalloc.get_traced_memory()[0] / (len(here.agents) - 1)
        tracemalloc.stop()
        with_days = int(client.info("memory")["used_memory"])
        client.execute_command("FLUSHDB", "SYNC")
        server = (with_days - int(client.info("memory")["used_memory"])) / len(here.agents)
    return runner, server


def _ledger(here: Place) -> float:
    """Bytes of the file for each event of 100 agents, in full messages."""
    agents, days = here.agents[:100], open_days(here.settings, wall_ms())
    before = here.ledger_bytes()
    for batch in batches(agents, _EVENTS, 500):
        settle(here.ledger, [event.to_wire() for event in batch], days)
    return (here.ledger_bytes() - before) / _EVENTS
