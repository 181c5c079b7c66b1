"""The renewer, on a clock that the test sets: what it renews, opens, sends again and adopts, and when."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daycap import Settings
from daycap.clock import DAY_MS
from daycap.counters.memory import MemoryCounter
from daycap.delivery.outbox import Outbox
from daycap.errors import CounterUnavailable
from daycap.protocol.counter import ACTIVE, DaySnapshot, LeaseKey, LeaseTotals, SyncReply, SyncRequest
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet import renewer as renewer_module
from daycap.wallet.renewer import Renewer
from tests.runner_without_io import DAY, TERMS, Runner, free, held
from tests.unit.conftest import Opened, made

SETTINGS = Settings(resend_seconds=15)


class Counter(MemoryCounter):
    """It can be away, and each lease that it is asked about may take it some milliseconds."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(lambda: runner.ms)
        self._runner = runner
        self.away = False
        self.ms_a_lease = 0
        self.asked: list[int] = []
        self.asked_at_ms: list[int] = []

    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        self.asked.append(len(requests))
        self.asked_at_ms.append(self._runner.ms)
        self._runner.ms += self.ms_a_lease * len(requests)
        if self.away:
            raise CounterUnavailable("away")
        return super().sync(requests)

    def read_leases(self, leases: Sequence[LeaseKey]) -> list[LeaseTotals | None]:
        if self.away:
            raise CounterUnavailable("away")
        return super().read_leases(leases)


class Sender:
    """It notes what it is given, and sends nothing."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, str]] = []
        self.sent: list[FinalizeEvent] = []
        self.trouble: Exception | None = None
        self.waiting = 0
        self.messages: int | None = 0
        self.asked_within_s: list[float] = []

    def open_day(self, agent: str, day: str) -> None:
        self.opened.append((agent, day))

    def resend(self, events: Sequence[FinalizeEvent]) -> None:
        self.sent += events

    def backlog(self, timeout_s: float) -> int | None:
        self.asked_within_s.append(timeout_s)
        return self.messages


class Stop:
    """The renewer's clock goes by its waits, until it is stopped after so many milliseconds."""

    def __init__(self, runner: Runner, after_ms: int) -> None:
        self._runner = runner
        self._end_ms = runner.ms + after_ms
        self.waits_s: list[float] = []

    def is_set(self) -> bool:
        return self._runner.ms >= self._end_ms

    def wait(self, timeout_s: float) -> bool:
        self.waits_s.append(timeout_s)
        self._runner.ms += round(timeout_s * 1000)
        return self.is_set()

    def set(self) -> None:
        self._end_ms = 0


def run(renewer: Any, runner: Runner, for_ms: int) -> Stop:
    """What its thread does in that time."""
    renewer._stop = stop = Stop(runner, for_ms)
    renewer._run()
    return stop


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Its clock is the renewer's too."""
    runner = Runner()
    runner.counter = Counter(runner)
    open_days(runner, "agent")
    monkeypatch.setattr(
        renewer_module,
        "time",
        SimpleNamespace(monotonic=lambda: runner.ms / 1000, monotonic_ns=lambda: runner.ms * 1_000_000),
    )
    return runner


@pytest.fixture
def counter(runner: Runner) -> Any:
    return runner.counter


@pytest.fixture
def sender() -> Sender:
    return Sender()


@pytest.fixture
def renewer(runner: Runner, sender: Sender) -> Renewer:
    return renewer_of(runner, sender)


def renewer_of(runner: Runner, sender: Any, outbox: Outbox | None = None) -> Renewer:
    return Renewer(runner.book, runner.counter, sender, outbox, SETTINGS)


def open_days(runner: Runner, *agents: str) -> None:
    snapshots = [DaySnapshot(agent, DAY, 1, ACTIVE, 100_000, 0) for agent in agents]
    runner.counter.publish(snapshots, TERMS, first_until_ms=runner.ms + 10_000)


class TestRenewing:
    def test_reaches_all_leases_of_a_slow_counter(self, runner: Runner, counter: Counter, renewer: Renewer) -> None:
        agents = [f"agent-{number}" for number in range(1_501)]
        open_days(runner, *agents)
        for agent in agents:
            pending = runner.book.exchanges.begin_top_up(agent, 10)
            hold = runner.book.exchanges.finish_top_up(pending, counter.sync([pending.request])[0], 10)
            assert hold is not None
            hold.release()
        deadlines = {lease: lease.deadline_ns for lease in runner.book.exchanges.leases()}
        counter.asked.clear()
        counter.ms_a_lease, began_ms = 2, runner.ms
        runner.ms += 1

        assert renewer.renew()

        assert counter.asked == [500, 500, 500, 1]
        assert runner.ms - began_ms > 2 * TERMS.guard_ms
        assert [lease.agent for lease, deadline_ns in deadlines.items() if lease.deadline_ns == deadline_ns] == []

    def test_is_done_when_there_is_nothing_to_renew(self, counter: Counter, renewer: Renewer) -> None:
        assert renewer.renew()
        assert counter.asked == []

    def test_is_not_done_when_the_counter_is_away(
        self, runner: Runner, counter: Counter, renewer: Renewer, caplog: pytest.LogCaptureFixture
    ) -> None:
        held(runner, 10)
        counter.away = True
        assert not renewer.renew()
        assert "leases were not renewed: away" in caplog.messages

    def test_is_not_done_where_the_counter_forgot_the_day_and_asks_for_it(
        self, runner: Runner, sender: Sender, renewer: Renewer
    ) -> None:
        held(runner, 10)
        renewer._counter = Counter(runner)
        assert not renewer.renew()
        assert sender.opened == [("agent", DAY)]

    def test_hands_back_at_once_what_is_asked_for(self, runner: Runner, counter: Counter, renewer: Renewer) -> None:
        held(runner, 60_000).release()
        assert Runner(runner).ask_or_refused(50_000)
        counter.asked.clear()

        assert renewer.renew()

        assert counter.asked == [1, 1]
        assert (free(runner), runner.leased(DAY)) == (0, 0)

    def test_top_up_ends_after_two_questions(
        self, runner: Runner, counter: Counter, renewer: Renewer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held(runner, 10)
        monkeypatch.setattr(runner.book.exchanges, "apply", lambda *_: True)
        counter.asked.clear()
        assert renewer.renew()
        assert counter.asked == [1, 1]


class TestItsThread:
    def test_renews_a_third_of_a_ttl_apart(self, runner: Runner, counter: Counter, renewer: Renewer) -> None:
        held(runner, 10)
        began_ms = runner.ms
        run(renewer, runner, 45_000)
        assert [at_ms - began_ms for at_ms in counter.asked_at_ms] == [0, 10_000, 20_000, 30_000, 40_000]

    def test_tries_four_times_as_often_while_the_counter_is_away(
        self, runner: Runner, counter: Counter, renewer: Renewer
    ) -> None:
        hold = held(runner, 10)
        began_ms, counter.away = runner.ms, True
        run(renewer, runner, 18_000)
        assert not hold.ended
        assert [at_ms - began_ms for at_ms in counter.asked_at_ms] == [0, 10_000, 12_500, 15_000, 17_500]

    def test_asks_a_lost_counter_no_more_often_after_a_close(
        self, runner: Runner, counter: Counter, renewer: Renewer
    ) -> None:
        held(runner, 10).finalize(10)
        renewer.finish(lambda: None)
        assert set(run(renewer, runner, 20_000).waits_s) == {0.1}
        counter.away = True
        assert run(renewer, runner, 20_000).waits_s == [0.1, *[2.5] * 8]
        counter.away = False
        assert run(renewer, runner, 3_000).waits_s[1] == 0.1

    def test_looks_twice_a_second_for_leases_whose_ttl_is_shorter(self, runner: Runner, renewer: Renewer) -> None:
        assert run(renewer, runner, 2_000).waits_s == [0.5, 0.5, 0.5, 0.5]
        hold = held(runner, 10)
        assert set(run(renewer, runner, 9_000).waits_s) == {0.5}
        assert not hold.ended

    def test_goes_on_whatever_goes_wrong(
        self, runner: Runner, counter: Counter, renewer: Renewer, caplog: pytest.LogCaptureFixture
    ) -> None:
        hold = held(runner, 10)
        counter.ms_a_lease = None  # type: ignore[assignment]
        run(renewer, runner, 21_000)
        assert len(counter.asked) > 1
        assert set(caplog.messages) == {"renewing leases failed; retrying"}
        assert not hold.ended

    def test_is_waited_for_at_the_end(self, renewer: Any) -> None:
        waited: list[float] = []
        renewer._thread = SimpleNamespace(join=waited.append)
        renewer.stop(7)
        assert waited == [7]


class TestARefusedRunner:
    @pytest.fixture(autouse=True)
    def recalled(self, runner: Runner, counter: Counter, renewer: Renewer) -> None:
        """It is told, while all is held, that what it has is asked for; then some comes free."""
        hold = held(runner, 60_000)
        assert Runner(runner).ask_or_refused(50_000)
        renewer.renew()
        hold.release()
        counter.asked.clear()

    def test_hands_back_what_is_free_before_its_next_renewal(
        self, runner: Runner, counter: Counter, renewer: Renewer
    ) -> None:
        renewer.refused("agent")
        renewer.refused("nobody's")

        renewer._hand_back_recalled()
        renewer._hand_back_recalled()

        assert counter.asked == [1]
        assert (free(runner), runner.leased(DAY)) == (0, 0)

    def test_does_so_within_half_a_second_to_the_last_micro(
        self, runner: Runner, counter: Counter, renewer: Renewer
    ) -> None:
        assert runner.book.reserve("agent", 59_999)
        renewer.refused("agent")
        run(renewer, runner, 1_000)
        assert (counter.asked, runner.leased(DAY)) == ([1], 59_999)

    def test_that_was_not_refused_waits_for_its_next_renewal(
        self, runner: Runner, counter: Counter, renewer: Renewer
    ) -> None:
        renewer._hand_back_recalled()
        assert (counter.asked, free(runner)) == ([], 60_000)

    def test_with_nothing_free_hands_nothing_back(self, runner: Runner, counter: Counter, renewer: Renewer) -> None:
        assert runner.book.reserve("agent", 60_000)
        renewer.refused("agent")
        renewer._hand_back_recalled()
        assert counter.asked == []


@pytest.mark.parametrize("asks_again", [False, True])
def test_a_grant_nobody_heard_of_returns(runner: Runner, counter: Counter, renewer: Renewer, asks_again: bool) -> None:
    """P11: the answer to a question was lost. A renewal learns of the money and hands it back, unless it is asked."""
    held(runner, 10).release()
    lost = runner.book.exchanges.begin_top_up("agent", 60_000)
    counter.sync([lost.request])
    runner.book.exchanges.abandon(lost)
    assert runner.leased(DAY) >= 60_000

    if asks_again:
        again = runner.book.exchanges.begin_top_up("agent", 60_000)
    runner.ms += 100
    renewer.renew()

    if asks_again:
        (reply,) = counter.sync([again.request])
        assert runner.book.exchanges.finish_top_up(again, reply, 60_000)
    else:
        assert (free(runner), runner.leased(DAY)) == (0, 0)


def test_a_question_keeps_its_lease(runner: Runner, counter: Counter, renewer: Renewer) -> None:
    """P11: renewals find the day closed while a question is under way, which finds it open."""
    days, counter._days = counter._days, {}
    question = runner.book.exchanges.begin_top_up("agent", 60_000)
    renewer.renew()
    renewer.renew()
    counter._days = days

    (reply,) = counter.sync([question.request])
    assert runner.book.exchanges.finish_top_up(question, reply, 60_000)
    assert runner.leased(DAY) == 60_000


def test_a_day_is_asked_for_once_a_second_for_each_agent(runner: Runner, sender: Sender, renewer: Renewer) -> None:
    renewer.ask_to_open("a", DAY)
    renewer.ask_to_open("a", DAY)
    renewer.ask_to_open("b", DAY)
    assert sender.opened == [("a", DAY), ("b", DAY)]

    runner.ms += 999
    renewer.ask_to_open("a", DAY)
    assert len(sender.opened) == 2
    runner.ms += 1
    renewer.ask_to_open("a", DAY)
    assert sender.opened[2:] == [("a", DAY)]

    runner.ms += 1
    renewer._tick()
    assert list(renewer._asked_to_open) == [("a", DAY)], "what is older makes no difference and takes no memory"


class TestWhatIsNotSettled:
    @pytest.fixture(autouse=True)
    def spent(self, runner: Runner) -> None:
        held(runner, 10).finalize(10)

    def test_is_sent_again_in_time(
        self, runner: Runner, sender: Sender, renewer: Renewer, caplog: pytest.LogCaptureFixture
    ) -> None:
        runner.ms += 14_999
        renewer._tick()
        assert (sender.sent, renewer.resent) == ([], 0)
        runner.ms += 1
        renewer._tick()
        assert (sender.sent, renewer.resent) == (runner.events, 1)
        assert "resending 1 unconfirmed events" in caplog.messages
        assert set(sender.asked_within_s) == {SETTINGS.redis_timeout_seconds}

    @pytest.mark.parametrize("messages", [1, None])
    def test_waits_ten_times_as_long_while_messages_wait_or_may(
        self, runner: Runner, sender: Sender, renewer: Renewer, messages: int | None
    ) -> None:
        sender.messages = messages
        runner.ms += 149_999
        renewer._tick()
        assert sender.sent == []
        runner.ms += 1
        renewer._tick()
        assert sender.sent == runner.events

    def test_is_not_sent_again_while_the_broker_takes_nothing(
        self, runner: Runner, sender: Sender, renewer: Renewer
    ) -> None:
        sender.trouble = ConnectionError()
        runner.ms += 15_000
        renewer._tick()
        assert (sender.sent, sender.asked_within_s) == ([], [])

    def test_asks_for_no_backlog_once_it_is(self, runner: Runner, sender: Sender, renewer: Renewer) -> None:
        runner.settle(*runner.events)
        renewer._tick()
        runner.ms += 15_000
        renewer._tick()
        assert (sender.sent, sender.asked_within_s) == ([], [])

    def test_forgotten_days_event_is_sent_once_more(
        self, runner: Runner, sender: Sender, renewer: Renewer, caplog: pytest.LogCaptureFixture
    ) -> None:
        runner.ms += 3 * DAY_MS
        renewer._tick()
        assert sender.sent == runner.events
        sender.waiting = 1
        renewer._tick()
        assert renewer.unsettled() == runner.events, "the broker has not taken it"
        sender.waiting = 0
        renewer._tick()
        assert renewer.unsettled() == []
        assert [each for each in caplog.messages if each.startswith("1 events are too old")]
        assert sender.sent == runner.events

    def test_is_learnt_at_once_by_a_flush(self, runner: Runner, counter: Counter, renewer: Renewer) -> None:
        open_days(runner, "another")
        pending = runner.book.exchanges.begin_top_up("another", 10)
        other = runner.book.exchanges.finish_top_up(pending, counter.sync([pending.request])[0], 10)
        runner.settle(*runner.events)
        counter.asked.clear()

        renewer.learn_settled()

        assert (renewer.unsettled(), other is not None) == ([], True)
        assert counter.asked == [1], "no other lease has anything to learn"


class TestWhatADeadProcessLeft:
    @pytest.fixture
    def events(self, directory: Path) -> list[FinalizeEvent]:
        outbox, events = Outbox(directory, 1 << 24), [made(1), made(2)]
        for event in events:
            outbox.append(event)
        outbox.forget()  # Without its lock it is a dead one's.
        return events

    @pytest.fixture
    def adopter(self, runner: Runner, sender: Sender, opened: Opened, events: Any) -> Iterator[Any]:
        renewer: Any = renewer_of(runner, sender, opened())
        renewer.started_for_it = []
        renewer.start = lambda: renewer.started_for_it.append(True)
        yield renewer
        renewer.stop(0)

    def settle(self, runner: Runner, events: list[FinalizeEvent]) -> None:
        totals = LeaseTotals(events[0].lease, 31_200 * len(events), len(events), len(events))
        runner.counter.publish(
            [DaySnapshot("agent-7", DAY, 2, ACTIVE, 100_000, 0, totals.drawn_micros, (totals,), repairs=True)], TERMS
        )

    def test_is_sent_at_once_and_followed_until_it_is_settled(
        self, runner: Runner, sender: Sender, adopter: Any, events: list[FinalizeEvent], directory: Path
    ) -> None:
        open_days(runner, "agent-7")
        adopter.follow_adopted()
        assert (sender.sent, adopter.unsettled(), adopter.resent) == (events, events, 2)
        assert sender.opened == [], "what was not sent by us is not asked for"
        assert adopter.started_for_it == [True]

        self.settle(runner, events[:1])
        adopter.follow_adopted()
        assert (sender.sent, adopter.unsettled()) == (events, events[1:])

        self.settle(runner, events)
        adopter.follow_adopted()
        assert (adopter.unsettled(), adopter._adopted) == ([], [])
        assert list(directory.glob("*/*.events")) == []

    @pytest.mark.parametrize("step", ["_tick", "learn_settled"])
    def test_is_looked_for_at_each_renewal_and_flush(
        self, sender: Sender, adopter: Any, events: list[FinalizeEvent], step: str
    ) -> None:
        getattr(adopter, step)()
        assert sender.sent == events

    def test_and_what_could_not_be_written_is_tried_anew_at_each_renewal(
        self, adopter: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[bool] = []
        monkeypatch.setattr(adopter._outbox, "retry", lambda: tried.append(True))
        adopter._tick()
        assert tried == [True]

    def test_is_sent_again_in_time(
        self, runner: Runner, sender: Sender, adopter: Any, events: list[FinalizeEvent]
    ) -> None:
        open_days(runner, "agent-7")
        adopter.follow_adopted()
        runner.ms += 14_999
        adopter.follow_adopted()
        assert sender.sent == events
        runner.ms += 1
        adopter.follow_adopted()
        assert sender.sent == events * 2

    def test_waits_while_the_broker_takes_nothing(
        self, sender: Sender, adopter: Any, events: list[FinalizeEvent]
    ) -> None:
        sender.trouble = ConnectionError()
        adopter.follow_adopted()
        assert (sender.sent, adopter.unsettled()) == ([], events)

    def test_has_its_day_opened_so_that_its_settling_can_be_told(self, sender: Sender, adopter: Any) -> None:
        adopter.follow_adopted()
        adopter.follow_adopted()
        assert sender.opened == [("agent-7", DAY)]

    def test_waits_while_the_counter_is_away(
        self,
        runner: Runner,
        counter: Counter,
        sender: Sender,
        adopter: Any,
        events: list[FinalizeEvent],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        adopter.follow_adopted()
        counter.away = True
        runner.ms += 15_000
        adopter.follow_adopted()
        assert (sender.sent, adopter.unsettled()) == (events, events)
        assert "cannot check whether the events of an adopted outbox are settled: away" in caplog.messages

    def test_forgotten_days_event_ends_at_the_broker(
        self,
        runner: Runner,
        sender: Sender,
        adopter: Any,
        events: list[FinalizeEvent],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        runner.ms += 3 * DAY_MS
        adopter.follow_adopted()
        sender.waiting = 2
        adopter.follow_adopted()
        assert adopter.unsettled() == events
        sender.waiting = 0
        adopter.follow_adopted()
        assert (sender.sent, adopter.unsettled(), sender.opened) == (events, [], [])
        assert [each.levelno for each in caplog.records if each.getMessage().startswith("2 events are too old")] == [
            logging.ERROR
        ]

    def test_is_left_to_the_next_process_where_this_one_ends(
        self, adopter: Any, sender: Sender, events: list[FinalizeEvent], opened: Opened
    ) -> None:
        adopter.follow_adopted()
        adopter.stop(0)
        adopter.follow_adopted()

        (again,) = opened().adopt()
        assert again.events == events
        again.close()
        assert sender.sent == events, "what has ended adopts nothing"

    def test_is_not_a_forked_childs(self, adopter: Any, events: list[FinalizeEvent]) -> None:
        adopter.follow_adopted()
        adopter.forget()
        assert adopter.unsettled() == []
