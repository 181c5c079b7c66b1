"""What a thousand times as many agents cost: reserve, renew, settle, open; each for one agent or event."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from daycap.clock import wall_ms
from daycap.ledger.retention import open_days
from daycap.ledger.settle import settle
from tests.benchmarks.bench_wallet import bare_cycles, cycles, micros_a_cycle, quiet_wallet
from tests.benchmarks.figures import Figure, interleaved, micros_a_call
from tests.benchmarks.place import Place, batches, place

_FEW, _MANY = 100, 100_000


def figures() -> Iterator[Figure]:
    """Both sizes side by side."""
    # Leases that outlive the benchmark: nobody renews them here.
    times = {"DAYCAP_LEASE_TTL_SECONDS": "3600"}
    with place(_FEW, settings=times) as few, place(_MANY, settings=times) as many:
        opened = [micros_a_call(1, here.open_days) / len(here.agents) for here in (few, many)]
        # Opened again, for few agents are opened too soon to be timed once.
        opened[0] = min(opened[0], *(_open_anew(few) for _ in range(5)))
        yield _figure("open, an agent's day", *opened)
        yield _figure("settle, an event", *interleaved(3, *(_settler(here) for here in (few, many))))
        with quiet_wallet(few.settings) as one, quiet_wallet(many.settings) as other:
            pairs = ((few, one), (many, other))
            for here, wallet in pairs:
                for agent in here.agents:
                    wallet.reserve(agent, 100_000).release()
            # Once, for what is still idle the next time is handed back.
            renewed = [micros_a_call(1, wallet._renewer.renew) / len(here.agents) for here, wallet in pairs]
            yield _figure("renew, a lease", *renewed)

            orders = [random.Random(1).sample(here.agents, len(here.agents)) for here, _ in pairs]
            mine = (
                partial(micros_a_cycle, wallet, cycles(wallet.reserve, order))
                for (_, wallet), order in zip(pairs, orders, strict=True)
            )
            floors = (partial(micros_a_call, 20_000, bare_cycles(order)) for order in orders)
            *found, bare_few, bare_many = interleaved(5, *mine, *floors)
            yield _figure("reserve + finalize", *found)
            # What the machine's caches make of it, whoever asks.
            yield Figure(f"a lock and a dict: {_MANY:,} agents", bare_many, "us", f"us: {_FEW} agents", bare_few)


def _figure(what: str, few: float, many: float) -> Figure:
    return Figure(f"{what}: {_MANY:,} agents", many, "us", f"us: {_FEW} agents", few, at_most=1.5)


def _open_anew(here: Place) -> float:
    here.forget_days()
    return micros_a_call(1, here.open_days) / len(here.agents)


def _settler(here: Place) -> Callable[[], float]:
    days = open_days(here.settings, wall_ms())

    def measure() -> float:
        messages = iter([[event.to_wire() for event in batch] for batch in batches(here.agents, 20_000, 500)])
        return micros_a_call(40, lambda: settle(here.ledger, next(messages), days)) / 500

    return measure
