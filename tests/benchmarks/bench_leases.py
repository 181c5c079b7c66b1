"""What many leases of one agent's day cost: settle, publish, expire, and the time that Redis does nothing else."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

from daycap.clock import wall_ms
from daycap.ledger.retention import OpenDays, open_days
from daycap.ledger.settle import settle
from daycap.protocol.counter import SyncRequest
from daycap.protocol.wire import FinalizeEvent, new_lease_id
from tests.benchmarks.figures import Figure
from tests.benchmarks.place import Place, place
from tests.percentile import percentile

_FEW, _MANY, _TIMES = 10, 50_000, 200


def figures() -> Iterator[Figure]:
    """Both sizes side by side."""
    times = {"DAYCAP_LEASE_TTL_SECONDS": "3600"}
    with place(1, settings=times) as few, place(1, settings=times) as many:
        for here in (few, many):
            here.open_days()
        crowds = _Crowd(few, _FEW), _Crowd(many, _MANY)
        found = [[crowd.measure() for crowd in crowds] for _ in range(3)]
        for what in found[0][0]:
            one, other = (statistics.median(pair[which][what] for pair in found) for which in (0, 1))
            yield Figure(f"{what}: {_MANY:,} leases", other, "us", f"us: {_FEW} leases", one, at_most=1.5)


class _Crowd:
    """One agent with this many leases, each with one event settled and money set aside."""

    def __init__(self, here: Place, leases: int) -> None:
        self.here = here
        (self.agent,) = here.agents
        self.leases = [new_lease_id(self.agent, here.today, os.urandom(16)) for _ in range(leases)]
        self.numbers = dict.fromkeys(self.leases, 0)
        for start in range(0, leases, 500):
            some = self.leases[start : start + 500]
            here.counter.sync([SyncRequest(self.agent, here.today, lease, 0, 0, 100, 100) for lease in some])
            here.publisher.publish(here.ledger, settle(here.ledger, self.events(some), self.days).snapshots)

    @property
    def days(self) -> OpenDays:
        return open_days(self.here.settings, wall_ms())

    def events(self, leases: list[str]) -> list[object]:
        made: list[object] = []
        for lease in leases:
            number = self.numbers[lease] = self.numbers[lease] + 1
            event = FinalizeEvent(lease, number, number, self.agent, self.here.today, 1, 1, wall_ms())
            made.append(event.to_wire())
        return made

    def measure(self) -> dict[str, float]:
        """Medians in microseconds, of one event at a time."""
        taken: dict[str, list[float]] = {"settle": [], "publish": []}
        before = self._blocked_us()
        for nth in range(_TIMES):
            payloads = self.events([self.leases[nth * 7919 % len(self.leases)]])
            began = time.perf_counter()
            outcome = settle(self.here.ledger, payloads, self.days)
            settled = time.perf_counter()
            (reply,) = self.here.publisher.publish(self.here.ledger, outcome.snapshots)
            taken["settle"].append((settled - began) * 1e6)
            taken["publish"].append((time.perf_counter() - settled) * 1e6)
            assert reply is not None
            assert reply.behind is None
        found = {what: percentile(times, 0.5) for what, times in taken.items()}
        return {**found, "Redis blocked by a publish": (self._blocked_us() - before) / _TIMES}

    def _blocked_us(self) -> float:
        """Microseconds that the server has spent in scripts."""
        stats = self.here.broker.info("commandstats")
        return float(stats["cmdstat_evalsha"]["usec"])
