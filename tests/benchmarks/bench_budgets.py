"""What further budgets on a call cost its runner."""

from __future__ import annotations

from collections.abc import Iterator

from daycap.ledger import budgets
from tests.benchmarks.bench_wallet import cycles, micros_a_cycle, quiet_wallet
from tests.benchmarks.figures import Figure, interleaved
from tests.benchmarks.place import CAP_MICROS, Place, place

_PERIODS = ("month", "day", "week", "hour")


def figures() -> Iterator[Figure]:
    """Reserve and finalize with one, four and sixteen budgets, and the first reserve of a process with four."""
    with place() as here:
        one, four, sixteen = here.agents[:3]
        _add(here, four, 3)
        _add(here, sixteen, 15)
        here.open_days()
        with quiet_wallet(here.settings) as wallet:
            for agent in (one, four, sixteen):
                wallet.reserve(agent, 10**8).release()
            warm = interleaved(
                7,
                *(
                    lambda agent=agent: micros_a_cycle(wallet, cycles(wallet.reserve, [agent]))
                    for agent in here.agents[:3]
                ),
            )
        yield Figure("reserve + finalize, 4 budgets", warm[1], "us", "us: 1 budget", warm[0], at_most=2.5)
        yield Figure("reserve + finalize, 16 budgets", warm[2], "us", "us: 1 budget", warm[0], at_most=7)


def _add(here: Place, agent: str, count: int) -> None:
    for number in range(count):
        facts = {"agent": agent, "cap_micros": CAP_MICROS, "period": {"period": _PERIODS[number % len(_PERIODS)]}}
        budgets.add(here.ledger, here.publisher, f"{agent}-{number}", facts, "benchmark")
