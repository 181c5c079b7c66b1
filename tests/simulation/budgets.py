"""The world with budgets: groups of agents, periods, labels, and changes of all of these while calls are under way.

Every promise is checked for every budget's period, against what the world itself knows: which budgets a call counted in
when it was reserved, and what it cost. Agents of one process wait for the counter at the same time, as threads do.
"""

from __future__ import annotations

import json
import math
from collections import Counter as Count
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from daycap import BudgetUnavailable, CapExceeded, Hold
from daycap.clock import day_of
from daycap.errors import CounterUnavailable
from daycap.ledger import budgets, groups, tables
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.snapshots import read_rows
from daycap.periods import PeriodRule
from daycap.protocol.counter import ACTIVE, PAUSED, AgentDay, Answer, DaySnapshot, LeaseKey, SyncReply, SyncRequest
from daycap.protocol.labels import Labels
from daycap.protocol.plan import ENFORCE
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet.hold import Pending
from daycap.wallet.lease import Lease
from daycap.wallet.top_up import Answered, Pause, ReadPlan, Step, top_up
from tests.refused import adds_up
from tests.simulation.definitions import CALLS, RULES, SCOPES, Definitions, Known, some_budget
from tests.simulation.world import TERMS, Late, Runner, World

_PERIODS = sa.select(tables.budget_periods, tables.budgets.c.removed_at).join_from(
    tables.budget_periods, tables.budgets
)
_COUNTED = sa.select(
    tables.settlements.c.reservation_id, tables.contexts.c.budgets, tables.contexts.c.labels
).join_from(tables.settlements, tables.contexts, tables.settlements.c.context_id == tables.contexts.c.context_id)

_MOST_STEPS = 40
"""A reservation at rest that takes so many never ends."""

_WINDOW_NS = 100_000_000
"""A shorter window than this tells a renewal nothing about the rate of use."""


class BudgetsWorld(World):
    """`budgets`: how many there are at first. Other parameters: see `World`."""

    overage, most_over = 0.15, 200
    end_s = math.inf

    def __init__(self, *args: Any, budgets: int, **options: Any) -> None:
        self.versions: list[tuple[int, Definitions]] = []
        super().__init__(*args, **options)
        self.known = Definitions({"inner": set(), "outer": set()}, nested=self.chance() < 0.7)
        self.reserved: dict[str, tuple[AgentDay, ...]] = {}
        """The budget periods that each call counts in since it was reserved."""
        self.labels: dict[str, Labels] = {}
        self.asked: dict[tuple[Runner, str], Labels] = {}
        """The labels of each agent's question in each runner."""
        self.drawn, self.unleased = Count[str](), Count[AgentDay]()
        """What calls cost by lease; and by budget period where they had none, because it only watched."""
        self.taken = self.trouble = 0
        """How many steps were taken, and how often a question had to give up."""
        self._begin(budgets)
        changes = (self._change_budget, self._replace_budget, self._change_mode, self._change_members)
        self._writing = (*self._writing, *changes)

    def first_day(self) -> str:
        """Return a day at whose end a month ends, or clocks change, or neither."""
        return self.rng.choice(["2026-03-02", "2026-03-31", "2026-03-28", "2026-10-24", "2026-10-31"])

    def _begin(self, count: int) -> None:
        publisher = CounterPublisher(self.counter, TERMS)
        for name in self.known.members:
            self.known.members[name] = {agent for agent in sorted(self.agents) if self.chance() < 0.7}
            inner = ["inner"] if name == "outer" and self.known.nested else []
            groups.add(self.ledger, publisher, name, self.known.members[name], inner, "sim")
        for number in range(count):
            known = self.known.put(f"b{number}", some_budget(self.rng, self.agents))
            budgets.add(self.ledger, publisher, f"b{number}", known.facts(), "sim")
        self._note_version()

    def _note_version(self) -> None:
        self.versions.append((self.now_ms, self.known.copy()))

    def _all_steps(self) -> list[tuple[float, Callable[[], None]]]:
        return [
            *super()._all_steps(),
            (1, self._settle_part),
            (0.5, self._change_budget),
            (0.2, self._replace_budget),
            (0.2, self._change_mode),
            (0.3, self._change_members),
        ]

    def _step(self, steps: list[tuple[float, Callable[[], None]]]) -> None:
        self.taken += 1
        super()._step(steps)

    # --- definitions ------------------------------------------------------------------------------------------

    def _some_name(self) -> str | None:
        return self.rng.choice(sorted(self.known.budgets)) if self.known.budgets else None

    def _change_budget(self) -> None:
        """Another cap."""
        if (name := self._some_name()) is None:
            return
        known = self.known.budgets[name]
        cap = self.rng.choice([0, known.cap // 2, known.cap, known.cap * 2])
        self._note_caps(known.id)
        budgets.alter(self.ledger, self.publisher, name, {"cap_micros": cap}, "sim")
        self._known_rows = None
        self._note_caps(known.id)
        self.known.budgets[name] = replace(known, cap=cap or known.cap)
        self._note_version()

    def _change_mode(self) -> None:
        if (name := self._some_name()) is None:
            return
        mode = self.rng.choice(["enforce", "enforce", "watch"])
        budgets.alter(self.ledger, self.publisher, name, {"mode": mode}, "sim")
        self.known.budgets[name] = replace(self.known.budgets[name], mode=mode)
        self._note_version()

    def _replace_budget(self) -> None:
        """Remove one, add one again, or change its scope or periods, which makes another of it."""
        chance, name = self.chance(), f"b{self.rng.randrange(4)}"
        if name not in self.known.budgets:
            known = self.known.put(name, some_budget(self.rng, self.agents))
            budgets.add(self.ledger, self.publisher, name, known.facts(), "sim")
        elif chance < 0.5:
            del self.known.budgets[name]
            budgets.remove(self.ledger, self.publisher, name, "sim")
        else:
            old = self.known.budgets[name]
            new = replace(old, rule=self.rng.choice(RULES), labels=self.rng.choice(SCOPES))
            if (new.rule, new.labels) != (old.rule, old.labels):
                new = self.known.put(name, new)
                facts = {fact: new.facts()[fact] for fact in ("period", "labels")}
                budgets.alter(self.ledger, self.publisher, name, facts, "sim")
        self._note_version()

    def _change_members(self) -> None:
        group, agent = self.rng.choice(["inner", "outer"]), self.rng.choice(sorted(self.agents))
        if self.chance() < 0.2:
            change = groups.leave if self.known.nested else groups.join
            change(self.ledger, self.publisher, "outer", [], ["inner"], "sim")
            self.known.nested = not self.known.nested
        elif agent in self.known.members[group]:
            groups.leave(self.ledger, self.publisher, group, [agent], [], "sim")
            self.known.members[group].remove(agent)
        else:
            groups.join(self.ledger, self.publisher, group, [agent], [], "sim")
            self.known.members[group].add(agent)
        self._note_version()

    # --- runners ----------------------------------------------------------------------------------------------

    def _meanwhile(self, runner: Runner) -> None:
        """While one thread of this runner waits, the others go on, and other runners."""
        never = (self._kill, self._stop, self._end)
        steps = [(weight, step) for weight, step in self._all_steps() if step not in never]
        for _ in range(self.rng.randrange(3)):
            self._step(steps)

    def _try_to_hold(self, runner: Runner, agent: str, estimate: int, labels: Labels = ()) -> None:
        labels = self.asked[runner, agent] = self.rng.choice(CALLS)
        before, steps, trouble, holds = self._set_aside(runner), self.taken, self.trouble, len(self.reserved)
        known = Count({lease: lease.granted - lease.returned - lease.drawn for lease in runner.book.leases.all()})
        super()._try_to_hold(runner, agent, estimate, labels)
        if (self.taken, self.trouble, len(self.reserved)) == (steps, trouble, holds):
            more = self._set_aside(runner) - (before | known)
            assert not more, ("P11", "set aside by a refused reserve", [(each.agent, more[each]) for each in more])

    def _set_aside(self, runner: Runner) -> Count[Lease]:
        """Return what the counter has set aside for this runner's leases."""
        leases = runner.book.leases.all()
        found = self.counter.leases([(lease.agent, lease.day) for lease in leases])
        pairs = zip(leases, found, strict=True)
        return Count({lease: each[lease.id].outstanding_micros for lease, each in pairs if lease.id in each})

    def _answer(self, runner: Runner, step: Step) -> Answered:
        if isinstance(step, Pause):
            if self.chance() < 0.3:
                self.trouble += 1
                raise BudgetUnavailable("no time is left")
            self._meanwhile(runner)
            return None
        return self._read_plan(runner, step) if isinstance(step, ReadPlan) else super()._answer(runner, step)

    def _read_plan(self, runner: Runner, step: ReadPlan) -> tuple[int, str] | None:
        chance = self.chance()
        if chance < 0.2:
            self._meanwhile(runner)
        plan = self.counter.read_plan(*step)
        if chance > 1 - self.faults * 0.2:
            self.trouble += 1
            raise CounterUnavailable("the plan was lost on the way")
        if chance > 0.8:
            self._meanwhile(runner)
        return plan

    def _exchange(self, runner: Runner, requests: list[SyncRequest]) -> list[SyncReply]:
        """One round trip to several counters: others go on between one and the next, and some may not be reached."""
        asks = any(request.need_micros for request in requests)
        # A refusal of a lone runner is looked at after it was decided: nothing happens while money is handed back.
        chance, slow = self.chance(), 0.15 if asks else 0 if self.lone else 0.02
        arrive = requests if chance >= self.faults * 0.1 else requests[: self.rng.randrange(len(requests) + 1)]
        replies: list[SyncReply] = []
        for request in arrive:
            if self.chance() < slow:
                self._meanwhile(runner)
            replies += self.counter.sync([request])
        if late := requests[len(arrive) :]:
            self.late.append(Late(lambda: self._arrive(runner, late)))
        for request, reply in zip(arrive, replies, strict=True):
            if reply.answer is Answer.FENCED and not self.faults:
                assert self._may_be_fenced(request.agent), ("P6", "fenced", request)
        if chance < self.faults * 0.2:
            self.trouble += 1
            runner.disturbed = True
            raise CounterUnavailable("lost on the way, or late, or the reply was lost")
        if self.chance() < max(slow, self.faults * 0.1):
            self._meanwhile(runner)
            if (passed_ms := self.rng.choice([1, 500, 1_100, 31_000 if self.faults else 1])) > TERMS.guard_ms:
                self.trouble += 1
                runner.disturbed = True
            self.now_ms += passed_ms
        return replies

    def _arrive(self, runner: Runner, requests: list[SyncRequest]) -> None:
        runner.disturbed = True
        self.counter.sync(requests)

    def _hold(self, runner: Runner, hold: Hold) -> None:
        super()._hold(runner, hold)
        for lease in runner.calls[-1].leases:
            assert self._boot_ns() < lease.deadline_ns, ("P4", "held past the deadline", lease.agent, lease.day)
        labels = self.asked[runner, hold.agent]
        route = hold._route
        shares = route.shares if route is not None else ()
        counted = {share.budget: share.period for share in shares}
        modes = {share.budget: "enforce" if share.lease else "watch" for share in shares}
        since_ms = 0 if self.faults else self.now_ms - TERMS.ttl_ms
        ends = [*(at_ms for at_ms, _ in self.versions[1:]), 2**62]
        possible = [
            version.of_call(hold.agent, labels)
            for (_, version), end_ms in zip(self.versions, ends, strict=True)
            if end_ms >= since_ms
        ]
        assert modes in possible, ("P12", hold.agent, labels, "counts in", modes, "and not in", possible[-1])
        now = {budget: self._rule(budget).at(self.now_ms).id for budget in counted}
        assert counted == now, ("P12", "periods", counted, "at", now)
        self.reserved[hold.id] = tuple(sorted(counted.items()))
        self.labels[hold.id] = labels

    def _may_be_fenced(self, owner: str) -> bool:
        """Whether the ledger may have had the period before the counter: of events that held nothing of the budget."""
        versions = [version.budgets.values() for _, version in self.versions]
        return "/" in owner and any(each.id == owner and each.mode != ENFORCE for some in versions for each in some)

    def _definition(self, budget: str) -> Known:
        """Return what the budget is, or was when it was removed."""
        return next(
            known for _, version in reversed(self.versions) for known in version.budgets.values() if known.id == budget
        )

    def _rule(self, budget: str) -> PeriodRule:
        return PeriodRule.from_json(dict(self._definition(budget).rule))

    def _settle_part(self) -> None:
        """A call that lasts is charged for what it has cost so far."""
        runner = self._awake()
        if runner is None or not runner.calls:
            return
        call = self.rng.choice(runner.calls)
        leases = call.leases
        call.hold.settle_part(self.rng.randrange(call.hold.held_micros + 1))
        self._note_event(runner.outgoing[-1], call.hold.id, leases)
        call.actual = min(call.actual, call.hold.held_micros)

    def _note_event(self, event: FinalizeEvent, hold: str, leases: Sequence[Lease]) -> None:
        super()._note_event(event, hold, leases)
        # A part has a number of its own, and counts where its hold does.
        self.reserved[event.reservation], self.labels[event.reservation] = self.reserved[hold], self.labels[hold]
        helds = {share.budget: share.held_micros for share in event.also}
        for lease in leases:
            held = helds.get(lease.agent)
            self.drawn[lease.id] += min(event.actual_micros, event.held_micros if held is None else held)
        leased = {(lease.agent, lease.day) for lease in leases}
        for where in self.reserved[hold]:
            if where not in leased:
                self.unleased[where] += event.actual_micros

    def _renew(self) -> None:
        """As the renewer does it: once more for leases whose free money is wanted elsewhere."""
        if (runner := self._awake()) is None:
            return
        leases, hand_back = runner.book.exchanges.leases(), self.chance() < 0.05
        ripe = all(self._boot_ns() - lease.window_ns >= _WINDOW_NS for lease in leases)
        steps = self.taken
        for _ in range(2):
            pending = runner.book.exchanges.begin_renewal(leases, hand_back=hand_back)
            if not pending:
                break
            try:
                replies = self._exchange(runner, [each.request for each in pending])
            except CounterUnavailable:
                return
            leases = []
            for each, reply in zip(pending, replies, strict=True):
                if runner.book.exchanges.apply(each, reply):
                    leases.append(each.lease)
                if reply.answer is Answer.NOT_OPEN:
                    self.openings.append((each.request.agent, each.request.day))
                    ripe = False
            hand_back = True
        quiet = ripe and self.taken == steps and not runner.asking and not runner.slice_seconds
        if quiet and not runner.disturbed:
            self._check_needed(runner)
        runner.disturbed = False

    # --- what must be true ---------------------------------------------------------------------------------------

    def _read_rows(self) -> dict[AgentDay, DaySnapshot]:
        with self.ledger.reading() as connection:
            periods = connection.execute(_PERIODS).all()
        found = super()._read_rows()
        for row in periods:
            status = ACTIVE if row.removed_at is None else PAUSED
            books = (row.seq, status, row.cap_micros, row.spent_micros, row.drawn_micros)
            found[row.budget_id, row.period_id] = DaySnapshot(row.budget_id, row.period_id, *books)
        return found

    def check(self) -> None:
        """And that no lease has given out more than it has."""
        super().check()
        for runner in self.runners:
            for lease in runner.book.leases.all():
                assert lease.free >= 0, ("P4", "free", lease.agent, lease.day, lease.free)

    def _check_needed(self, runner: Runner) -> None:
        """P11: a renewal leaves nothing set aside but for what calls hold, and for costs that are not settled."""
        held = Count[str]()
        for call in runner.calls:
            for lease in call.leases:
                held[lease.id] += call.hold.held_micros
        leases = runner.book.leases.all()
        aside = self.counter.leases([(lease.agent, lease.day) for lease in leases])
        totals = self.counter.read_leases([LeaseKey(lease.agent, lease.day, lease.id) for lease in leases])
        for lease, each, total in zip(leases, aside, totals, strict=True):
            if lease.id in each and total is not None:
                most = held[lease.id] + self.drawn[lease.id] - total.drawn_micros
                said = each[lease.id].outstanding_micros
                assert said <= most, ("P11", lease.agent, lease.day, "set aside", said, "needed", most)

    def _refused(self, runner: Runner, refused: CapExceeded) -> None:
        assert adds_up(refused), ("P13", refused)
        if not self.lone:
            return
        held, rows = self._held([runner]), self._rows()
        for each in refused.full:
            where = (each.budget or refused.agent, each.period)
            total = self.true_spent[where] + self.unleased[where]
            total += held[where] + refused.estimate_micros
            assert total > each.cap_micros, (
                "P6",
                where,
                "spent, held and estimate",
                total,
                "cap",
                rows[where].cap_micros,
            )

    def _is_enforced(self, owner: str) -> bool:
        """Nobody leases from a budget that only watches."""
        return "/" not in owner or self._definition(owner).mode == ENFORCE

    def _charged(self, settled: Mapping[str, Any]) -> Count[AgentDay]:
        """P12 and P3: every event counts in the budgets and periods it was reserved for, and in no other."""
        with self.ledger.reading() as connection:
            found = {row.reservation_id: row for row in connection.execute(_COUNTED)}
            shortfalls = connection.execute(tables.shortfalls.select()).all()
            periods = {(row.budget_id, row.period_id): row for row in connection.execute(_PERIODS)}
        charged, events, short = super()._charged(settled), Count[AgentDay](), Count[AgentDay]()
        for reservation, row in settled.items():
            context = found.get(reservation)
            said = tuple(
                sorted((budget, period) for budget, period in json.loads(context.budgets if context else "[]"))
            )
            labels = json.loads(context.labels) if context else {}
            assert said == self.reserved[reservation], ("P12", reservation, said, self.reserved[reservation])
            assert labels == dict(self.labels[reservation]), ("P12", reservation, labels, self.labels[reservation])
            for where in said:
                charged[where] += row.actual_micros
                events[where] += 1
        for row in shortfalls:
            short[row.budget_id, row.period_id] += row.uncovered_micros
        for where, row in periods.items():
            charged[where] -= short[where]
            books = (row.uncovered_micros, row.settled_count)
            assert books == (short[where], events[where]), ("P3", where, books, short[where], events[where])
        return charged

    def _check_rest(self) -> None:
        super()._check_rest()
        for agent in self.agents:
            for labels in sorted(set(CALLS)):
                self._check_room(agent, labels)

    def _check_room(self, agent: str, labels: Labels) -> None:
        """What is left of all its budgets can be reserved, to the last micro, and not more; P13 says why not."""
        owners = [id_ for id_, mode in self.known.of_call(agent, labels).items() if mode == ENFORCE]
        wanted = [(agent, day_of(self.now_ms)), *((owner, self._rule(owner).at(self.now_ms).id) for owner in owners)]
        with self.ledger.reading() as connection:
            rows = read_rows(connection, wanted)
        if rows[0].status != ACTIVE:
            return
        room = {where: row.remaining_micros for where, row in zip(wanted, rows, strict=True)}
        most = min(room.values())
        runner = self._new_runner()
        if most:
            hold = self._surely(runner, agent, most, labels)
            assert isinstance(hold, Hold), ("P6", agent, labels, room, hold)
            hold.release()
        refused = self._surely(runner, agent, most + 1, labels)
        assert isinstance(refused, CapExceeded), ("P1", agent, labels, room, refused)
        named = {(each.budget or agent, each.period) for each in refused.full}
        assert named == {where for where, left in room.items() if left == most}, ("P13", agent, labels, room, named)
        runner.book.close()
        self._sync_all(runner)
        self._known_rows = None

    def _surely(self, runner: Runner, agent: str, estimate: int, labels: Labels) -> Hold | Exception:
        """Reserve while nothing else happens and nothing fails; what is asked for is opened."""
        steps = top_up(runner.book, agent, estimate, labels, end_s=math.inf, ask_to_open=self._ask_to_open)
        step = next(steps, None)
        try:
            for _ in range(_MOST_STEPS):
                if isinstance(step, Pending):
                    step = steps.send(self.counter.sync([each.request for each in step.all]))
                elif isinstance(step, ReadPlan):
                    step = steps.send(self.counter.read_plan(*step))
                else:
                    self.now_ms += 50
                    while self.openings:
                        self._open()
                    step = steps.send(None)
        except StopIteration as done:
            return done.value
        except CapExceeded as refused:
            return refused
        return AssertionError("asks for ever")
