"""A deployment whose every step the test takes: real wallets, a real server, the real ledger and worker's functions.

No thread runs and the clock stands still between two steps, so that the same steps always do the same, and Hypothesis
can shrink what broke a promise.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa

from daycap import Hold, Settings, Wallet
from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.counter import DaySnapshot, SyncReply, SyncRequest
from daycap.errors import CounterUnavailable
from daycap.publisher import Transport
from daycap.redis_counter import RedisCounter
from daycap.setups import Parts
from daycap.wire import FinalizeEvent
from tests.fake_clock import FakeClock
from tests.processes import LocalRedis
from worker import accounts, housekeeping, opening, settle
from worker.ledger import Ledger
from worker.publish import CounterPublisher
from worker.retention import open_days
from worker.schema import agent_accounts, daily_agent_spending, lease_totals, metadata, settlements
from worker.slices import all_of

AGENT = "agent"
START_MS = day_start_ms("2026-03-02") + DAY_MS - 120_000
SETTINGS = Settings(lease_ttl_seconds=30, grace_seconds=5, redis_timeout_seconds=0.25)
_PATIENCE_S = 10
"""How long the sockets really wait: the machine's speed decides nothing. The guard is that of the settings."""


class World:
    """The server and the ledger, which outlive the examples, and the time."""

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self.clock = FakeClock(directory / "clock")
        self.ledger = ledger
        self.ms = START_MS
        self.pass_time(0)
        self.server = LocalRedis(directory, self.clock)
        self.server.ready()
        self.client = redis.Redis.from_url(self.server.url)

    def pass_time(self, ms: int) -> None:
        self.ms += ms
        self.clock.stop_at(self.ms)

    def begin(self) -> None:
        """Empty all for the next example."""
        self.ms = START_MS
        self.pass_time(0)
        self.client.flushall()
        with self.ledger.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())

    def restart(self, kept: dict[bytes, bytes]) -> None:
        """A new life of the server, with `kept` as its data: none, or as old as it may be."""
        self.client.flushall()
        self.client.connection_pool.disconnect()
        self.server.restart()
        for key, dumped in kept.items():
            self.client.restore(key, 0, dumped)

    def close(self) -> None:
        self.client.close()
        self.server.teardown()


class Waiting:
    """In the place of `time` where a reserve waits for an answer: it waits in no time, and the worker goes on."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, _seconds: float) -> None:
        self._now_s += SETTINGS.open_timeout_seconds / 3
        self.meanwhile()


class FaultyCounter(RedisCounter):
    """The counter of one wallet over a network that does to the next sync what `fault` says."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment.world.server.url, _PATIENCE_S)
        self._deployment = deployment
        self.fault = ""

    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        fault, self.fault = self.fault, ""
        if fault == "request late":
            self._deployment.late.append(lambda: super(FaultyCounter, self).sync(requests))
        if fault in ("request late", "request lost"):
            raise CounterUnavailable("the request was lost, or is late")
        replies = super().sync(requests)
        if fault == "reply lost":
            raise CounterUnavailable("the reply was lost")
        if fault == "reply late":
            self._deployment.world.pass_time(SETTINGS.guard_ms + 1000)
        return replies


class Queue(Transport):
    """The way from every wallet to the worker: messages that the test delivers, doubles, loses and reorders."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.away = False

    def send(self, events: Sequence[FinalizeEvent]) -> None:
        if self.away:
            raise ConnectionError("the broker is away")
        self._deployment.queue.append((self._deployment.world.ms, list(events)))

    def open_day(self, agent: str, day: str) -> None:
        self._deployment.openings.append((agent, day))

    def backlog(self) -> int:
        return len(self._deployment.queue)

    def use_clock(self, counter_ms: Callable[[], int | None]) -> None:
        pass

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass


class FaultyPublisher(CounterPublisher):
    """The worker's way to the counter: the next publish is sent, lost, late or doubled as `fault` says."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(RedisCounter(deployment.world.server.url, _PATIENCE_S), SETTINGS.terms)
        self._deployment = deployment
        self.fault = ""

    def publish(
        self, snapshots: Sequence[DaySnapshot], *, expire_before_ms: int = 0, opened_at_ms: int | None = None
    ) -> list[Any]:
        def send() -> list[Any]:
            replies = super(FaultyPublisher, self).publish(
                snapshots, expire_before_ms=expire_before_ms, opened_at_ms=opened_at_ms
            )
            for snapshot, reply in zip(snapshots, replies, strict=False):
                self._deployment.given_up[snapshot.day] += reply.given_up_micros
            return replies

        if self.fault == "late" or (self.fault == "doubled" and opened_at_ms is None):
            self._deployment.late.append(send)
        return [] if self.fault in ("late", "lost") else send()


@dataclass(slots=True)
class Call:
    """A hold and its wallet."""

    hold: Hold
    runner: Runner


@dataclass(slots=True, eq=False)
class Runner:
    """One wallet, driven by the test in the place of its threads."""

    wallet: Wallet
    counter: FaultyCounter
    transport: Queue
    emitted: list[FinalizeEvent] = field(default_factory=list)
    closed: bool = False

    def send(self) -> None:
        """What the publisher's thread does, once."""
        try:
            self.wallet._publisher._send_all()
            self.wallet._publisher.trouble = None
        except ConnectionError as error:
            self.wallet._publisher.trouble = error

    def tick(self) -> None:
        """What the keeper's thread does, once; nothing here waits for a second of the real clock."""
        self.wallet._keeper._asked_to_open.clear()
        self.wallet._keeper._tick()


class Deployment:
    """Wallets, queue, worker, and what is known of the truth. All money is of one agent; days are those of `AGENT`."""

    def __init__(self, world: World, cap: int) -> None:
        world.begin()
        self.world = world
        self.ledger = world.ledger
        self.runners: list[Runner] = []
        self.calls: list[Call] = []
        self.queue: list[tuple[int, list[FinalizeEvent]]] = []
        self.openings: list[tuple[str, str]] = []
        self.late: list[Callable[[], object]] = []
        self.copies: list[dict[bytes, bytes]] = [{}]
        self.true_spent, self.excess, self.given_up = Count[str](), Count[str](), Count[str]()
        self.highest_cap: dict[str, int] = {}
        self.finalized: dict[str, FinalizeEvent] = {}
        self.unheard: set[str] = set()
        self.known_seq: dict[str, int] = {}
        """What the counter said it had of the ledger, for as long as it keeps its data."""
        self.publisher = FaultyPublisher(self)
        accounts.add(self.ledger, self.publisher, {AGENT: cap}, "test")

    # --- runners ----------------------------------------------------------------------------------------------

    def start(self, slice_seconds: float) -> Runner:
        counter, transport = FaultyCounter(self), Queue(self)
        settings = replace(SETTINGS, slice_seconds=slice_seconds)
        wallet = Wallet(Parts(counter, transport, None, None), settings)
        wallet._book._now_ns = lambda: self.world.ms * 1_000_000
        wallet._book.hear(self.world.ms)
        # No threads: the test takes their steps.
        wallet._keeper.start = lambda: None
        wallet._publisher._rouse = lambda: None
        wallet._publisher.backlog = lambda _timeout_s: transport.backlog()
        runner = Runner(wallet, counter, transport)
        emit = wallet._book._emit
        wallet._book._emit = lambda event: (runner.emitted.append(event), emit(event))
        self.runners.append(runner)
        return runner

    def reserve(self, runner: Runner, estimate: int) -> None:
        self.calls.append(Call(runner.wallet.reserve(AGENT, estimate), runner))

    def end(self, call: Call, actual: int | None) -> None:
        """Finalize, or release where there is no cost."""
        self.calls.remove(call)
        if actual is None:
            call.hold.release()
            return
        call.hold.finalize(actual)
        event = call.runner.emitted[-1]
        self.finalized[event.reservation] = event
        self.true_spent[event.day] += actual
        self.excess[event.day] += actual - event.drawn_micros

    def close_wallet(self, runner: Runner) -> None:
        """Its calls may still end, and their events are sent."""
        runner.closed = True
        runner.send()
        runner.wallet._book.close()
        runner.wallet._keeper.renew(hand_back=True)

    def kill(self, runner: Runner) -> None:
        """Its calls go on at the provider and cost all that is held, though nobody will ever tell."""
        for call in [call for call in self.calls if call.runner is runner]:
            self.calls.remove(call)
            self.true_spent[call.hold.day] += call.hold.held_micros
        self.unheard |= {event.reservation for event in runner.wallet._book.unsettled()}
        self.runners.remove(runner)
        runner.counter.close()

    # --- worker -----------------------------------------------------------------------------------------------

    def settle(self, messages: list[tuple[int, list[FinalizeEvent]]], *, publish: bool = True) -> settle.Outcome:
        payloads = [event.to_wire() for _, events in messages for event in events]
        before = self.rows()
        outcome = settle.settle(self.ledger, payloads, open_days(SETTINGS, self.world.ms))
        assert not outcome.dead_letters, ("P2", outcome.dead_letters)
        for day, row in self.rows().items():
            spent = before[day].spent_micros if day in before else 0
            assert row.spent_micros <= max(spent, row.cap_micros), ("P1", day, row)
        if publish:
            self.publisher.publish(outcome.snapshots)
        return outcome

    def open(self) -> None:
        while self.openings:
            opening.open_on_request(self.ledger, self.publisher, *self.openings.pop(0))

    def answer_requests(self) -> None:
        """A worker that is there opens what a reserve waits for."""
        for runner in self.runners:
            runner.send()
        self.open()

    def a_minute_goes_by(self) -> None:
        """Every wallet renews in time, the worker settles all there is, what is over expires, the agent is resumed."""
        for _ in range(5):
            self.world.pass_time(10_000)
            for runner in self.runners:
                runner.tick()
                runner.send()
            self.open()
        while self.queue:
            self.settle([self.queue.pop(0)])
        self.expire()
        self.set_status("active")

    def rollover(self) -> None:
        all_of(lambda place: opening.rollover(self.ledger, self.publisher, 3_600_000, place))

    def expire(self) -> None:
        def settled_before_ms(now_ms: int) -> int:
            return min([now_ms, *(sent_ms for sent_ms, _ in self.queue)])

        all_of(lambda place: housekeeping.expire(self.ledger, self.publisher, settled_before_ms, place))

    def reconcile(self) -> None:
        all_of(lambda place: housekeeping.reconcile(self.ledger, self.publisher, place))

    def set_cap(self, cap: int) -> None:
        accounts.set_cap(self.ledger, self.publisher, AGENT, cap, "test")

    def set_status(self, status: str) -> None:
        accounts.set_status(self.ledger, self.publisher, AGENT, status, "test")

    # --- the counter ------------------------------------------------------------------------------------------

    def copy(self) -> None:
        self.copies.append({key: self.world.client.dump(key) for key in self.world.client.scan_iter()})

    def delete(self, *keys: bytes) -> None:
        """Of the counter's data: these keys, or all."""
        if keys:
            self.world.client.delete(*keys)
        else:
            self.world.client.flushall()
        self.known_seq.clear()

    def restart(self, kept: dict[bytes, bytes]) -> None:
        self.world.restart(kept)
        self.known_seq.clear()
        self.late.clear()  # What was on its way was on connections to the server that was.
        self.publisher.close()

    # --- what must be true ------------------------------------------------------------------------------------

    def rows(self) -> dict[str, Any]:
        with self.ledger.reading() as connection:
            return {row.spending_date: row for row in connection.execute(sa.select(daily_agent_spending))}

    def check(self) -> None:
        """P1 to P4, as far as they hold at every moment."""
        rows = self.rows()
        with self.ledger.reading() as connection:
            settled = list(connection.execute(sa.select(settlements)))
            leases = list(connection.execute(sa.select(lease_totals)))
            status = connection.scalar(sa.select(agent_accounts.c.status))
        for row in settled:
            event = self.finalized.get(row.reservation_id)
            assert event is not None, ("P2", "settled but never finalized", row)
            assert (row.held_micros, row.actual_micros) == (event.held_micros, event.actual_micros), ("P2", row)
        for lease in leases:
            events = [self.finalized[row.reservation_id] for row in settled if row.lease_id == lease.lease_id]
            drawn = sum(event.drawn_micros for event in events)
            assert (lease.events, lease.drawn_micros) == (len(events), drawn), ("P2", lease)
        readings = self.publisher.counter.read([(AGENT, day) for day in rows])
        for (day, row), reading in zip(rows.items(), readings, strict=True):
            highest = self.highest_cap[day] = max(self.highest_cap.get(day, 0), row.cap_micros)
            assert row.spent_micros <= highest, ("P1", day, row)
            charged = sum(each.charged_micros for each in settled if each.spending_date == day)
            assert row.spent_micros == charged, ("P3", day, row, charged)
            if reading is not None:
                assert reading.seq >= self.known_seq.get(day, 0), ("P3", day, "an older snapshot was taken", reading)
                self.known_seq[day] = reading.seq
                assert reading.seq <= row.seq, ("P3", day, reading, row)
                said = (reading.cap_micros, reading.spent_micros, reading.status)
                same = said == (row.cap_micros, row.spent_micros, status)
                assert same or reading.seq < row.seq, ("P3", day, reading, row)
            held = sum(call.hold.held_micros for call in self.calls if call.hold.day == day)
            most = highest + self.given_up[day] + self.excess[day]
            assert self.true_spent[day] + held <= most, ("P4", day, self.true_spent[day], held, most)

    def check_level(self) -> None:
        """P3 after a reconcile: the counter is as the ledger."""
        rows = self.rows()
        readings = self.publisher.counter.read([(AGENT, day) for day in rows])
        for (day, row), reading in zip(rows.items(), readings, strict=True):
            assert reading is not None, ("P3", day, "not open")
            said = (reading.seq, reading.cap_micros, reading.spent_micros)
            assert said == (row.seq, row.cap_micros, row.spent_micros), ("P3", day, reading, row)

    def check_refusal(self, estimate: int) -> None:
        """P6, for a lone wallet without faults."""
        day = day_of(self.world.ms)
        held = sum(call.hold.held_micros for call in self.calls if call.hold.day == day)
        cap = self.rows()[day].cap_micros
        assert self.true_spent[day] + held + estimate > cap, ("P6", self.true_spent[day], held, estimate, cap)

    def come_to_rest(self) -> None:
        """Everything ends and nothing fails any more: P5, and P7 for the wallets that lived."""
        self.publisher.fault = ""
        while self.late:
            self.late.pop()()
        while self.calls:
            self.end(self.calls[0], None)
        for _ in range(8):
            for runner in self.runners:
                runner.counter.fault, runner.transport.away = "", False
                runner.tick()
                runner.wallet._keeper.renew(hand_back=True)
                runner.send()
            while self.queue:
                self.settle([self.queue.pop(0)])
            self.open()
            self.expire()
            self.reconcile()
            self.world.pass_time(16_000)
        self.check()
        self.check_level()
        with self.ledger.reading() as connection:
            found = set(connection.scalars(sa.select(settlements.c.reservation_id)))
        assert self.finalized.keys() - found <= self.unheard, ("P7", self.finalized.keys() - found)
        for reading in self.publisher.counter.read([(AGENT, day) for day in self.rows()]):
            assert reading is not None, "P5: not open"
            assert reading.leased_micros == 0, ("P5", reading)
            assert not reading.fenced, ("P5", reading)

    def close(self) -> None:
        for runner in self.runners:
            runner.counter.close()
        self.publisher.close()
