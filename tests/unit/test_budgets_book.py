"""The lease book with several budgets: a hold draws on a lease of each, all or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from daycap import AgentPaused, BudgetUnavailable, CapExceeded
from daycap.errors import CounterUnavailable
from daycap.periods import PeriodRule
from daycap.protocol.counter import ACTIVE, PAUSED, DaySnapshot, LeaseTotals, SyncReply
from daycap.protocol.plan import WATCH, Plan, PlannedBudget, plan_text
from daycap.protocol.runs import new_run
from daycap.protocol.wire import FinalizeEvent, Share
from daycap.wallet.hold import Pending, kinds
from daycap.wallet.top_up import Pause, ReadPlan, top_up
from tests.runner_without_io import DAY, MIDNIGHT_MS, TERMS, Runner
from tests.unit.test_interrupted import HOLDS, Interrupted, at_each_bytecode

HOUR = PeriodRule("hour")
PLANNED = (
    PlannedBudget("brake/1", HOUR),
    PlannedBudget("month/1", PeriodRule("month", "Europe/Zurich")),
    PlannedBudget("searches/1", PeriodRule("day"), (("tool", ("search",)),)),
    PlannedBudget("seen/1", PeriodRule("day"), mode=WATCH),
)
CAPS = {"brake/1": 40_000, "month/1": 90_000, "searches/1": 10_000}
SEEN = Share("seen/1", DAY)


class Budgeted(Runner):
    """A runner on a counter that has budgets; `shares` says which period of each is open."""

    back_is_lost = False
    """Whether the counter hears of no money that a question hands back."""

    def __init__(self, other: Budgeted | None = None, planned: tuple[PlannedBudget, ...] = PLANNED) -> None:
        super().__init__(other)
        self.book.exchanges.slice_seconds = 0
        if other is None:
            self.plan(1, planned)
            for each in planned:
                if each.mode != WATCH:
                    self.open(each)

    def plan(self, number: int, planned: tuple[PlannedBudget, ...], seq: int = 2) -> None:
        text = plan_text(planned)
        snapshot = DaySnapshot("agent", DAY, seq, ACTIVE, 100_000, 0, repairs=True, plan=number, plan_text=text)
        self.counter.publish([snapshot], TERMS)

    def open(self, each: PlannedBudget, *, status: str = ACTIVE) -> None:
        period = each.rule.at(self.ms)
        snapshot = DaySnapshot(each.budget, period.id, 1, status, CAPS[each.budget], 0)
        snapshot = snapshot._replace(span=(period.start_ms, period.end_ms))
        self.counter.publish([snapshot], TERMS, first_until_ms=self.ms + 10_000)

    def reserve(self, estimate: int, **labels: str) -> Any:
        """As a wallet does: ask until the answer is final."""
        steps = top_up(
            self.book, "agent", estimate, tuple(sorted(labels.items())), end_s=0, ask_to_open=lambda *_: None
        )
        answer: Any = None
        step: Any
        while True:
            try:
                step = steps.throw(answer) if isinstance(answer, CounterUnavailable) else steps.send(answer)
            except StopIteration as done:
                return done.value
            if isinstance(step, ReadPlan):
                answer = self.counter.read_plan(*step)
            elif isinstance(step, Pending) and self.back_is_lost and step.ended:
                answer = CounterUnavailable("away")
            else:
                answer = None if isinstance(step, Pause) else self.counter.sync([each.request for each in step.all])

    def lease(self, budget: str) -> Any:
        return self.book.leases.current[budget]

    def aside(self, budget: str) -> int:
        """What the counter has set aside of a budget now."""
        rule = next((each.rule for each in PLANNED if each.budget == budget), PeriodRule("day"))
        (reading,) = self.counter.read([(budget, rule.at(self.ms).id)])
        assert reading is not None
        return reading.leased_micros


@pytest.fixture
def runner() -> Budgeted:
    return Budgeted()


def test_each_budget_lends_the_estimate(runner: Budgeted) -> None:
    hold = runner.reserve(5_000, tool="search")

    assert {owner: lease.held for owner, lease in runner.book.leases.current.items()} == {
        "agent": 5_000,
        "brake/1": 5_000,
        "month/1": 5_000,
        "searches/1": 5_000,
    }
    assert hold.labels == {"tool": "search"}
    hold.finalize(4_000)
    (event,) = runner.events
    assert [(share.budget, share.period) for share in event.also] == [
        ("brake/1", "2026-11-24T23+00"),
        ("month/1", "2026-11"),
        ("searches/1", DAY),
        ("seen/1", DAY),
    ]
    assert event.also[-1] == SEEN
    assert (event.plan, event.labels) == (1, (("tool", "search"),))
    assert FinalizeEvent.from_wire(event.to_wire()) == event
    for budget in ("agent", "brake/1", "month/1", "searches/1"):
        assert runner.lease(budget).free == 1_000


def test_calls_without_the_label_draw_less(runner: Budgeted) -> None:
    hold = runner.reserve(50, tool="mail")
    hold.finalize(50)

    assert [share.budget for share in runner.events[0].also] == ["brake/1", "month/1", "seen/1"]


def test_memory_serves_what_all_have_free(runner: Budgeted) -> None:
    runner.reserve(5_000).release()
    hold = runner.book.reserve("agent", 5_000)
    assert hold is not None
    assert runner.book.reserve("agent", 1) is None
    hold.release()

    runner.lease("brake/1").returned += 1
    assert runner.book.reserve("agent", 5_000) is None, "one of them lacks a micro"
    assert [lease.out for lease in runner.book.leases.all()] == [0, 0, 0]


@pytest.mark.parametrize("dead", ["agent", "brake/1", "month/1"])
def test_no_hold_past_the_deadline_of_any(runner: Budgeted, dead: str) -> None:
    runner.reserve(5_000).release()
    runner.lease(dead).deadline_ns = runner.ms * 1_000_000

    assert runner.book.reserve("agent", 5_000) is None
    assert [lease.free for lease in runner.book.leases.all()] == [5_000] * 3


def test_refusal_names_all_that_are_full(runner: Budgeted) -> None:
    runner.reserve(9_000, tool="search").finalize(9_000)
    runner.reserve(31_000).finalize(31_000)

    with pytest.raises(CapExceeded) as refused:
        runner.reserve(2_000, tool="search")

    error = refused.value
    assert [(full.budget, full.cap_micros) for full in error.full] == [("brake/1", 40_000), ("searches/1", 10_000)]
    assert (error.budget, error.period, error.cap_micros) == ("brake/1", "2026-11-24T23+00", 40_000)
    for full in error.full:
        parts = (full.spent_micros, full.held_micros, full.waiting_micros, full.leased_micros, full.remaining_micros)
        assert sum(parts) == full.cap_micros
    assert "budget brake" in str(error)
    assert "budget searches" in str(error)
    assert error.retry_after_s == 3_600.0


def test_own_cap_is_named_first(runner: Budgeted) -> None:
    with pytest.raises(CapExceeded) as refused:
        runner.reserve(100_001)
    assert [full.budget for full in refused.value.full] == [None, "brake/1", "month/1"]
    assert refused.value.retry_after_s is None


def test_refused_leaves_nothing_set_aside(runner: Budgeted) -> None:
    """P11: what the others granted goes back at once."""
    with pytest.raises(CapExceeded):
        runner.reserve(20_000, tool="search")

    assert [runner.aside(budget) for budget in ("agent", "brake/1", "month/1", "searches/1")] == [0, 0, 0, 0]
    assert [runner.lease(budget).free for budget in ("agent", "brake/1", "month/1")] == [0, 0, 0]


def test_paused_leaves_nothing_set_aside(runner: Budgeted) -> None:
    """P11: what the other budgets granted goes back at once, in one exchange."""
    runner.reserve(1).release()
    exchanges = asked = 0
    runner.counter.publish([DaySnapshot("agent", DAY, 3, PAUSED, 100_000, 0, repairs=True, plan=1)], TERMS)
    sync = runner.counter.sync

    def counted(requests: Any) -> list[SyncReply]:
        nonlocal exchanges, asked
        exchanges, asked = exchanges + 1, asked + len(requests)
        return sync(requests)

    runner.counter.sync = counted
    with pytest.raises(AgentPaused):
        runner.reserve(5_000)

    assert [runner.aside(budget) for budget in ("brake/1", "month/1")] == [1, 1]
    assert (exchanges, asked) == (2, 5)


def test_out_of_time_leaves_nothing_set_aside(runner: Budgeted) -> None:
    """P11: one budget is not open, and the others granted in an earlier round."""
    runner.counter._days.pop(("brake/1", HOUR.at(runner.ms).id))

    with pytest.raises(BudgetUnavailable, match="not open"):
        runner.reserve(5_000)

    assert [runner.aside(budget) for budget in ("agent", "month/1")] == [0, 0]


def test_refused_although_nothing_can_go_back(runner: Budgeted) -> None:
    """A refusal stays one if the counter is away by then; a renewal hands the money back."""
    runner.back_is_lost = True
    with pytest.raises(CapExceeded):
        runner.reserve(20_000, tool="search")
    assert runner.aside("month/1") == 20_000

    runner.ms += 100
    runner.renew()
    assert runner.aside("month/1") == 0


def test_a_closed_day_is_opened_before_its_plan_is_read(runner: Budgeted) -> None:
    """A counter that lost its data has no plan to read: the day must be opened."""
    runner.reserve(1).release()
    runner.plan(2, PLANNED[1:], seq=3)
    runner.renew()
    assert runner.book.exchanges.lacks_plan("agent")
    runner.counter.flush()
    wanted = []

    steps = top_up(runner.book, "agent", 5, end_s=0, ask_to_open=lambda *where: wanted.append(where))
    pending: Any = next(steps)
    with pytest.raises(BudgetUnavailable, match="not open"):
        steps.send(runner.counter.sync([each.request for each in pending.all]))

    assert ("agent", DAY) in wanted


def test_unanswered_question_earmarks_nothing(runner: Budgeted) -> None:
    runner.reserve(3_000).release()
    pending = runner.book.exchanges.begin_top_up("agent", 5_000)
    assert [each.earmarked for each in pending.all] == [3_000] * 3
    runner.book.exchanges.abandon(pending)

    assert [lease.free for lease in runner.book.leases.all()] == [3_000] * 3
    assert [lease.questions for lease in runner.book.leases.all()] == [{}, {}, {}]


def test_only_what_lacks_money_is_asked(runner: Budgeted) -> None:
    runner.reserve(3_000).release()
    runner.lease("month/1").granted += 5_000  # As after another agent's hold was released.
    pending = runner.book.exchanges.begin_top_up("agent", 5_000)

    assert [each.request.agent for each in pending.all] == ["agent", "brake/1"]
    assert [(each.request.agent, each.earmarked) for each in pending.kept] == [("month/1", 5_000)]
    assert runner.lease("month/1").free == 3_000, "no more than the estimate is kept"
    runner.book.exchanges.abandon(pending)
    assert runner.lease("month/1").free == 8_000


def test_overage_takes_what_each_has_free(runner: Budgeted) -> None:
    runner.reserve(5_000).release()
    runner.lease("month/1").granted += 2_000
    hold = runner.book.reserve("agent", 4_000)
    assert hold is not None
    hold.finalize(8_000)

    (event,) = runner.events
    assert event.held_micros == 5_000
    assert [share.held_micros for share in event.also] == [None, 7_000, None]
    assert [lease.free for lease in runner.book.leases.all()] == [0, 0, 0]


def test_parts_and_extending_keep_all_budgets(runner: Budgeted) -> None:
    hold = runner.reserve(6_000, tool="search")
    runner.book.reserve_more = lambda _agent, more, labels: runner.reserve(more, **labels)
    hold.settle_part(2_000)
    hold.extend(1_000)
    hold.finalize(5_000)

    assert [(event.held_micros, event.actual_micros) for event in runner.events] == [(2_000, 2_000), (5_000, 5_000)]
    assert {len(event.also) for event in runner.events} == {4}
    assert {lease.out for lease in runner.book.leases.all()} == {7_000}


def test_extending_with_other_labels_is_refused(runner: Budgeted) -> None:
    hold = runner.reserve(1_000, tool="search")
    more = runner.reserve(1_000)
    with pytest.raises(BudgetUnavailable, match="can no longer be extended"):
        runner.book.join(hold, more)
    assert {owner: lease.held for owner, lease in runner.book.leases.current.items()} == {
        "agent": 1_000,
        "brake/1": 1_000,
        "month/1": 1_000,
        "searches/1": 1_000,
    }


def test_next_hour_is_another_lease(runner: Budgeted) -> None:
    """P9: a hold is charged to the hour in which it was reserved."""
    runner.ms = MIDNIGHT_MS - 7_200_000 - 1
    for each in PLANNED[:1]:
        runner.open(each)
    hold = runner.reserve(40_000)
    runner.ms += 1
    runner.open(PLANNED[0])
    assert runner.book.reserve("agent", 0) is None

    again = runner.reserve(40_000)

    hold.finalize(10), again.finalize(20)
    assert [event.also[0].period for event in runner.events] == ["2026-11-24T21+00", "2026-11-24T22+00"]
    with pytest.raises(CapExceeded) as refused:
        runner.reserve(39_990)
    assert refused.value.full[0].period == "2026-11-24T22+00"


def test_changed_plan_binds_the_next_question(runner: Budgeted) -> None:
    runner.reserve(5_000).release()
    runner.plan(2, PLANNED[:1], seq=3)
    assert runner.book.reserve("agent", 5_000) is not None, "until the next renewal the old plan is in force"

    runner.renew()
    assert runner.book.reserve("agent", 0) is None
    runner.reserve(5_000).finalize(1)

    assert ([share.budget for share in runner.events[-1].also], runner.events[-1].plan) == (["brake/1"], 2)


def test_first_budget_binds_after_a_renewal(runner: Budgeted) -> None:
    runner = Budgeted(planned=())
    runner.plan(0, (), seq=3)
    runner.reserve(5_000).release()
    runner.plan(7, PLANNED[:1], seq=4)
    runner.open(PLANNED[0])
    runner.renew()

    runner.reserve(5_000).finalize(1)

    assert runner.events[-1].plan == 7


def test_agent_without_budgets_sends_version_1(runner: Budgeted) -> None:
    runner = Budgeted(planned=())
    runner.plan(0, (), seq=3)
    runner.reserve(5_000).finalize(1)
    runner.reserve(5_000, tool="search").finalize(1)

    wires = [event.to_wire() for event in runner.events]
    assert [(wire["v"], wire["plan"]) for wire in wires] == [(1, 0), (2, 0)], "budgets that it gets do not count these"
    assert [FinalizeEvent.from_wire(wire) for wire in wires] == runner.events
    for wire in wires:
        del wire["plan"]
        event = FinalizeEvent.from_wire(wire)
        assert (event.plan, event.to_wire()) == (None, wire), "as an earlier release sends it"
    assert runner.events[1].labels == (("tool", "search"),)


def test_removed_budget_is_asked_for_no_more(runner: Budgeted) -> None:
    """The counter of a removed budget lends nothing; the plan without it is read at once."""
    runner.reserve(1).release()
    period = PLANNED[0].rule.at(runner.ms)
    removed = DaySnapshot("brake/1", period.id, 2, PAUSED, 40_000, 0, repairs=True, span=(period[1], period[2]))
    runner.counter.publish([removed], TERMS)
    runner.plan(3, PLANNED[1:], seq=3)

    runner.reserve(50_000).finalize(1)

    assert [share.budget for share in runner.events[-1].also] == ["month/1", "seen/1"]


def test_two_agents_share_a_lease_and_keep_apart() -> None:
    """What one question keeps is not taken by another, and no refusal counts it as gone."""
    runner = Budgeted()
    snapshot = DaySnapshot("other", DAY, 1, ACTIVE, 100_000, 0, plan=1, plan_text=plan_text(PLANNED))
    runner.counter.publish([snapshot], TERMS, first_until_ms=runner.ms + 10_000)
    runner.reserve(40_000).release()
    mine = runner.book.exchanges.begin_top_up("agent", 30_000)
    brake = runner.lease("brake/1")
    assert brake.free == 10_000
    runner.book.exchanges.learn_plan("other", Plan(1, PLANNED))
    first = runner.book.exchanges.begin_top_up("other", 25_000)
    replies = runner.counter.sync([each.request for each in first.all])
    assert finish(runner, first, replies, 25_000) is None  # The plan is learnt.

    theirs = runner.book.exchanges.begin_top_up("other", 25_000)
    replies = runner.counter.sync([each.request for each in theirs.all])
    assert finish(runner, theirs, replies, 25_000) is None, "30,000 may come back"

    runner.book.exchanges.abandon(mine)
    theirs = runner.book.exchanges.begin_top_up("other", 25_000)
    replies = runner.counter.sync([each.request for each in theirs.all])
    assert finish(runner, theirs, replies, 25_000) is not None


def finish(runner: Budgeted, pending: Pending, replies: list[SyncReply], estimate: int) -> Any:
    return runner.book.exchanges.finish_top_up(pending, replies[0], estimate, replies[1:])


def test_shared_lease_is_renewed_until_its_counter_has_it(runner: Budgeted) -> None:
    """The own day's events are settled, but the group's publish got lost: its lease is renewed still."""
    runner.reserve(5_000).finalize(5_000)
    runner.settle(*runner.events)
    for _ in range(3):
        runner.ms += 10_000
        runner.renew()
    assert runner.book.unsettled.events() == []
    month = runner.lease("month/1")
    assert (month.in_use, runner.aside("month/1")) == (True, 5_000)

    totals = (LeaseTotals(month.id, 5_000, 0, 0),)
    settled = DaySnapshot("month/1", "2026-11", 2, ACTIVE, 90_000, 5_000, 5_000, totals, base_seq=1, span=month.span)
    runner.counter.publish([settled], TERMS)
    runner.renew()
    assert (month.in_use, month.held, runner.aside("month/1")) == (False, 0, 0)


def test_reply_from_before_a_grant_ends_no_renewing(runner: Budgeted) -> None:
    runner.reserve(0)
    month = runner.lease("month/1")
    (renewal,) = [each for each in runner.begin_renewal() if each.lease is month]
    (early,) = runner.counter.sync([renewal.request])
    hold = runner.reserve(5_000)
    assert hold is not None
    runner.book.exchanges.apply(renewal, early)

    assert month.in_use


def test_what_a_refused_agent_draws_on(runner: Budgeted) -> None:
    """Recalled money of all of it is handed back soon, because the refused agent may wait for it itself."""
    runner.reserve(5_000, tool="search").release()
    runner.reserve(5_000).release()
    assert {lease.agent for lease in runner.book.leases.drawn_on(["agent", "nobody"])} == {
        "agent",
        "brake/1",
        "month/1",
        "searches/1",
    }


def test_local_run_ends_by_the_counters_clock(runner: Budgeted) -> None:
    run = new_run(1_000, runner.ms + 60_000, bytes(10))
    runner.book.exchanges.begin_run(run, (), "member", local=True)

    with pytest.raises(CapExceeded) as refused:
        runner.reserve(2_000, run=run.id)

    (full,) = refused.value.full
    assert (full.budget, full.ends_in_s) == (run.id, 60.0)


def test_farewell_names_what_was_drawn(runner: Budgeted) -> None:
    runner.reserve(5_000).finalize(5_000)
    assert runner.book.exchanges.begin_farewell(handed_over=False) == []
    month = runner.lease("month/1")
    totals = (LeaseTotals(month.id, 5_000, 0, 0),)
    settled = DaySnapshot("month/1", "2026-11", 2, ACTIVE, 90_000, 5_000, 5_000, totals, base_seq=1, span=month.span)
    runner.counter.publish([settled], TERMS)
    runner.renew()

    farewells = {
        each.request.agent: each.request.farewell for each in runner.book.exchanges.begin_farewell(handed_over=True)
    }
    assert farewells["month/1"] == 5_000
    assert farewells["agent"] == 1
    assert "brake/1" not in farewells


# --- interrupted at each bytecode ---------------------------------------------------------------------------------


class Interruptible(Budgeted):
    """A runner that can say whether its books add up, without help that the next call would not have."""

    def __init__(self, hold_type: type[Any]) -> None:
        super().__init__()
        self.book._ended_type, self.book._make_hold = kinds(hold_type, traced=False)
        self.mine: list[Any] = []
        self.bystander = self.reserve(5_000)
        self.reserve(20_000).release()

    def adds_up(self) -> None:
        # The next calls come at once: they must neither see nor keep half a change.
        after = self.book.reserve("agent", 1)
        assert after is not None
        after.finalize(1)
        self.mine = [hold for hold in self.mine if not hold.ended]
        held = 5_000 + sum(hold.held_micros for hold in self.mine)
        drawn = sum(event.drawn_micros for event in self.book.unsettled.events())
        for lease in self.book.leases.all():
            assert (lease.out, lease.questions) == (held + drawn, {}), lease.agent
        numbers = [event.number for event in self.book.unsettled.events()]
        assert numbers == list(range(1, len(numbers) + 1))
        assert {event.number for event in self.events} == {*numbers}
        assert self.book.live_holds() == 1 + len(self.mine)


def calls_and_finalizes(runner: Any) -> None:
    hold = runner.book.reserve("agent", 1_000)
    with hold:
        runner.mine.append(hold)
        hold.actual = 700


def releases(runner: Any) -> None:
    hold = runner.book.reserve("agent", 1_000)
    runner.mine.append(hold)
    hold.release()


def settles_in_parts(runner: Any) -> None:
    hold = runner.book.reserve("agent", 1_000)
    runner.mine.append(hold)
    hold.settle_part(300)
    hold.finalize(1_200)


def extends(runner: Any) -> None:
    hold = runner.book.reserve("agent", 1_000)
    runner.mine.append(hold)
    more = runner.book.reserve("agent", 500)
    runner.mine.append(more)
    runner.book.join(hold, more)
    hold.finalize(1_500)


def raises(_: Any) -> None:
    raise Interrupted


@HOLDS
@pytest.mark.parametrize("call", [calls_and_finalizes, releases, settles_in_parts, extends])
def test_an_exception_anywhere_keeps_all_budgets_equal(hold_type: type[Any], call: Any) -> None:
    def adds_up(runner: Any) -> None:
        runner.adds_up()

    # Where the interpreter looks for signals: in 3.11 no handler covers the beginning of a `try` inside a `with`.
    assert at_each_bytecode(lambda: Interruptible(hold_type), call, raises, adds_up, real=True) > 20
