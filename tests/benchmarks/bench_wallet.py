"""The runner's side: what a call is made to wait for daycap."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import redis

from daycap import Hold, Settings, Wallet
from demo.local_server import free_port
from tests.benchmarks.figures import Figure, interleaved, micros_a_call, micros_of_each
from tests.benchmarks.place import Place, place
from tests.percentile import percentile

_CALLS = 20_000
_AT_ONCE = 1_000  # How many calls a `measure` of `settled_between` makes.
_SECONDS = 8.0

CHECK_AND_RESERVE = """
local spent = tonumber(redis.call('GET', KEYS[1]) or '0')
if spent + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return -1 end
return redis.call('INCRBY', KEYS[1], ARGV[1])
"""


def figures() -> Iterator[Figure]:
    """The hot path, the cold one, and both under a whole deployment."""
    with place() as here:
        here.open_days()
        yield from _warm(here)
        yield _cold(here)
        with here.worker() as worker:
            worker.ready()
            yield _sustained(here)
        yield _broker_down(here)


def _warm(here: Place) -> Iterator[Figure]:
    """Reserve and finalize, without what other threads do meanwhile: the publisher is kept from sending."""
    agent = here.agents[0]
    with quiet_wallet(here.settings) as wallet, redis.Redis.from_url(here.settings.redis_url) as client:
        wallet.reserve(agent, _CALLS * 1000).release()
        script = client.register_script(CHECK_AND_RESERVE)
        cycle = cycles(wallet.reserve, here.agents[:1])
        mine, floor, round_trip = interleaved(
            7,
            lambda: micros_a_cycle(wallet, cycle),
            lambda: micros_a_call(_CALLS, bare_cycles(here.agents[:1])),
            lambda: micros_a_call(500, lambda: script(keys=["benchmark"], args=[10, 10**15])),
        )
        yield Figure("reserve + finalize, lease warm", mine, "us", "us: a lock and a dict", floor, at_most=5)
        p99 = percentile(settled_between(wallet, lambda: micros_of_each(_AT_ONCE, cycle)), 0.99)
        yield Figure("reserve + finalize, p99", p99, "us", at_most=10)
        yield Figure("a check in Redis by EVALSHA", round_trip, "us", "us: reserve + finalize", mine, at_least=50)


def _cold(here: Place) -> Figure:
    """The first reserve of an agent: a grant."""
    settings = dataclasses.replace(here.settings, slice_seconds=0)
    with quiet_wallet(settings) as wallet, redis.Redis.from_url(here.settings.redis_url) as client:
        for agent in here.agents:
            wallet.reserve(agent, 1).release()
        # Each asks for more than the last time, so that what came free before does not do.
        calls = zip(itertools.cycle(here.agents), itertools.count(5_000), strict=False)
        granted, ping = interleaved(
            5,
            lambda: micros_a_call(500, lambda: wallet.reserve(*next(calls))),
            lambda: micros_a_call(500, client.ping),
        )
    return Figure("grant", granted, "us", "us: PING", ping, at_most=2)


def _sustained(here: Place) -> Figure:
    """One runner process with all it does: 100 agents, the publisher, renewals, what is settled heard of."""
    with Wallet.from_settings(here.settings) as wallet:
        for agent in here.agents:
            wallet.reserve(agent, 10).finalize(10)
        cycles, end = 0, time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            for agent in here.agents:
                wallet.reserve(agent, 10).finalize(10)
            cycles += len(here.agents)
        behind = wallet.stats().unsettled
        wallet.flush(120)
    against = f"({behind:,} of {cycles:,} events unsettled at the end)"
    return Figure("cycles of one runner, all included", cycles / _SECONDS, "cycles/s", against, at_least=20_000)


def _broker_down(here: Place) -> Figure:
    """What finalize takes while nobody takes events."""
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    wallet = Wallet.from_settings(dataclasses.replace(here.settings, broker_url=nowhere))
    holds = iter([wallet.reserve(here.agents[n % 100], 10) for n in range(5000)])
    took = micros_of_each(5000, lambda: next(holds).finalize(10), pause_s=0.0002)
    wallet.close(timeout=0)
    return Figure("finalize while the broker is down, p99", percentile(took, 0.99), "us", at_most=50)


def cycles(reserve: Callable[[str, int], Hold], agents: Sequence[str]) -> Callable[[], None]:
    """What a call costs its runner: reserve and finalize, of one agent after the other."""
    agent = itertools.cycle(agents)
    return lambda: reserve(next(agent), 10).finalize(10)


def bare_cycles(agents: Sequence[str]) -> Callable[[], None]:
    """The floor of `cycles`: a lock and a dict doing the bare arithmetic."""
    agent, lock = itertools.cycle(agents), threading.Lock()
    left = {each: 10**12 + place for place, each in enumerate(agents)}

    def bare() -> None:
        mine = next(agent)
        with lock:
            if left[mine] < 10:
                raise ValueError
            left[mine] -= 10
        with lock:
            left[mine] += 0

    return bare


def micros_a_cycle(wallet: Wallet, cycle: Callable[[], None]) -> float:
    """Microseconds of one, over `_CALLS`, by a runner that reuses memory."""
    return statistics.mean(settled_between(wallet, lambda: [micros_a_call(_AT_ONCE, cycle)]))


def settled_between(wallet: Wallet, measure: Callable[[], list[float]]) -> list[float]:
    """What `measure` finds for `_AT_ONCE` calls each time, until `_CALLS` are made.

    In between, untimed, the wallet lets go of the events as if it had heard that they are settled: a runner reuses
    their memory, and one that only gathers them is timed at getting new pages from the system.
    """
    found = []
    for _ in range(_CALLS // _AT_ONCE):
        found += measure()
        events = wallet._sender._events
        for event in events:
            lease = wallet._book.leases.current[event.agent]
            lease.unsettled, lease.progress_ns = (), 0
        events.clear()
    return found


@contextmanager
def quiet_wallet(settings: Settings) -> Iterator[Wallet]:
    """A wallet whose events are kept, and nobody renews: only what the caller's own thread does is timed."""
    wallet = Wallet.from_settings(settings)
    wallet._sender.start = wallet._sender._rouse = lambda: None
    wallet._sender.tried.set()
    wallet._renewer.start = lambda: None
    try:
        yield wallet
    finally:
        wallet._book.close()
        wallet._sender._events.clear()
        wallet._counter.close()
