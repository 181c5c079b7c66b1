"""The runner's side: what a call is made to wait for daycap."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from daycap import Settings, Wallet
from daycap.clock import day_of, wall_ms
from daycap.publisher import Publisher
from tests.benchmarks.figures import Figure, interleaved
from tests.benchmarks.place import Place, place
from tests.percentile import percentile
from worker.local_server import free_port
from worker.opening import open_days

_CALLS = 20_000
_SECONDS = 8.0

_CHECK_AND_RESERVE = """
local spent = tonumber(redis.call('GET', KEYS[1]) or '0')
if spent + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return -1 end
return redis.call('INCRBY', KEYS[1], ARGV[1])
"""


def figures() -> Iterator[Figure]:
    """The hot path, the cold one, and both under a whole deployment."""
    with place() as here:
        _open(here)
        yield from _warm(here)
        yield _cold(here)
        with here.worker() as worker:
            worker.ready()
            yield _sustained(here)
        yield _broker_down(here)


def _warm(here: Place) -> Iterator[Figure]:
    """Reserve and finalize, without what other threads do meanwhile: the publisher is kept from sending."""
    agent = here.agents[0]
    with _quiet_wallet(here.settings) as wallet, redis.Redis.from_url(here.settings.redis_url) as client:
        wallet.reserve(agent, _CALLS * 1000).release()
        script = client.register_script(_CHECK_AND_RESERVE)
        lock, left = threading.Lock(), {agent: 10**12}

        def ours() -> float:
            return _time(_CALLS, lambda: wallet.reserve(agent, 10).finalize(10))

        def bare() -> float:
            def cycle() -> None:
                with lock:
                    if left[agent] < 10:
                        raise ValueError
                    left[agent] -= 10
                with lock:
                    left[agent] += 0

            return _time(_CALLS, cycle)

        def evalsha() -> float:
            return _time(500, lambda: script(keys=["benchmark"], args=[10, 10**15]))

        mine, floor, round_trip = interleaved(5, ours, bare, evalsha)
        yield Figure(
            "reserve + finalize, lease warm",
            mine,
            "us",
            "us: a lock and a dict",
            floor,
            "5x",
            mine <= 5 * floor,
        )
        singles = _each(_CALLS, lambda: wallet.reserve(agent, 10).finalize(10))
        p99 = percentile(singles, 0.99)
        yield Figure("the same, p99", p99, "us", goal="10 us", met=p99 <= 10)
        yield Figure(
            "a check in Redis: one EVALSHA",
            round_trip,
            "us",
            "us: reserve + finalize, lease warm",
            mine,
            "50x",
            round_trip >= 50 * mine,
        )


def _cold(here: Place) -> Figure:
    """The first reserve of an agent: a grant."""
    settings = dataclasses.replace(here.settings, slice_seconds=0)
    with _quiet_wallet(settings) as wallet, redis.Redis.from_url(here.settings.redis_url) as client:
        for agent in here.agents:
            wallet.reserve(agent, 1).release()
        number = iter(range(10**9))

        def grant() -> float:
            return _time(500, lambda: wallet.reserve(here.agents[next(number) % 100], 5_000 + next(number)))

        granted, ping = interleaved(5, grant, lambda: _time(500, client.ping))
    return Figure("grant", granted, "us", "us: PING", ping, "2x", granted <= 2 * ping)


def _sustained(here: Place) -> Figure:
    """One runner process with all it does: 100 agents, the publisher, renewals, what is settled heard of."""
    wallet = Wallet.from_settings(here.settings)
    for agent in here.agents:
        wallet.reserve(agent, 10).finalize(10)
    cycles, end = 0, time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        for agent in here.agents:
            wallet.reserve(agent, 10).finalize(10)
        cycles += len(here.agents)
    rate = cycles / _SECONDS
    behind = wallet.stats().unsettled
    wallet.flush(120)
    wallet.close()
    return Figure(
        "cycles of one runner, everything included",
        rate,
        "cycles/s",
        f"({behind:,} events unsettled at the end)",
        goal="20,000/s",
        met=rate >= 20_000,
    )


def _broker_down(here: Place) -> Figure:
    """What finalize takes while nobody takes events."""
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    wallet = Wallet.from_settings(dataclasses.replace(here.settings, broker_url=nowhere))
    holds = [wallet.reserve(here.agents[n % 100], 10) for n in range(5000)]
    took = []
    for hold in holds:
        began = time.perf_counter_ns()
        hold.finalize(10)
        took.append((time.perf_counter_ns() - began) / 1000)
        time.sleep(0.0002)  # As calls come, so that the publisher fails beside them.
    wallet.close(timeout=0)
    p99 = percentile(took, 0.99)
    return Figure("finalize while the broker is down, p99", p99, "us", goal="50 us", met=p99 <= 50)


def _open(here: Place) -> None:
    """Open today for every agent, as the rollover does."""
    open_days(here.ledger, here.publisher(), [(agent, day_of(wall_ms())) for agent in here.agents])


@contextmanager
def _quiet_wallet(settings: Settings) -> Iterator[Wallet]:
    """A wallet whose events are kept, and nobody renews: only what the caller's own thread does is timed."""
    wallet = Wallet.from_settings(settings)
    publisher: Publisher = wallet._publisher
    publisher._rouse = lambda: None  # type: ignore[method-assign]
    wallet._keeper.start = lambda: None  # type: ignore[method-assign]
    try:
        yield wallet
    finally:
        wallet._book.close()
        publisher._events.clear()


def _time(calls: int, call: Callable[[], object]) -> float:
    """Microseconds a call."""
    gc.collect()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6


def _each(calls: int, call: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        call()
        took.append((time.perf_counter_ns() - began) / 1000)
    return took
