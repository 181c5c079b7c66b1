"""The promises P1 to P6 as properties: whatever steps are taken, in whatever order, each holds after each.

Hypothesis chooses the steps and shrinks those that break a promise to the shortest. The same examples on each run;
others each time, and more of them for hours, with `HYPOTHESIS_PROFILE=thorough pytest tests/properties`.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from daycap import AgentPaused, BudgetUnavailable, CapExceeded, top_up, wallet
from tests import fake_clock
from tests.migrated import migrated_sqlite
from tests.properties.deployment import Deployment, Runner, Waiting, World
from worker import housekeeping
from worker.ledger import Ledger

pytestmark = pytest.mark.skipif(
    not fake_clock.AVAILABLE, reason="the libfaketime wheel has no library for this machine"
)

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
PROFILE = settings(
    max_examples=20_000 if THOROUGH else 150,
    stateful_step_count=60 if THOROUGH else 40,
    derandomize=not THOROUGH,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# All draws are from fixed ranges, so that the same draws are made whatever state they meet.
which = st.integers(0, 7)
amounts = st.sampled_from([0, 1, 5, 20, 50, 100])
caps = st.sampled_from([0, 20, 100, 150])
on_the_way = st.sampled_from(["", "", "", "request lost", "request late", "reply lost", "reply late"])
publish = st.sampled_from(["", "", "", "lost", "late", "doubled"])


class LoneWallet(RuleBasedStateMachine):
    """One wallet, and nothing goes wrong."""

    world: World
    waiting: Waiting
    wallets = 1

    @initialize(slice_seconds=st.sampled_from([0, 2]))
    def begin(self, slice_seconds: float) -> None:
        self.deployment = Deployment(self.world, cap=100)
        for _ in range(self.wallets):
            self.deployment.start(slice_seconds)
        self.waiting.meanwhile = self.deployment.answer_requests

    def runner(self, number: int) -> Runner:
        alive = [runner for runner in self.deployment.runners if not runner.closed]
        return alive[number % len(alive)]

    def try_to_reserve(self, runner: Runner, estimate: int) -> None:
        try:
            self.deployment.reserve(runner, estimate)
        except CapExceeded:
            if self.wallets == 1:
                self.deployment.check_refusal(estimate)
        except (AgentPaused, BudgetUnavailable):
            pass

    @rule(asked=st.lists(st.tuples(which, amounts), min_size=1, max_size=4))
    def reserve(self, asked: list[tuple[int, int]]) -> None:
        for number, estimate in asked:
            self.try_to_reserve(self.runner(number), estimate)
            self.deployment.check()

    @rule(number=which, actual=amounts, over=st.sampled_from([0, 0, 0, 7]))
    def finalize(self, number: int, actual: int, over: int) -> None:
        if calls := self.deployment.calls:
            call = calls[number % len(calls)]
            held = call.hold.held_micros
            self.deployment.end(call, held + over if over else min(actual, held))

    @rule(number=which)
    def release(self, number: int) -> None:
        if calls := self.deployment.calls:
            self.deployment.end(calls[number % len(calls)], None)

    @rule(number=which)
    def send(self, number: int) -> None:
        self.runner(number).send()

    @rule(number=which)
    def keep(self, number: int) -> None:
        self.runner(number).tick()

    @rule(first=which, count=st.integers(1, 3))
    def settle(self, first: int, count: int) -> None:
        queue = self.deployment.queue
        if queue:
            self.deployment.settle([queue.pop(first % len(queue)) for _ in range(min(count, len(queue)))])

    @rule(seconds=st.sampled_from([1, 5, 12, 31, 60]))
    def pass_time(self, seconds: int) -> None:
        self.world.pass_time(seconds * 1000)

    @rule()
    def a_minute_goes_by(self) -> None:
        self.deployment.a_minute_goes_by()

    @rule()
    def open(self) -> None:
        self.deployment.open()

    @rule()
    def roll_over(self) -> None:
        self.deployment.rollover()

    @rule()
    def expire(self) -> None:
        self.deployment.expire()

    @rule()
    def reconcile(self) -> None:
        self.deployment.reconcile()
        if not self.deployment.queue:
            self.deployment.check_level()

    @rule(cap=caps)
    def set_cap(self, cap: int) -> None:
        self.deployment.set_cap(cap)

    @rule(status=st.sampled_from(["paused", "active", "active"]))
    def set_status(self, status: str) -> None:
        self.deployment.set_status(status)

    @invariant()
    def promises_hold(self) -> None:
        self.deployment.check()

    def teardown(self) -> None:
        if hasattr(self, "deployment"):
            try:
                self.deployment.come_to_rest()
            finally:
                self.deployment.close()


class FaultyWallets(LoneWallet):
    """Three wallets, and everything goes wrong."""

    wallets = 3

    @rule(number=which, estimate=amounts, fault=on_the_way)
    def reserve_over_a_bad_network(self, number: int, estimate: int, fault: str) -> None:
        runner = self.runner(number)
        runner.counter.fault = fault
        self.try_to_reserve(runner, estimate)
        runner.counter.fault = ""

    @rule(number=which, fault=on_the_way)
    def keep_over_a_bad_network(self, number: int, fault: str) -> None:
        runner = self.runner(number)
        runner.counter.fault = fault
        runner.tick()
        runner.counter.fault = ""

    @rule(number=which, away=st.booleans())
    def lose_the_broker(self, number: int, away: bool) -> None:
        runner = self.runner(number)
        runner.transport.away = away
        runner.send()

    @rule(number=which)
    def kill(self, number: int) -> None:
        self.deployment.kill(self.runner(number))
        self.deployment.start(2)

    @rule(number=which)
    def close(self, number: int) -> None:
        self.deployment.close_wallet(self.runner(number))
        self.deployment.start(2)

    @rule(number=which, doubled=st.booleans())
    def double_or_lose_a_message(self, number: int, doubled: bool) -> None:
        if queue := self.deployment.queue:
            message = queue.pop(number % len(queue))
            queue += [message, message] if doubled else []

    @rule(number=which)
    def settle_and_die_before_the_publish(self, number: int) -> None:
        if queue := self.deployment.queue:
            self.deployment.settle([queue[number % len(queue)]], publish=False)

    @rule(fault=publish, number=which, cap=caps, step=st.sampled_from(["settle", "open", "expire", "cap"]))
    def publish_over_a_bad_network(self, fault: str, number: int, cap: int, step: str) -> None:
        self.deployment.publisher.fault = fault
        if step == "settle" and (queue := self.deployment.queue):
            self.deployment.settle([queue.pop(number % len(queue))])
        elif step == "open":
            self.deployment.open()
        elif step == "expire":
            self.deployment.expire()
        elif step == "cap":
            self.deployment.set_cap(cap)
        self.deployment.publisher.fault = ""

    @rule(number=which)
    def what_was_late_arrives(self, number: int) -> None:
        if late := self.deployment.late:
            late.pop(number % len(late))()

    @rule(number=which, estimate=amounts)
    def another_takes_what_one_hands_back(self, number: int, estimate: int) -> None:
        one, other = self.runner(number), self.runner(number + 1)
        before = len(self.deployment.calls)
        self.try_to_reserve(one, estimate)
        for call in self.deployment.calls[before:]:
            self.deployment.end(call, None)
        one.wallet._keeper.renew(hand_back=True)
        for runner in (other, one):
            self.try_to_reserve(runner, estimate)
            self.deployment.check()

    @rule(cap=caps, later=caps)
    def a_publish_overtakes_another(self, cap: int, later: int) -> None:
        self.deployment.publisher.fault = "late"
        self.deployment.set_cap(cap)
        self.deployment.publisher.fault = ""
        self.deployment.set_cap(later)
        self.deployment.check()
        self.deployment.late.pop()()

    @rule()
    def copy_the_counter(self) -> None:
        self.deployment.copy()

    @rule(number=which, how=st.sampled_from(["flush", "delete a key", "restart"]))
    def lose_the_counter(self, number: int, how: str) -> None:
        if how == "flush":
            self.deployment.delete()
        elif how == "delete a key" and (keys := sorted(self.world.client.keys())):
            self.deployment.delete(keys[number % len(keys)])
        elif how == "restart":
            copies = self.deployment.copies
            self.deployment.restart(copies[number % len(copies)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    level = logging.getLogger("daycap").level
    logging.getLogger("daycap").setLevel(logging.CRITICAL)
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(dir=memory)) if memory.is_dir() else tmp_path_factory.mktemp("properties")
    ledger = Ledger(f"sqlite:///{migrated_sqlite(directory / 'ledger.sqlite3')}")
    world = World(directory, ledger)
    yield world
    world.close()
    ledger.close()
    shutil.rmtree(directory)
    logging.getLogger("daycap").setLevel(level)


@pytest.mark.timeout(0 if THOROUGH else 300)
@pytest.mark.parametrize("machine", [LoneWallet, FaultyWallets])
def test_no_step_breaks_a_promise(machine: type[LoneWallet], world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "world", world, raising=False)
    waiting = Waiting()
    monkeypatch.setattr(machine, "waiting", waiting, raising=False)
    monkeypatch.setattr(top_up, "time", waiting)
    monkeypatch.setattr(wallet, "time", waiting)
    # Nobody else publishes here: a counter that is behind stays behind.
    monkeypatch.setattr(housekeeping, "_PUBLISH_S", 0)
    run_state_machine_as_test(machine, settings=PROFILE)
