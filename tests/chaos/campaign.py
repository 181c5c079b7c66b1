"""The campaign: round after round of work, faults and healing, and after each a comparison of what everyone says."""

from __future__ import annotations

import os
import random
import time
from collections import Counter as Count
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from click import ClickException
from kombu import pools

from daycap import BudgetUnavailable, Settings, Wallet
from daycap.cli.client import answer_of, operator_app
from daycap.clock import day_of
from daycap.ledger.audit import audit
from daycap.ledger.audit_counter import Difference
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.protocol.counter import AgentDay, DayReading
from daycap.protocol.wire import CONTROL_QUEUE
from demo.journal import End, Entry
from demo.journal_audit import compare, read_recorded
from tests.chaos.budgets import Shared
from tests.chaos.deployment import Deployment
from tests.chaos.faults import Scene, deal, name_of, possible

CAPS = {"small": 20_000, "middle": 80_000, "large": 50_000_000}
WORK_S = (0.2, 0.6)
QUIET_S = 60


class Round(NamedTuple):
    """What became of one round. Times are seconds from healing on."""

    number: int
    faults: list[str]
    calls: int
    finalized: int
    refused: int
    unavailable: int
    lends_again_s: float
    all_settled_s: float
    given_up_micros: int
    violations: list[Difference]


class Campaign:
    """One deployment, and rounds on it as `seed` deals them."""

    def __init__(self, directory: Path, seed: int, broker: str = "redis") -> None:
        self.seed = seed
        self.dealt = Count[str]()
        self.deployment = Deployment(directory, broker)
        around = self.deployment.broker.url(self.deployment.broker.port)
        os.environ.update(self.deployment.environment, DAYCAP_BROKER_URL=around)
        self._ledger = Ledger(self.deployment.environment["DAYCAP_LEDGER_URL"])
        self._settings = Settings.from_env({**self.deployment.environment, "DAYCAP_SLICE_SECONDS": "0"})
        self._wallet = Wallet.from_settings(self._settings)

    def rounds(self, count: int) -> Iterator[Round]:
        for number in range(1, count + 1):
            yield self._round(number)

    def close(self) -> None:
        self._wallet.close(timeout=1)
        self._ledger.close()
        self.deployment.close()

    def _round(self, number: int) -> Round:
        deployment, rng = self.deployment, random.Random(f"{self.seed} {number}")
        agents = [f"r{number}-{name}" for name in CAPS]
        probe = f"r{number}-probe"
        self._ask(
            "daycap.add_agents",
            caps={**dict(zip(agents, CAPS.values(), strict=True)), probe: 10_000},
            changed_by="chaos",
        )
        shared = Shared(f"r{number}", agents)
        for task, arguments in shared.changes():
            self._ask(task, **arguments, changed_by="chaos")
        now_ms = int(time.time() * 1000)
        day = day_of(now_ms)
        days: list[AgentDay] = [(agent, day) for agent in agents]
        counters = [*days, *shared.periods(now_ms)]
        for runner in deployment.runners:
            runner.work_for(agents)
        faults = deal(possible(deployment), rng, self.dealt)
        self.dealt.update(map(name_of, faults))

        def pause() -> None:
            time.sleep(rng.uniform(*WORK_S))

        pause()
        scene = Scene(deployment, agents, counters, rng, pause)
        with ExitStack() as stack:
            for fault in faults:
                stack.enter_context(fault(scene))
                pause()
        healed_s = time.monotonic()
        lends = self._wait(lambda: self._lends(probe), 0.02)
        lends_again_s = time.monotonic() - healed_s
        pause()
        unsettled = self._rest()
        settled = self._wait(self.deployment.broker.nothing_waits)
        all_settled_s = time.monotonic() - healed_s
        violations = [_fault("P7", f"{hold} is not known to be settled") for hold in unsettled]
        violations += [_fault("", f"{name} ended by itself") for name in deployment.restart_dead()]
        if not lends:
            violations.append(_fault("P6", f"nothing was lent within {QUIET_S} s of healing"))
        if not settled:
            violations.append(_fault("P7", "messages still wait in the queue"))
        known = [*days, (probe, day), *shared.recorded(self._ledger)]
        if not self._wait(lambda: self._quiet(known)):
            violations.append(_fault("P5", f"not quiet after {QUIET_S} s: {self._readings(known)}"))
        entries, found, given_up = self._compare(agents, shared)
        ends = Count(entry.end for entry in entries)
        return Round(
            number,
            [name_of(fault) for fault in faults],
            len(entries),
            ends[End.FINALIZED],
            ends[End.REFUSED],
            ends[End.UNAVAILABLE],
            lends_again_s,
            all_settled_s,
            given_up,
            violations + found,
        )

    def _lends(self, agent: str) -> bool:
        """Whether the counter gives new money to whoever has none."""
        with suppress(BudgetUnavailable):
            self._wallet.reserve(agent, 1).release()
            return True
        return False

    def _rest(self) -> list[str]:
        for runner in self.deployment.runners:
            runner.work_for([])
        return [hold for runner in self.deployment.runners for hold in runner.rested()]

    def _wait(self, condition: Callable[[], bool], look_s: float = 0.1) -> bool:
        end_s = time.monotonic() + QUIET_S
        while not condition():
            if time.monotonic() >= end_s:
                return False
            time.sleep(look_s)
        return True

    def _readings(self, counters: list[AgentDay]) -> list[DayReading | None]:
        counter = self.deployment.counter()
        try:
            return counter.read(counters)
        finally:
            counter.close()

    def _quiet(self, counters: list[AgentDay]) -> bool:
        """Nothing leased, no fence; and a reconcile found nothing to do."""
        readings = self._readings(counters)
        if all(reading is not None and not reading.leased_micros and not reading.fenced for reading in readings):
            return self._ask("daycap.reconcile")["drift"] == 0
        if None in readings:
            self._ask("daycap.reconcile")
        operator_app().send_task("daycap.expire", queue=CONTROL_QUEUE)
        time.sleep(0.2)
        return False

    def _compare(self, agents: list[str], shared: Shared) -> tuple[list[Entry], list[Difference], int]:
        """What the runners say against ledger and counter; and how much was given up.

        P6 is not looked at: what killed runners held, and never told, explains many a refusal.
        """
        read = [runner.entries() for runner in self.deployment.runners]
        entries = [entry for journal, _ in read for entry in journal]
        intents = {entry.reservation: entry for _, some in read for entry in some}
        counter = self.deployment.counter()
        try:
            recorded = read_recorded(self._ledger.engine, counter, agents, entries)
        finally:
            counter.close()
        known = {entry.reservation for entry in entries}
        for row in recorded.settlements:
            # The runner was killed in finalize: both are right, and what was settled was spent.
            if row.reservation_id in intents and row.reservation_id not in known:
                entries.append(intents[row.reservation_id]._replace(held_micros=row.held_micros))
        readings = [
            (agent, day, reading and self.deployment.in_all(reading, (agent, day)))
            for agent, day, reading in recorded.readings
        ]
        checks = compare(entries, recorded._replace(readings=readings))
        given_up = sum(reading.given_up_micros for _, _, reading in readings if reading is not None)
        found = [each for check in checks if check.promise != "P6" for each in check.differences]
        estimates = {reservation: entry.held_micros for reservation, entry in intents.items()}
        found += shared.compare(self._ledger, self.deployment, entries, estimates)
        return entries, [*found, *self._audit()], given_up

    def _audit(self) -> list[Difference]:
        """What an operator's audit finds, of this round and of those before."""
        counter = self.deployment.counter()
        publisher = CounterPublisher(counter, self._settings.terms)
        try:
            audited = audit(self._ledger, publisher, self._settings)
        finally:
            publisher.close()
        return [Difference(**each) for each in audited.differences]

    def _ask(self, task: str, **kwargs: Any) -> Any:
        """The worker's answer."""
        try:
            answer = answer_of(task, timeout_s=30, **kwargs)
        except ClickException:
            pools.reset()  # Its connections may be from before a fault.
            operator_app.cache_clear()
            answer = answer_of(task, timeout_s=30, **kwargs)
        assert "error" not in answer, answer
        return answer.get("result", answer)


def _fault(promise: str, what: str) -> Difference:
    return Difference(promise, "", what, "", "")
