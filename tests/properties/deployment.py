"""A deployment whose every step the test takes: real wallets, a real server, the real ledger and worker's functions.

No thread runs and the clock stands still between two steps, so that the same steps always do the same, and Hypothesis
can shrink what broke a promise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from daycap import AsyncWallet, CapExceeded, Wallet
from daycap.clock import day_of
from daycap.ledger import accounts, opening, settle
from daycap.ledger.retention import open_days
from daycap.ledger.slices import all_of
from daycap.ledger.tables import agent_accounts
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet.hold import BaseHold
from daycap.wallet.wiring import Parts
from tests.properties.faults import FaultyCounter, FaultyPublisher, OfLoop, Queue
from tests.properties.promises import Truth
from tests.properties.world import AGENT, SETTINGS, World
from tests.refused import adds_up
from worker import housekeeping


@dataclass(slots=True)
class Call:
    """A hold and its wallet."""

    hold: BaseHold
    runner: Runner


@dataclass(slots=True, eq=False)
class Runner:
    """One wallet, of threads or of an event loop, driven by the test in the place of its threads."""

    wallet: Wallet | AsyncWallet
    counter: FaultyCounter
    transport: Queue
    emitted: list[FinalizeEvent] = field(default_factory=list)
    closed: bool = False

    def send(self) -> None:
        """What the publisher's thread does, once."""
        try:
            self.wallet._sender._send_all()
            self.wallet._sender.trouble = None
        except ConnectionError as error:
            self.wallet._sender.trouble = error

    def tick(self) -> None:
        """What the renewer's thread does, once; nothing here waits for a second of the real clock."""
        self.wallet._renewer._asked_to_open.clear()
        self.wallet._renewer._tick()


def in_a_loop(call: Coroutine[Any, Any, BaseHold]) -> BaseHold:
    """In a thread of its own, for it may be called while another call waits; nothing else goes on meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, call).result()


class Deployment:
    """Wallets, queue, worker, and what is known of the truth. `AGENT` is the one whose cap and status are changed."""

    agent = AGENT
    """Whom the next calls are for, with which labels."""
    labels: Mapping[str, str] = MappingProxyType({})

    def __init__(self, world: World, cap: int) -> None:
        self.world = world
        self.ledger = world.ledger
        self.runners: list[Runner] = []
        self.calls: list[Call] = []
        self.queue: list[tuple[int, list[FinalizeEvent]]] = []
        self.openings: list[tuple[str, str]] = []
        self.late: list[Callable[[], object]] = []
        self.copies: list[dict[bytes, bytes]] = [{}]
        self.publisher = FaultyPublisher(self)
        self.truth = Truth(self.ledger, self.publisher.read)
        accounts.add(self.ledger, self.publisher, {AGENT: cap}, "test")
        self.copy()

    def pass_time(self, ms: int) -> None:
        self.world.pass_time(ms)
        self.truth.time_is(self.world.ms)

    # --- runners ----------------------------------------------------------------------------------------------

    def start(self, slice_seconds: float) -> Runner:
        counter, transport = FaultyCounter(self), Queue(self)
        settings = replace(SETTINGS, slice_seconds=slice_seconds)
        wallet: Wallet | AsyncWallet = Wallet(Parts(counter, transport, None, None), settings)
        if self.runners and isinstance(self.runners[-1].wallet, Wallet):
            wallet = AsyncWallet(Parts(counter, transport, None, None), settings)
            wallet._in_loop = OfLoop(counter)
        wallet._book.now_ns = wallet._book.clock._now_ns = lambda: self.world.ms * 1_000_000
        wallet._book.leases.random = self.world.random.randbytes
        wallet._book.clock.hear(self.world.ms)
        # No threads: the test takes their steps.
        wallet._renewer.start = lambda: None
        wallet._sender.start = wallet._sender._rouse = lambda: None
        wallet._sender.tried.set()
        wallet._sender.backlog = lambda timeout_s: transport.backlog()
        runner = Runner(wallet, counter, transport)
        emit = wallet._book.emit

        def emit_and_tell(event: FinalizeEvent) -> None:
            runner.emitted.append(event)
            emit(event)

        wallet._book.emit = emit_and_tell
        self.runners.append(runner)
        return runner

    def reserve(self, runner: Runner, estimate: int) -> Call:
        hold = runner.wallet.reserve(self.agent, estimate, labels=self.labels)
        call = Call(hold if isinstance(hold, BaseHold) else in_a_loop(hold), runner)
        self.calls.append(call)
        self.truth.hold(call.hold)
        return call

    def end(self, call: Call, actual: int | None) -> None:
        """Finalize, or release where there is no cost."""
        self.calls.remove(call)
        if actual is None:
            call.hold.release()
            self.truth.release(call.hold)
        else:
            call.hold.finalize(actual)
            self.truth.finalize(call.runner.emitted[-1])

    def close_wallet(self, runner: Runner) -> None:
        """Its calls may still end, and their events are sent."""
        runner.closed = True
        runner.send()
        runner.wallet._book.close()
        runner.wallet._renewer.renew(hand_back=True)

    def kill(self, runner: Runner) -> None:
        """Nobody hears of it again."""
        self.calls = [call for call in self.calls if call.runner is not runner]
        book = runner.wallet._book
        self.truth.die([lease.id for lease in book.leases.all()], book.unsettled.events())
        self.runners.remove(runner)
        runner.counter.close()

    # --- worker -----------------------------------------------------------------------------------------------

    def settle(self, messages: list[tuple[int, list[FinalizeEvent]]], *, publish: bool = True) -> settle.Outcome:
        payloads = [event.to_wire() for _, events in messages for event in events]
        before = self.truth.rows()
        outcome = settle.settle(self.ledger, payloads, open_days(SETTINGS, self.world.ms))
        assert not outcome.dead_letters, ("P2", outcome.dead_letters)
        for where, row in self.truth.rows().items():
            spent = before[where].spent_micros if where in before else 0
            assert row.spent_micros <= max(spent, row.cap_micros), ("P1", where, row)
        if publish:
            self.publisher.publish(self.ledger, outcome.snapshots)
        return outcome

    def open(self) -> None:
        while self.openings:
            opening.open_on_request(self.ledger, self.publisher, *self.openings.pop(0))

    def answer_requests(self) -> None:
        """A worker that is there opens what a reserve waits for."""
        for runner in self.runners:
            runner.send()
        self.open()

    def a_minute_goes_by(self, paused: Runner | None = None) -> None:
        """The worker settles all there is, what is over expires, the agent is resumed.

        Every wallet renews in time, but for one that may be paused.
        """
        for _ in range(5):
            self.pass_time(10_000)
            for runner in self.runners:
                if runner is not paused:
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

        # A small world has few leases, and folds all that it can.
        all_of(lambda at: housekeeping.expire(self.ledger, self.publisher, settled_before_ms, at, fold_above=0))

    def reconcile(self) -> None:
        all_of(lambda place: housekeeping.reconcile(self.ledger, self.publisher, place))

    def cap(self) -> int:
        """The agent's, of the days to come."""
        with self.ledger.reading() as connection:
            its = agent_accounts.c.agent_account_id == AGENT
            return connection.scalar(sa.select(agent_accounts.c.daily_cap_micros).where(its)) or 0

    def set_cap(self, cap: int) -> None:
        accounts.set_cap(self.ledger, self.publisher, AGENT, cap, "test")

    def make_room(self) -> int:
        """Resume the agent and raise its cap where little could be lent: where all is spent, nothing more goes wrong.

        Returns what could be lent today if nobody had set aside more than is held.
        """
        today = (AGENT, day_of(self.world.ms))
        taken = sum(self.truth.taken_of(today).values())
        cap = max(self.truth.highest_cap.get(today, 0), taken + 100)
        self.set_status("active")
        if self.cap() < cap:
            self.set_cap(cap)
        return cap - taken

    def set_status(self, status: str) -> None:
        accounts.set_status(self.ledger, self.publisher, AGENT, status, "test")

    # --- the counter ------------------------------------------------------------------------------------------

    def copy(self) -> None:
        client = self.world.client
        self.copies.append({key: value for key in client.scan_iter() if (value := client.dump(key)) is not None})

    def delete(self, *keys: bytes | str) -> None:
        """Of the counter's data: these keys, or all."""
        if keys:
            self.world.client.delete(*keys)
        else:
            self.world.client.flushall()
        self.truth.known_seq.clear()

    def restart(self, kept: dict[bytes, bytes]) -> None:
        self.world.restart(kept)
        self.truth.known_seq.clear()
        self.late.clear()  # What was on its way was on connections to the server that was.
        self.publisher.close()

    def check_sum(self, refused: CapExceeded) -> None:
        assert adds_up(refused), refused

    def check_refusal(self, refused: CapExceeded) -> None:
        """P6, for a lone wallet without faults."""
        self.truth.check_refusal(refused, [call.hold for call in self.calls])

    # --- the end ----------------------------------------------------------------------------------------------

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
                runner.wallet._renewer.renew(hand_back=True)
                runner.send()
            while self.queue:
                self.settle([self.queue.pop(0)])
            self.open()
            self.expire()
            self.reconcile()
            self.truth.check()
            if not self.truth.lost() and not self.truth.set_aside():
                break
            self.pass_time(16_000)
        self.truth.check_level()
        assert not self.truth.lost(), ("P7", self.truth.lost())
        assert not self.truth.set_aside(), ("P5", self.truth.set_aside())

    def close(self) -> None:
        for runner in self.runners:
            runner.counter.close()
        self.publisher.close()
