"""The promises P1 to P6, and P12, as properties: whatever steps are taken, in whatever order, each holds after each.

Hypothesis chooses the steps and shrinks those that break a promise. For the same code they are the same each time;
others each time, and more of them for hours, with `HYPOTHESIS_PROFILE=thorough pytest tests/properties`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.internal.conjecture import engine
from hypothesis.stateful import run_state_machine_as_test

from daycap.wallet import base as base_wallet
from daycap.wallet import sync as wallet
from daycap.wallet import top_up
from tests import fake_clock
from tests.migrated import quiet_ledger
from tests.properties.budgeted import FaultyBudgets, LoneBudgets
from tests.properties.machines import FaultyWallets, LoneWallet
from tests.properties.world import Waiting, World
from worker import housekeeping

pytestmark = pytest.mark.skipif(
    not fake_clock.AVAILABLE, reason="the libfaketime wheel has no library for this machine"
)

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
PROFILE = settings(
    max_examples=20_000 if THOROUGH else 10,
    stateful_step_count=60 if THOROUGH else 30,
    derandomize=not THOROUGH,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""Ten to a run: of more than that Hypothesis makes most by changing a few of them a little."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with quiet_ledger() as (directory, ledger), closing(World(directory, ledger)) as world:
        yield world


def runs() -> list[tuple[type[LoneWallet], int]]:
    """The machines, each with the seeds of its runs."""
    if THOROUGH:
        return [(machine, 0) for machine in (LoneWallet, FaultyWallets, LoneBudgets, FaultyBudgets)]
    each = ((LoneWallet, 4), (FaultyWallets, 14), (LoneBudgets, 1), (FaultyBudgets, 2))
    return [(machine, number) for machine, count in each for number in range(count)]


@pytest.mark.timeout(0 if THOROUGH else 120)
@pytest.mark.parametrize(("machine", "number"), runs())
def test_no_step_breaks_a_promise(
    machine: type[LoneWallet], number: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting()
    monkeypatch.setattr(machine, "world", world, raising=False)
    monkeypatch.setattr(machine, "waiting", waiting, raising=False)
    for module in (top_up, base_wallet, wallet):
        monkeypatch.setattr(module, "time", waiting)
    monkeypatch.setattr(asyncio, "sleep", waiting.sleep_in_loop)
    # Nobody else publishes here: a counter that is behind stays behind.
    monkeypatch.setattr(housekeeping, "_PUBLISH_S", 0)
    if not THOROUGH:
        monkeypatch.setattr(engine, "MAX_SHRINKING_SECONDS", 0 if world.broken else 30)
        machine = seed(number)(type(machine.__name__, (machine,), {}))
    try:
        run_state_machine_as_test(machine, settings=PROFILE)
    except BaseException:
        world.broken = True
        raise
