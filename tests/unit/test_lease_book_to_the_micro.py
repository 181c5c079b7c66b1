"""The lease book's sums and limits, to the micro and the millisecond, and what it says to those who ask."""

from __future__ import annotations

import base64

import pytest

from daycap import BudgetUnavailable, CapExceeded, HoldEnded, InvalidAmount
from daycap.clock import DAY_MS
from daycap.errors import AgentPaused, UnknownAgent
from daycap.money import MAX_MICROS
from daycap.protocol.counter import ACTIVE, PAUSED, UNKNOWN, Answer, DaySnapshot, LeaseTerms
from daycap.protocol.wire import FinalizeEvent, lease_fits
from daycap.wallet.lease_book import LeaseBook
from daycap.wallet.leases import expired
from tests.runner_without_io import CAP, DAY, MIDNIGHT_MS, TERMS, Runner, free, held

LIVES_MS = TERMS.ttl_ms - TERMS.guard_ms


@pytest.fixture
def runner() -> Runner:
    return Runner()


def publish(runner: Runner, status: str = ACTIVE, cap: int = CAP, spent: int = 0, seq: int = 9) -> None:
    runner.counter.publish([DaySnapshot("agent", DAY, seq, status, cap, spent, repairs=True)], TERMS)


def test_memory_serves_what_is_free_and_not_a_micro_more(runner: Runner) -> None:
    """P4: the path without I/O."""
    held(runner, 1_000).release()

    one = runner.book.reserve("agent", 600)
    assert one is not None
    assert free(runner) == 400
    assert runner.book.reserve("agent", 401) is None
    two = runner.book.reserve("agent", 400)
    assert two is not None
    assert (free(runner), runner.book.live_holds()) == (0, 2)
    assert one.id[:-1] == two.id[:-1]
    assert (one.id[-2:], two.id[-2:]) == ("-2", "-3")
    assert runner.book.reserve("agent", 1) is None


def test_expired_lease_serves_nothing(runner: Runner) -> None:
    """P4: ttl less the guard after it was asked."""
    held(runner, 1_000).release()
    runner.ms += LIVES_MS - 1
    assert free(runner) == 1_000
    hold = runner.book.reserve("agent", 300)
    assert hold is not None
    hold.release()

    runner.ms += 1
    assert free(runner) == 0
    assert runner.book.reserve("agent", 300) is None
    assert runner.book.live_holds() == 0
    assert runner.begin_renewal()[0].request.returned_micros == 1_000


def test_expired_lease_hands_back_before_it_asks(runner: Runner) -> None:
    held(runner, 1_000).release()
    runner.ms += LIVES_MS
    request = runner.book.exchanges.begin_top_up("agent", 400).request
    assert (request.returned_micros, request.need_micros) == (1_000, 400)


def test_late_overage_takes_no_returned_money(runner: Runner) -> None:
    hold, other = held(runner, 1_000), held(runner, 1_000)
    other.release()
    runner.ms += LIVES_MS

    hold.finalize(1_500)

    assert (runner.events[-1].held_micros, hold.held_micros) == (1_000, 1_000)


def test_an_overage_is_covered_as_far_as_there_is_free_money(runner: Runner) -> None:
    hold, other = held(runner, 1_000), held(runner, 200)
    other.release()
    covered = 1_000 + free(runner)

    hold.finalize(covered + 5)

    assert (runner.events[-1].held_micros, runner.events[-1].actual_micros) == (covered, covered + 5)
    assert (hold.held_micros, free(runner)) == (covered, 0)


def test_a_hold_says_what_it_is(runner: Runner) -> None:
    with held(runner, 1_000) as hold:
        hold.actual = 7
        assert (hold.actual, hold.ended, hold.agent, hold.day) == (7, False, "agent", DAY)
        assert repr(hold) == f"<Hold {hold.id} agent=agent day={DAY} held_micros=1000 live>"

    assert hold.ended
    assert repr(hold).endswith("ended>")
    assert (runner.events[-1].reservation, runner.events[-1].actual_micros) == (hold.id, 7)


def test_a_cost_that_is_no_amount_leaves_the_hold_as_it_was(runner: Runner) -> None:
    hold = held(runner, 1_000)
    with pytest.raises(InvalidAmount):
        hold.finalize(-1)
    assert (hold.ended, runner.events, runner.book.live_holds()) == (False, [], 1)
    hold.release()
    with pytest.raises(HoldEnded):
        hold.release()
    assert free(runner) == 1_000


def test_a_refusal_says_what_it_is_made_of(runner: Runner) -> None:
    """Own money that is free counts as remaining, that of others as leased."""
    other = Runner(runner)
    held(other, 30_000)
    drawn = held(runner, 10_000)
    drawn.finalize(4_000)
    held(runner, 1_000)
    runner.settle(runner.events[0])
    runner.ms = MIDNIGHT_MS - 1_800_000
    other.renew()
    runner.renew()

    with pytest.raises(CapExceeded) as refused:
        runner.ask(90_000)

    said = refused.value
    assert (said.agent, said.estimate_micros, said.cap_micros, said.spent_micros) == ("agent", 90_000, CAP, 4_000)
    assert (said.leased_micros, said.remaining_micros) == (30_000, CAP - 4_000 - 30_000 - 1_000)
    assert (said.day, said.day_ends_in_s) == (DAY, 1_800)


def test_each_no_of_the_counter_has_its_error(runner: Runner) -> None:
    held(runner, 1_000).release()
    publish(runner, PAUSED)
    with pytest.raises(AgentPaused):
        runner.ask(2_000)
    assert runner.book.reserve("agent", 1) is None, "memory serves no paused agent"
    runner.counter.flush()
    publish(runner)
    with pytest.raises(BudgetUnavailable, match="lost its data"):
        runner.ask(2_000)
    runner.counter.flush()
    publish(runner, UNKNOWN)
    with pytest.raises(UnknownAgent):
        runner.ask(2_000)


def test_an_unanswered_question_puts_back_what_it_took(runner: Runner) -> None:
    held(runner, 1_000).release()
    pending = runner.book.exchanges.begin_top_up("agent", 5_000)
    assert (free(runner), pending.request.need_micros) == (0, 4_000)
    runner.book.exchanges.abandon(pending)
    assert free(runner) == 1_000


def test_an_answer_as_old_as_the_guard_still_counts(runner: Runner) -> None:
    pending = runner.book.exchanges.begin_top_up("agent", 1_000)
    (reply,) = runner.counter.sync([pending.request])
    runner.ms += TERMS.guard_ms
    assert runner.book.exchanges.finish_top_up(pending, reply, 1_000) is not None


def test_an_answer_to_totals_that_are_no_more_is_no_refusal(runner: Runner) -> None:
    """P6: money came free in this process while the counter was asked."""
    hold = held(runner, 60_000)
    pending = runner.book.exchanges.begin_top_up("agent", 50_000)
    (reply,) = runner.counter.sync([pending.request])
    assert reply.answer is Answer.REFUSED
    hold.finalize(50_000)
    assert free(runner) == 10_000

    assert runner.book.exchanges.finish_top_up(pending, reply, 50_000) is None
    assert runner.ask(50_000) is not None


def test_a_refusal_stands_when_too_little_came_free(runner: Runner) -> None:
    hold = held(runner, 60_000)
    pending = runner.book.exchanges.begin_top_up("agent", 50_000)
    (reply,) = runner.counter.sync([pending.request])
    hold.finalize(50_001)
    assert (free(runner), reply.cap_micros - reply.leased_micros) == (9_999, 40_000)

    with pytest.raises(CapExceeded):
        runner.book.exchanges.finish_top_up(pending, reply, 50_000)


def test_a_late_refusal_is_asked_anew(runner: Runner) -> None:
    held(runner, 60_000)
    pending = runner.book.exchanges.begin_top_up("agent", 50_000)
    (reply,) = runner.counter.sync([pending.request])
    runner.ms += TERMS.guard_ms + 1
    assert runner.book.exchanges.finish_top_up(pending, reply, 50_000) is None


def test_child_ends_no_hold_of_its_parent(runner: Runner) -> None:
    hold = held(runner, 1_000)
    runner.book.forget()
    for end in (lambda: hold.finalize(1), hold.release):
        with pytest.raises(HoldEnded, match="forked"):
            end()
    assert (runner.book.live_holds(), runner.book.unsettled.events(), runner.begin_renewal()) == (0, [], [])


def test_closing_stops_what_memory_would_serve_at_once(runner: Runner) -> None:
    held(runner, 1_000).release()
    runner.book.close()
    assert (runner.book.reserve("agent", 1), free(runner)) == (None, 0)


@pytest.mark.parametrize(("micros", "calls_back"), [(0, False), (1, True), (1_000, True)])
def test_a_recall_is_followed_at_once_where_there_is_free_money(runner: Runner, micros: int, calls_back: bool) -> None:
    held(runner, 1_000).finalize(1_000 - micros)
    publish(runner, cap=500)
    (pending,) = runner.begin_renewal()
    (reply,) = runner.counter.sync([pending.request])
    assert reply.recall
    assert runner.book.exchanges.apply(pending, reply) is calls_back


def test_a_pause_calls_back_what_is_free_and_a_plain_answer_does_not(runner: Runner) -> None:
    held(runner, 1_000).release()
    for status, calls_back in ((ACTIVE, False), (PAUSED, True)):
        publish(runner, status)
        (pending,) = runner.begin_renewal()
        (reply,) = runner.counter.sync([pending.request])
        assert runner.book.exchanges.apply(pending, reply) is calls_back


def test_a_late_answer_or_none_at_all_calls_nothing_back(runner: Runner) -> None:
    held(runner, 1_000).release()
    publish(runner, cap=500)
    (pending,) = runner.begin_renewal()
    (reply,) = runner.counter.sync([pending.request])
    runner.counter.flush()
    (not_open,) = runner.counter.sync([pending.request])
    assert runner.book.exchanges.apply(pending, not_open) is False
    runner.ms += TERMS.guard_ms + 1
    assert runner.book.exchanges.apply(pending, reply) is False


def test_more_out_than_the_cap_is_asked_about_each_time(runner: Runner) -> None:
    """A lowered cap: memory alone makes no hold any more. At the cap to the micro it still does."""
    held(runner, 1_000)
    held(runner, 1_000).release()
    out = runner.leased(DAY)
    for cap, serves in ((out, True), (out - 1, False)):
        publish(runner, cap=cap, seq=CAP - cap)
        (pending,) = runner.begin_renewal()
        runner.book.exchanges.apply(pending, *runner.counter.sync([pending.request]))
        assert (free(runner) > 0) is serves


def test_the_pace_of_renewals_follows_the_shortest_ttl_in_use(runner: Runner) -> None:
    assert runner.book.exchanges.ttl_ms == 0
    hold = held(runner, 1_000)
    assert runner.book.exchanges.ttl_ms == TERMS.ttl_ms
    for ttl_ms in (9_000, 20_000):
        terms = LeaseTerms(ttl_ms, TERMS.guard_ms, TERMS.grace_ms)
        runner.counter.publish([DaySnapshot("agent", DAY, 2, ACTIVE, CAP, 0, repairs=True)], terms)
        runner.renew()
        assert runner.book.exchanges.ttl_ms == 9_000, "the longer one is known when all were asked once more"
    runner.renew()
    assert runner.book.exchanges.ttl_ms == 20_000
    hold.release()
    for _ in range(4):
        runner.ms += 10_000
        runner.renew()
    assert runner.book.exchanges.ttl_ms == 0


def test_what_is_known_of_an_agent_is_what_the_counter_said_last(runner: Runner) -> None:
    assert runner.book.leases.last_known("agent") is None
    other = Runner(runner)
    held(other, 5_000)
    held(runner, 1_000)
    lease = runner.book.leases.last_known("agent")
    assert lease is not None
    assert (lease.cap, lease.spent, lease.leased, lease.ttl_ms) == (CAP, 0, 6_000, TERMS.ttl_ms)


def test_busy_lease_holds_two_seconds_of_use(runner: Runner) -> None:
    held(runner, 1_000).finalize(1_000)
    runner.ms += 1_000  # 1,000 micros a second.
    pending = runner.book.exchanges.begin_top_up("agent", 500)
    assert (pending.request.need_micros, pending.request.want_micros) == (500, 2_500)
    (reply,) = runner.counter.sync([pending.request])
    hold = runner.book.exchanges.finish_top_up(pending, reply, 500)
    assert hold is not None
    assert free(runner) == 2_000
    hold.release()

    runner.ms += 1_000  # Now 1,500 in two seconds.
    (renewal,) = runner.begin_renewal()
    assert renewal.request.returned_micros == 2_500 - 1_500
    runner.book.exchanges.apply(renewal, *runner.counter.sync([renewal.request]))
    runner.ms += 99
    assert runner.begin_renewal()[0].request.returned_micros == 1_000, "too short to measure"
    runner.ms += 1_000
    assert runner.begin_renewal()[0].request.returned_micros == 1_000, "what it used before counts once more"
    runner.ms += 1_000
    assert runner.begin_renewal()[0].request.returned_micros == 2_500


def test_the_counters_clock_is_followed(runner: Runner) -> None:
    assert LeaseBook(print, guard_ms=0, slice_seconds=0).clock.ms() is None

    runner.book.clock.hear(runner.ms + 5_000)
    runner.ms += 1_234

    assert runner.book.clock.ms() == runner.ms + 5_000
    assert expired(DAY, runner.book.clock.today()) is False
    runner.ms += 3 * DAY_MS
    assert expired(DAY, runner.book.clock.today()) is True


def test_each_settlement_restarts_the_patience(runner: Runner) -> None:
    first, second = held(runner, 1_000), held(runner, 1_000)
    runner.ms += 20_000
    runner.renew()
    first.finalize(100)
    runner.ms += 10_000
    runner.renew()
    second.finalize(100)

    assert stalled_after(runner, 4_999) == []
    assert stalled_after(runner, 1) == runner.events
    assert stalled_after(runner, 29_999) == [], "twice as long after each that brought nothing"
    assert stalled_after(runner, 1) == runner.events
    runner.ms += 10_000
    runner.settle(runner.events[0])
    runner.renew()
    assert stalled_after(runner, 14_999) == []
    assert stalled_after(runner, 1) == runner.events[1:]
    assert runner.book.live_holds() == 0


def stalled_after(runner: Runner, ms: int) -> list[FinalizeEvent]:
    runner.ms += ms
    return runner.book.unsettled.stalled(15_000_000_000)


def test_a_lease_has_a_successor_after_the_third_resend(runner: Runner) -> None:
    held(runner, 1_000).finalize(100)
    for wait_ms, leases in ((15_000, 1), (30_000, 1), (60_000, 2)):
        assert stalled_after(runner, wait_ms)
        runner.renew()
        assert len({runner.events[0].lease, held(runner, 10).id.rpartition("-")[0]}) == leases


def test_whoever_keeps_events_is_told_of_those_that_are_dropped(runner: Runner) -> None:
    told: list[FinalizeEvent] = []
    runner.book.unsettled.settled = told.append
    held(runner, 1_000).finalize(100)
    runner.ms += 3 * DAY_MS
    assert stalled_after(runner, 0)

    assert runner.book.unsettled.drop_expired() == told == runner.events


def test_a_refusal_where_all_is_leased_or_spent_leaves_nothing(runner: Runner) -> None:
    other = Runner(runner)
    held(other, CAP)
    with pytest.raises(CapExceeded) as refused:
        runner.ask(1)
    assert (refused.value.leased_micros, refused.value.remaining_micros) == (CAP, 0)

    spent = Runner()
    publish(spent, spent=CAP)
    with pytest.raises(CapExceeded) as refused:
        spent.ask(1)
    assert (refused.value.leased_micros, refused.value.remaining_micros) == (0, 0)


def test_a_lease_is_known_from_its_first_micro(runner: Runner) -> None:
    assert runner.book.free_micros("nobody") == 0
    runner.book.exchanges.begin_top_up("agent", 1)
    assert runner.book.leases.last_known("agent") is None
    one = Runner()
    held(one, 1)
    known = one.book.leases.last_known("agent")
    assert known is not None
    assert known.granted == 1


def test_what_memory_served_counts_as_use_and_what_it_refused_does_not(runner: Runner) -> None:
    held(runner, 1_000).release()
    for _ in range(2):
        hold = runner.book.reserve("agent", 500)
        assert hold is not None
        hold.release()
    runner.ms += LIVES_MS
    assert runner.book.reserve("agent", 300) is None

    request = runner.book.exchanges.begin_top_up("agent", 400).request

    assert request.want_micros == 400 + 2 * 2_000_000 // LIVES_MS


def test_finished_lease_is_not_asked_after(runner: Runner) -> None:
    held(runner, 1_000).finalize(400)
    runner.settle(*runner.events)
    for _ in range(3):
        runner.ms += 10_000
        runner.renew()

    assert runner.begin_renewal() == []
    runner.ms = MIDNIGHT_MS + 1
    assert runner.begin_renewal() == []
    assert runner.book.leases.all() == ()


def test_lease_at_the_largest_amount_gets_a_successor(runner: Runner) -> None:
    publish(runner, cap=MAX_MICROS)
    hold = held(runner, 10)
    lease, granted = hold.id.rpartition("-")[0], 10

    pending = runner.book.exchanges.begin_top_up("agent", MAX_MICROS - granted)
    assert pending.request.lease == lease
    runner.book.exchanges.abandon(pending)
    assert runner.book.exchanges.begin_top_up("agent", MAX_MICROS - granted + 1).request.lease != lease


@pytest.mark.parametrize(
    ("days", "said"), [(1, []), (3, ["dropping 2 holds of agent agent on 2026-11-24 that were never ended"])]
)
def test_endless_holds_of_an_old_day_are_dropped(
    runner: Runner, caplog: pytest.LogCaptureFixture, days: int, said: list[str]
) -> None:
    holds = [held(runner, 1_000) for _ in range(2)]
    runner.ms += days * DAY_MS
    runner.renew()

    assert (caplog.messages, runner.book.live_holds()) == (said, 0 if said else 2)
    assert not any(hold.ended for hold in holds)


def test_an_event_is_kept_beside_a_hold_that_never_ends(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    ended, live = held(runner, 1_000), held(runner, 1_000)
    ended.finalize(100)
    runner.ms += 3 * DAY_MS
    runner.renew()

    assert runner.book.unsettled.events() == runner.events
    assert (live.ended, runner.book.live_holds(), caplog.messages) == (False, 1, [])


def test_leases_are_renewed_at_the_pace_of_the_one_that_lives_shortest(runner: Runner) -> None:
    short = LeaseTerms(ttl_ms=6_000, guard_ms=TERMS.guard_ms, grace_ms=TERMS.grace_ms)
    runner.counter.publish([DaySnapshot("short", DAY, 1, ACTIVE, CAP, 0)], short, first_until_ms=runner.ms + 10_000)
    held(runner, 1_000)
    pending = runner.book.exchanges.begin_top_up("short", 10)
    hold = runner.book.exchanges.finish_top_up(pending, runner.counter.sync([pending.request])[0], 10)
    assert hold is not None

    runner.begin_renewal()

    assert runner.book.exchanges.ttl_ms == 6_000


def test_an_answer_at_its_deadline_does_not_revive_what_came_free(runner: Runner) -> None:
    """P4: at the millisecond of the deadline a lease is dead; before it, it is alive."""
    for early_ms, free_then in ((1, 1_000), (0, 0)):
        one = Runner()
        hold = held(one, 1_000)
        one.ms += LIVES_MS - early_ms - 500
        (pending,) = one.begin_renewal()
        hold.release()
        one.ms += 500
        one.book.exchanges.apply(pending, *one.counter.sync([pending.request]))
        assert free(one) == free_then


def test_a_lease_that_the_counter_never_answered_for_sets_no_pace(runner: Runner) -> None:
    runner.book.exchanges.abandon(runner.book.exchanges.begin_top_up("agent", 1))
    assert runner.begin_renewal()
    assert runner.book.exchanges.ttl_ms == 0


def test_a_leases_id_is_128_random_bits_bound_to_agent_and_day(runner: Runner) -> None:
    lease = held(runner, 1).id.rpartition("-")[0]
    assert len(base64.b32decode(lease.partition(".")[0].upper() + "======")) == 128 // 8
    assert lease_fits(lease, "agent", DAY)
    assert not lease_fits(lease, "another", DAY)


def test_retired_lease_hands_back_all_free_money(runner: Runner) -> None:
    held(runner, 1_000).finalize(100)
    kept, other = held(runner, 500), held(runner, 5_000)
    for wait_ms in (15_000, 30_000, 60_000):
        runner.ms += wait_ms
        runner.renew()
        assert runner.book.unsettled.stalled(15_000_000_000)
    other.release()

    kept.finalize(700)

    assert runner.events[-1].held_micros == 500
    runner.renew()
    assert runner.leased(DAY) == 100 + 500, "the two events that are not settled"
