"""The world: runners, a counter, a queue, workers and a ledger. Every step is one choice of a seeded random generator.

Real: the lease book, the top-up's steps, the Lua scripts, settle, open, expire, reconcile, caps, the ledger (SQLite).
Not real: the network, the queue and the clock. What can be lost, doubled, late or out of order is; runners are forked,
ended, killed and stopped; the counter is flushed, restarted empty, with old data, or as a replica that lagged behind.
"""

from __future__ import annotations

import random
from collections import Counter as Count
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from daycap import AgentPaused, BudgetUnavailable, CapExceeded, Hold, Settings
from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.errors import CounterUnavailable
from daycap.ledger import accounts, opening, settle, tables
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import open_days
from daycap.ledger.slices import all_of
from daycap.protocol.counter import AgentDay, Answer, DaySnapshot, PublishReply, SyncRequest
from daycap.protocol.labels import Labels
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet.hold import Pending
from daycap.wallet.lease import Lease
from daycap.wallet.lease_book import LeaseBook
from daycap.wallet.top_up import Answered, ReadPlan, Step, top_up
from tests.simulation.scripts_in_process import ScriptsInProcess, Store
from worker import housekeeping

SETTINGS = Settings(lease_ttl_seconds=30, grace_seconds=5, redis_timeout_seconds=0.25)
TERMS = SETTINGS.terms
_ACCOUNTS = sa.select(tables.agent_accounts)
_ROWS = sa.select(tables.daily_agent_spending).where(
    tables.daily_agent_spending.c.spending_date.in_(sa.bindparam("on", expanding=True))
)
"""Built once: they are read after each step."""

_MS = 1_000_000
_RESEND_MS = 15_000
_MOST_RUNNERS = 6


@dataclass(slots=True)
class Call:
    """A hold and what its call will cost."""

    hold: Hold
    actual: int

    @property
    def leases(self) -> tuple[Lease, ...]:
        """What it draws on: the lease of its agent's day, and those of other budgets."""
        route = self.hold._route
        return (self.hold._lease, *(route.others if route is not None else ()))


@dataclass(slots=True, eq=False)
class Runner:
    """One runner process: its lease book, its calls, when it goes on after it was stopped."""

    book: LeaseBook[Any]
    outgoing: list[FinalizeEvent] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    asking: set[str] = field(default_factory=set)
    stopped_until_ms: int = 0
    ending: bool = False
    slice_seconds: float = 0
    disturbed: bool = False
    """Whether an exchange got lost since it last renewed."""


@dataclass(slots=True)
class Late:
    """Something that arrives though nobody waits for it any more."""

    arrive: Callable[[], object]


class LaggingPublisher(CounterPublisher):
    """Publishes that get lost, come twice, or late and so out of order."""

    world: World

    def publish(self, ledger: Ledger, snapshots: Sequence[DaySnapshot], **options: Any) -> list[PublishReply | None]:
        def send() -> list[PublishReply | None]:
            return super(LaggingPublisher, self).publish(ledger, snapshots, **options)

        chance = self.world.chance()
        if not snapshots or chance > self.world.faults * 0.3:
            return send()
        if chance < self.world.faults * 0.1:
            return []  # Lost.
        if options.get("opened_at_ms") is None or chance < self.world.faults * 0.2:
            self.world.late.append(Late(send))
        if options.get("opened_at_ms") is None and chance < self.world.faults * 0.15:
            return send()  # Now, and once more later.
        return []


class World:
    """One simulated deployment. `faults` is how much goes wrong, 0 nothing, 1 a lot."""

    overage, most_over = 0.05, 20
    """How often a call costs more than it holds, and how much more."""

    end_s = 0.0
    """Until when a reservation asks again: it has no time to."""

    def __init__(self, ledger: Ledger, seed: int, *, faults: float, runners: int, agents: int, steps: int) -> None:
        self.rng = random.Random(seed)
        self.chance = self.rng.random
        self.faults = faults
        self.steps = steps
        self.trace: list[str] = []
        self.ledger = ledger
        self.began_ms = day_start_ms(self.first_day())
        self.now_ms = self.began_ms + DAY_MS - self.rng.choice([7_200_000, 60_000, 20_000])
        self.counter = ScriptsInProcess(lambda: self.now_ms)
        self.publisher = LaggingPublisher(self.counter, TERMS)
        self.publisher.world = self
        self.queue: list[tuple[int, list[FinalizeEvent]]] = []
        self.openings: list[tuple[str, str]] = []
        self.late: list[Late] = []
        self.copies: list[Store] = [{}]
        self.true_spent, self.excess = Count[AgentDay](), Count[AgentDay]()
        """Of each agent's day, or budget's period: what calls cost that held of it, and what they did not hold."""
        self.highest_cap: dict[AgentDay, int] = {}
        self.finalized: dict[str, FinalizeEvent] = {}
        self.unheard: set[str] = set()
        """Reservations whose runner died before a broker had their event: they may never be settled."""
        self.agents = {f"{seed}-{number}": self.rng.choice([50, 1_000, 10_000]) for number in range(agents)}
        accounts.add(ledger, CounterPublisher(self.counter, TERMS), dict(self.agents), "sim")
        self.runners = [self._new_runner() for _ in range(runners)]
        self.resting = False
        self._known_rows: dict[AgentDay, DaySnapshot] | None = None
        self._writing: tuple[Callable[[], None], ...] = (
            self._settle,
            self._open,
            self._rollover,
            self._expire,
            self._reconcile,
            self._change_cap,
            self._change_status,
        )
        self.lone = runners == 1 and faults == 0

    def first_day(self) -> str:
        """Return the day before whose end the world begins."""
        return "2026-03-02"

    # --- the schedule ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Take all steps, then let everything come to rest."""
        for _ in range(self.steps):
            self._step(self._all_steps())
        self.settle_down()

    def _all_steps(self) -> list[tuple[float, Callable[[], None]]]:
        often, fault = self.faults * 2, self.faults
        return [
            (8, self._reserve),
            (8, self._end_a_call),
            (6, self._send),
            (6, self._settle),
            (3, self._renew),
            (2, self._open),
            (3, self._pass_time),
            (1, self._expire),
            (0.5, self._reconcile),
            (0.5, self._resend),
            (0.5, self._rollover),
            (0.3, self._change_cap),
            (0.3, self._change_status),
            (0 if self.lone else 0.2, self._fork),
            (0 if self.lone else 0.2, self._end),
            (often, self._arrive_late),
            (fault * 0.5, self._lose_message),
            (fault * 0.5, self._double_message),
            (fault * 0.3, self._kill),
            (fault * 0.3, self._stop),
            (fault * 0.15, self._flush),
            (fault * 0.1, self._restart),
            (fault * 0.5, self._copy),
        ]

    def _step(self, steps: list[tuple[float, Callable[[], None]]]) -> None:
        weights, actions = zip(*steps, strict=True)
        (action,) = self.rng.choices(actions, weights)
        self.say(action.__name__.removeprefix("_"))
        action()
        if action in self._writing:
            self._known_rows = None
        self.check()

    def say(self, what: str) -> None:
        self.trace.append(f"{(self.now_ms - self.began_ms) / 1000:.3f} s  {what}")

    # --- runners ----------------------------------------------------------------------------------------------

    def _new_runner(self) -> Runner:
        outgoing: list[FinalizeEvent] = []
        slice_seconds = self.rng.choice([0, 2])
        book: LeaseBook[Any] = LeaseBook(
            outgoing.append,
            guard_ms=TERMS.guard_ms,
            slice_seconds=slice_seconds,
            now_ns=self._boot_ns,
            random=self.rng.randbytes,
        )
        book.clock.hear(self.now_ms)
        return Runner(book, outgoing, slice_seconds=slice_seconds)

    def _boot_ns(self) -> int:
        return self.now_ms * _MS

    def _awake(self) -> Runner | None:
        awake = [runner for runner in self.runners if runner.stopped_until_ms <= self.now_ms]
        return self.rng.choice(awake) if awake else None

    def _reserve(self) -> None:
        runner, agent = self._awake(), self.rng.choice(list(self.agents))
        if runner is None or runner.ending or agent in runner.asking:
            return
        cap = self.agents[agent]
        estimate = self.rng.choice([0, 1, cap // 20, cap // 5, cap // 2, cap])
        self._try_to_hold(runner, agent, estimate)

    def _try_to_hold(self, runner: Runner, agent: str, estimate: int, labels: Labels = ()) -> None:
        runner.asking.add(agent)
        steps = top_up(runner.book, agent, estimate, labels, end_s=self.end_s, ask_to_open=self._ask_to_open)
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._answer(runner, step)
                except (CounterUnavailable, BudgetUnavailable) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            self._hold(runner, done.value)
        except CapExceeded as refused:
            self._refused(runner, refused)
        except (AgentPaused, BudgetUnavailable):
            pass
        finally:
            runner.asking.discard(agent)

    def _ask_to_open(self, owner: str, period: str) -> None:
        self.openings.append((owner, period))

    def _answer(self, runner: Runner, step: Step) -> Answered:
        """Take one step of a reservation. Raises `CounterUnavailable`, or `BudgetUnavailable` as its time is over."""
        if isinstance(step, Pending):
            return self._exchange(runner, [each.request for each in step.all])
        assert not isinstance(step, ReadPlan), "this world has no plans"
        self._meanwhile(runner)
        return None

    def _refused(self, runner: Runner, refused: CapExceeded) -> None:
        if self.lone:
            self._check_refusal(runner, refused.agent, refused.estimate_micros)

    def _hold(self, runner: Runner, hold: Hold) -> None:
        over = self.chance() < self.overage
        actual = (
            hold.held_micros + self.rng.randrange(self.most_over) if over else self.rng.randrange(hold.held_micros + 1)
        )
        runner.calls.append(Call(hold, actual))

    def _exchange(self, runner: Runner, requests: list[SyncRequest]) -> list:  # type: ignore[type-arg]
        """One round trip to the counter, or what becomes of it."""
        chance = self.chance()
        if chance < self.faults * 0.1:
            self.late.append(Late(lambda: self.counter.sync(requests)))
            raise CounterUnavailable("lost on the way, or late")
        replies = self.counter.sync(requests)
        if chance < self.faults * 0.2:
            raise CounterUnavailable("the reply was lost")
        if chance < self.faults * 0.3:
            self._meanwhile(runner)
            self.now_ms += self.rng.choice([1, 500, 1_100, 31_000])
        return replies

    def _meanwhile(self, runner: Runner) -> None:
        """While this runner waits, others go on."""
        until_ms, runner.stopped_until_ms = runner.stopped_until_ms, 2**62
        others = [
            (weight, action)
            for weight, action in self._all_steps()
            if action not in (self._kill, self._stop, self._end)
        ]
        for _ in range(self.rng.randrange(3)):
            self._step(others)
        runner.stopped_until_ms = until_ms

    def _end_a_call(self) -> None:
        runner = self._awake()
        if runner is None or not runner.calls:
            return
        call = runner.calls.pop(self.rng.randrange(len(runner.calls)))
        if self.chance() < 0.15:
            call.hold.release()
        else:
            self._finalize(runner, call)

    def _finalize(self, runner: Runner, call: Call) -> None:
        leases = call.leases
        call.hold.finalize(call.actual)
        self._note_event(runner.outgoing[-1], call.hold.id, leases)

    def _note_event(self, event: FinalizeEvent, _hold: str, leases: Sequence[Lease]) -> None:
        self.finalized[event.reservation] = event
        helds = {share.budget: share.held_micros for share in event.also}
        for lease in leases:
            where, held = (lease.agent, lease.day), helds.get(lease.agent)
            self.true_spent[where] += event.actual_micros
            self.excess[where] += max(0, event.actual_micros - (event.held_micros if held is None else held))

    def _renew(self) -> None:
        runner = self._awake()
        if runner is None:
            return
        pending = runner.book.exchanges.begin_renewal(runner.book.exchanges.leases(), hand_back=self.chance() < 0.05)
        if not pending:
            return
        try:
            replies = self._exchange(runner, [each.request for each in pending])
        except CounterUnavailable:
            return
        for each, reply in zip(pending, replies, strict=True):
            runner.book.exchanges.apply(each, reply)
            if reply.answer is Answer.NOT_OPEN:
                self.openings.append((each.request.agent, each.request.day))

    def _send(self) -> None:
        runner = self._awake()
        if runner is not None and runner.outgoing:
            self.queue.append((self.now_ms, list(runner.outgoing)))
            runner.outgoing.clear()

    def _resend(self) -> None:
        runner = self._awake()
        if runner is not None:
            runner.outgoing.extend(runner.book.unsettled.stalled(_RESEND_MS * _MS))

    def _fork(self) -> None:
        """Of its parent the child has nothing but the settings."""
        if len(self.runners) < _MOST_RUNNERS:
            self.runners.append(self._new_runner())

    def _end(self) -> None:
        """A clean end: as `close` does it, until nothing is unsettled."""
        runner = self._awake()
        if runner is None or runner.asking or len(self.runners) == 1:
            return
        runner.ending = True
        while runner.calls:
            self._finalize(runner, runner.calls.pop())
        runner.book.close()
        self.queue.append((self.now_ms, list(runner.outgoing)))
        runner.outgoing.clear()
        with suppress(CounterUnavailable):
            pending = runner.book.exchanges.begin_renewal(runner.book.exchanges.leases(), hand_back=True)
            for each, reply in zip(pending, self._exchange(runner, [one.request for one in pending]), strict=True):
                runner.book.exchanges.apply(each, reply)
        # As the process ends, or after a close that waited for everything to settle.
        handed_over = self.rng.random() < 0.5
        with suppress(CounterUnavailable):
            pending = runner.book.exchanges.begin_farewell(handed_over=handed_over)
            for each, reply in zip(pending, self._exchange(runner, [one.request for one in pending]), strict=True):
                runner.book.exchanges.apply(each, reply)
        unsettled = runner.book.unsettled.events()
        if (handed_over or not unsettled) and runner in self.runners:
            self.unheard |= {event.reservation for event in unsettled}
            self.runners.remove(runner)

    def _kill(self) -> None:
        """Its calls go on at the provider and cost what they cost, though nobody will ever tell."""
        runner = self.rng.choice(self.runners)
        if runner.stopped_until_ms == 2**62:
            return
        for call in runner.calls:
            for lease in call.leases:
                self.true_spent[lease.agent, lease.day] += min(call.actual, call.hold.held_micros)
        sent = {event.reservation for _, events in self.queue for event in events}
        self.unheard |= {event.reservation for event in runner.book.unsettled.events()} - sent
        self.unheard |= {event.reservation for event in runner.book.unsettled.events()}
        self.runners[self.runners.index(runner)] = self._new_runner()

    def _stop(self) -> None:
        runner = self._awake()
        if runner is not None:
            runner.stopped_until_ms = self.now_ms + self.rng.choice([500, 20_000, 60_000])

    # --- queue and worker ---------------------------------------------------------------------------------------

    def _settle(self) -> None:
        count = self.rng.randrange(1, 4)
        if not self.queue:
            return
        some = [self.queue.pop(self.rng.randrange(len(self.queue))) for _ in range(min(count, len(self.queue)))]
        payloads = [event.to_wire() for _, events in some for event in events]
        outcome = settle.settle(self.ledger, payloads, open_days(SETTINGS, self.now_ms))
        assert not outcome.dead_letters, outcome.dead_letters
        if self.chance() > self.faults * 0.1:  # Killed between its commit and its publish; then it comes again.
            self.publisher.publish(self.ledger, outcome.snapshots)
        else:
            self.queue += some

    def _lose_message(self) -> None:
        if self.queue:
            self.queue.pop(self.rng.randrange(len(self.queue)))

    def _double_message(self) -> None:
        if self.queue:
            self.queue.append(self.rng.choice(self.queue))

    def _open(self) -> None:
        if self.openings:
            opening.open_on_request(self.ledger, self.publisher, *self.openings.pop())

    def _rollover(self) -> None:
        all_of(lambda place: opening.rollover(self.ledger, self.publisher, 3_600_000, place))

    def _expire(self) -> None:
        def settled_before_ms(now_ms: int) -> int:
            before_ms = min([sent_ms for sent_ms, _ in self.queue], default=now_ms)
            if (
                not self.resting and self.chance() < 0.3
            ):  # The queue is read first; what happens until the ledger is read does no harm.
                for _ in range(self.rng.randrange(3)):
                    self._step([(3, self._settle), (2, self._reserve), (2, self._end_a_call), (2, self._send)])
            return min(before_ms, now_ms)

        # A small world has few leases, and folds all that it can.
        all_of(lambda at: housekeeping.expire(self.ledger, self.publisher, settled_before_ms, at, fold_above=0))

    def _reconcile(self) -> None:
        all_of(lambda place: housekeeping.reconcile(self.ledger, self.publisher, place))

    def _change_cap(self) -> None:
        agent = self.rng.choice(list(self.agents))
        cap = self.rng.choice([0, self.agents[agent] // 2, self.agents[agent], self.agents[agent] * 2])
        self._note_caps(agent)
        accounts.set_cap(self.ledger, self.publisher, agent, cap, "sim")
        self._known_rows = None
        self._note_caps(agent)

    def _change_status(self) -> None:
        agent, status = self.rng.choice(list(self.agents)), self.rng.choice(["paused", "active", "active"])
        accounts.set_status(self.ledger, self.publisher, agent, status, "sim")

    # --- the counter ----------------------------------------------------------------------------------------------

    def _arrive_late(self) -> None:
        if self.late:
            self.late.pop(self.rng.randrange(len(self.late))).arrive()

    def _flush(self) -> None:
        self.counter.flush()

    def _copy(self) -> None:
        self.copies.append(self.counter.copy())

    def _restart(self) -> None:
        self.counter.restart(self.rng.choice(self.copies))
        self.late = []  # Connections to the server that was are gone.

    def _pass_time(self) -> None:
        self.now_ms += self.rng.choice([1, 200, 3_000, 10_000, 11_000, 20_000, 45_000])

    # --- what must be true ---------------------------------------------------------------------------------------

    def _rows(self) -> dict[AgentDay, DaySnapshot]:
        if self._known_rows is None:
            self._known_rows = self._read_rows()
        return self._known_rows

    def _read_rows(self) -> dict[AgentDay, DaySnapshot]:
        on = [day_of(self.now_ms + offset) for offset in (-DAY_MS, 0, DAY_MS)]
        with self.ledger.reading() as connection:
            status = {row.agent_account_id: row for row in connection.execute(_ACCOUNTS)}
            rows = {(row.agent_account_id, row.spending_date): row for row in connection.execute(_ROWS, {"on": on})}
        found = {}
        for where in ((agent, day) for agent in self.agents for day in on):
            row, account = rows.get(where), status[where[0]]
            books = (row.cap_micros, row.spent_micros) if row else (account.daily_cap_micros, 0)
            found[where] = DaySnapshot(*where, row.seq if row else 0, account.status, *books)
        return found

    def _note_caps(self, owner: str) -> None:
        for where, snapshot in self._rows().items():
            if where[0] == owner:
                self.highest_cap[where] = max(self.highest_cap.get(where, 0), snapshot.cap_micros)

    def check(self) -> None:
        """P1 and P4, after each step."""
        held = self._held(self.runners)
        for where, snapshot in self._rows().items():
            highest = self.highest_cap[where] = max(self.highest_cap.get(where, 0), snapshot.cap_micros)
            assert snapshot.spent_micros <= highest, ("P1", where, snapshot.spent_micros, highest)
            most = highest + self.counter.given_up.get(where, 0) + self.excess[where]
            spent = self.true_spent[where] + held[where]
            assert spent <= most, ("P4", where, f"spent and held {spent}", f"most {most}")

    @staticmethod
    def _held(runners: Sequence[Runner]) -> Count[AgentDay]:
        """Return what live calls hold of each agent's day, and of each budget's period."""
        held = Count[AgentDay]()
        for runner in runners:
            for call in runner.calls:
                for lease in call.leases:
                    held[lease.agent, lease.day] += call.hold.held_micros
        return held

    def _check_refusal(self, runner: Runner, agent: str, estimate: int) -> None:
        """P6: a lone runner is refused only when spent, held and the estimate would pass the cap."""
        day = day_of(self.now_ms)
        cap = self._rows()[agent, day].cap_micros
        total = self.true_spent[agent, day] + self._held([runner])[agent, day] + estimate
        assert total > cap, ("P6", agent, f"spent, held and estimate {total}", f"cap {cap}")

    def settle_down(self) -> None:
        """Everything ends and nothing fails any more: P2, P3, P5 and P7."""
        self.faults, self.resting = 0, True
        while self.late:
            self._arrive_late()
        for runner in self.runners:
            runner.stopped_until_ms = 0
            while runner.calls:
                call = runner.calls.pop()
                call.hold.release()
        for _ in range(12):
            for runner in self.runners:
                runner.outgoing.extend(runner.book.unsettled.stalled(_RESEND_MS * _MS))
                runner.book.close()
                self.queue.append((self.now_ms, list(runner.outgoing)))
                runner.outgoing.clear()
                self._sync_all(runner)
            self.queue = [message for message in self.queue if message[1]]
            while self.queue:
                self._settle()
            while self.openings:
                self._open()
            self._expire()
            self._reconcile()
            self.now_ms += 20_000
        self._known_rows = None
        self._check_rest()

    def _sync_all(self, runner: Runner) -> None:
        pending = runner.book.exchanges.begin_renewal(runner.book.exchanges.leases(), hand_back=True)
        for each, reply in zip(pending, self.counter.sync([each.request for each in pending]), strict=True):
            runner.book.exchanges.apply(each, reply)
            if reply.answer is Answer.NOT_OPEN:
                self.openings.append((each.request.agent, each.request.day))

    def _check_rest(self) -> None:
        with self.ledger.reading() as connection:
            found = {
                row.reservation_id: row
                for agent in self.agents
                for row in connection.execute(
                    tables.settlements.select().where(tables.settlements.c.agent_account_id == agent)
                )
            }
        for reservation, event in self.finalized.items():
            row = found.get(reservation)
            if row is None:
                assert reservation in self.unheard, ("P7", reservation, "was never settled")
                continue
            assert (row.held_micros, row.actual_micros) == (event.held_micros, event.actual_micros), ("P2", reservation)
        assert found.keys() <= self.finalized.keys(), ("P2", "settled, but never finalized")
        rows, charged = self._rows(), self._charged(found)
        for (where, snapshot), reading in zip(rows.items(), self.counter.read(list(rows)), strict=True):
            assert snapshot.spent_micros == charged[where], ("P3", where, snapshot.spent_micros, charged[where])
            if reading is not None and self._is_enforced(where[0]):
                said = (reading.seq, reading.status, reading.cap_micros, reading.spent_micros)
                kept = (snapshot.seq, snapshot.status, snapshot.cap_micros, snapshot.spent_micros)
                assert said == kept, ("P3", where, "counter", said, "ledger", kept)
                assert reading.leased_micros == 0, ("P5", where, "leased", reading.leased_micros)

    def _is_enforced(self, _owner: str) -> bool:
        """Return whether the counter must be level with the ledger."""
        return True

    def _charged(self, settled: Mapping[str, Any]) -> Count[AgentDay]:
        """Return what the settlements, by reservation, charged to each agent's day."""
        charged = Count[AgentDay]()
        for row in settled.values():
            charged[row.agent_account_id, row.spending_date] += row.charged_micros
        return charged
