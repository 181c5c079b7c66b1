"""Twenty runner processes spend one small cap to its end: what is left, and who was refused though it was there."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from daycap import BudgetUnavailable, CapExceeded, Wallet
from tests.benchmarks.figures import Figure
from tests.benchmarks.place import Place, place

_RUNNERS, _CAP, _ESTIMATE, _ACTUAL = 20, 2_000_000, 1_000, 800
_TIMES = {"DAYCAP_LEASE_TTL_SECONDS": "3", "DAYCAP_GRACE_SECONDS": "1"}
_PATIENCE_S = 8.0


class _Spent(NamedTuple):
    calls: int
    refusals: int


def figures() -> Iterator[Figure]:
    """Every runner goes on until it was refused for longer than any recall takes."""
    with place(1, _CAP, _TIMES) as here, here.worker() as worker:
        worker.ready()
        here.open_days()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(_RUNNERS, mp_context=context) as runners:
            spent = list(runners.map(_spend, [here.environment] * _RUNNERS))
        truly = sum(each.calls for each in spent) * _ACTUAL
        yield Figure("20 runners, one small cap: spent", truly / _CAP * 100, "% of the cap", at_least=99)
        yield Figure("20 runners, one small cap: over it", max(0, truly - _CAP), "micros", at_most=0)
        # What is left is a call's cost or more, and yet every runner was refused at its last try.
        left = _left(here)
        refusals = sum(each.refusals for each in spent)
        against = f"({refusals:,} while others held it, {left:,} micros left)"
        yield Figure(
            "20 runners: refused falsely for good", _RUNNERS if left >= _ESTIMATE else 0, "runners", against, at_most=0
        )


def _spend(environment: Mapping[str, str]) -> _Spent:
    calls = refusals = 0
    with Wallet.from_env(environ=environment) as wallet:
        refused_since: float | None = None
        while refused_since is None or time.monotonic() - refused_since < _PATIENCE_S:
            try:
                hold = wallet.reserve("agent-0000000", _ESTIMATE)
            except (CapExceeded, BudgetUnavailable):
                refusals += 1
                refused_since = refused_since or time.monotonic()
                time.sleep(0.1)
                continue
            refused_since = None
            time.sleep(0.002)  # The call.
            hold.finalize(_ACTUAL)
            calls += 1
    return _Spent(calls, refusals)


def _left(here: Place) -> int:
    """What could still be reserved, as the counter has it when all runners are gone."""
    (reading,) = here.counter.read([(here.agents[0], here.today)])
    if reading is None:
        raise RuntimeError("the day is not open")
    return reading.remaining_micros
