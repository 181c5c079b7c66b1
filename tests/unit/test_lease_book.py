"""The lease book: what is free, what is held, what the counter must hear of."""

from __future__ import annotations

import pytest

from daycap import CapExceeded, HoldEnded, InvalidAmount
from daycap.clock import DAY_MS
from daycap.protocol.counter import ACTIVE, Answer, DaySnapshot
from tests.runner_without_io import CAP, DAY, TERMS, Runner

RESEND_NS = 15_000_000_000


@pytest.fixture
def runner() -> Runner:
    return Runner()


def test_what_a_call_did_not_cost_is_free_again(runner: Runner) -> None:
    hold = runner.ask(1_000)
    assert hold is not None

    hold.finalize(300)

    assert runner.book.free_micros("agent") == 700
    assert [(event.held_micros, event.actual_micros, event.number) for event in runner.events] == [(1_000, 300, 1)]


def test_a_cost_above_the_hold_takes_the_leases_free_money_first(runner: Runner) -> None:
    one, two = runner.ask(1_000), runner.ask(1_000)
    assert one is not None
    assert two is not None
    one.release()
    free = runner.book.free_micros("agent")

    two.finalize(1_700)

    assert runner.events[-1].held_micros == 1_700
    assert runner.book.free_micros("agent") == free - 700


def test_a_hold_ends_once(runner: Runner) -> None:
    hold = runner.ask(1_000)
    assert hold is not None
    hold.finalize(1)

    for again in (lambda: hold.finalize(1), hold.release):
        with pytest.raises(HoldEnded):
            again()
    assert len(runner.events) == 1


@pytest.mark.parametrize("bad", [0.5, -1, 2**53, True, "1"])
def test_bad_actual_is_refused_and_all_is_charged(runner: Runner, bad: int) -> None:
    """Leaving a with block by an exception charges what was held: the provider may have billed."""
    hold = runner.ask(1_000)
    assert hold is not None

    with pytest.raises(InvalidAmount), hold:
        hold.actual = bad

    assert hold.ended
    assert runner.events[-1].actual_micros == 1_000


def test_what_is_recalled_is_handed_back_though_the_lease_is_busy(runner: Runner) -> None:
    """P6: a refused runner gets what others have free within one renew interval."""
    other = Runner(runner)
    holds = [runner.ask(9_000) for _ in range(8)]
    for hold in holds[1:]:
        assert hold is not None
        hold.release()
    assert runner.book.free_micros("agent") == 63_000
    with pytest.raises(CapExceeded):
        other.ask(90_000)

    runner.ms += 50  # Far less than anything that is measured by.
    runner.renew()
    runner.renew()

    assert other.ask(90_000) is not None
    assert runner.book.live_holds() == 1


def test_what_was_handed_back_unheard_is_said_again(runner: Runner) -> None:
    """P5: the exchange that handed it back failed; the counter must hear of it though nothing else is in use."""
    hold = runner.ask(1_000)
    assert hold is not None
    hold.release()
    runner.ms += 1_000
    lost = runner.begin_renewal(hand_back=True)
    assert lost[0].request.returned_micros == 1_000
    assert runner.leased(DAY) == 1_000

    runner.renew()

    assert runner.leased(DAY) == 0
    assert runner.renew() == [], "then nothing is left to say"


def test_an_answer_that_never_came_is_followed_up(runner: Runner) -> None:
    pending = runner.book.exchanges.begin_top_up("agent", 1_000)
    runner.counter.sync([pending.request])
    runner.book.exchanges.abandon(pending)
    assert runner.leased(DAY) == 1_000

    runner.ms += 1_000
    runner.renew()

    assert runner.book.free_micros("agent") == 1_000, "what was granted unseen is this runner's"


def test_no_hold_is_made_after_closing_but_live_ones_end(runner: Runner) -> None:
    hold, free = runner.ask(1_000), runner.ask(1_000)
    assert hold is not None
    assert free is not None
    free.release()

    runner.book.close()
    runner.renew()

    assert runner.book.reserve("agent", 1) is None
    hold.finalize(10)
    assert len(runner.events) == 1
    assert runner.book.reserve("agent", 1) is None, "not even of what it freed"


def test_events_are_kept_until_every_one_below_is_settled(runner: Runner) -> None:
    for _ in range(3):
        hold = runner.ask(1_000)
        assert hold is not None
        hold.finalize(100)

    runner.settle(runner.events[0], runner.events[2])
    runner.renew()
    assert len(runner.book.unsettled.events()) == 3, "one is missing below the highest"
    runner.settle(*runner.events)
    runner.renew()

    assert runner.book.unsettled.events() == []


def test_a_lease_whose_gap_never_closes_gets_a_successor(runner: Runner) -> None:
    """One event that became a dead letter must not keep, and send again, all that come after it."""
    hold = runner.ask(1_000)
    assert hold is not None
    hold.finalize(100)
    for resends in range(3):
        runner.ms += 15_000 << resends
        runner.renew()
        assert len(runner.book.unsettled.stalled(RESEND_NS)) == 1
        assert runner.book.unsettled.stalled(RESEND_NS) == [], "not before twice the time"

    after = runner.ask(1_000)
    assert after is not None
    after.finalize(100)

    assert runner.events[1].lease != runner.events[0].lease
    runner.settle(runner.events[1])
    runner.renew()
    assert runner.book.unsettled.events() == [runner.events[0]]


def test_events_that_nobody_can_tell_of_any_more_are_sent_a_last_time(runner: Runner) -> None:
    hold = runner.ask(1_000)
    assert hold is not None
    hold.finalize(100)

    runner.ms += 3 * DAY_MS
    assert runner.book.unsettled.drop_expired() == []
    assert runner.book.unsettled.stalled(RESEND_NS) == runner.events
    assert runner.book.unsettled.drop_expired() == runner.events

    runner.renew()
    assert runner.book.unsettled.events() == []


def test_a_question_about_a_stranger_leaves_nothing_behind(runner: Runner) -> None:
    pending = runner.book.exchanges.begin_top_up("stranger", 1_000)
    (reply,) = runner.counter.sync([pending.request])
    assert reply.answer is Answer.NOT_OPEN
    assert runner.book.exchanges.finish_top_up(pending, reply, 1_000) is None

    assert runner.renew() == []
    assert runner.book.leases.current == {}


def test_an_answer_older_than_the_guard_is_thrown_away(runner: Runner) -> None:
    """P4: what it grants may be someone else's by now."""
    pending = runner.book.exchanges.begin_top_up("agent", 1_000)
    (reply,) = runner.counter.sync([pending.request])
    runner.ms += TERMS.guard_ms + 1

    assert runner.book.exchanges.finish_top_up(pending, reply, 1_000) is None

    assert runner.book.free_micros("agent") == 0


def test_answer_revives_no_dead_money(runner: Runner) -> None:
    """It was given up, and lent to another, while the question was under way."""
    other = Runner(runner)
    hold = runner.ask(CAP)
    assert hold is not None
    runner.ms += TERMS.ttl_ms + TERMS.grace_ms + 1
    pending = runner.book.exchanges.begin_top_up("agent", CAP)
    hold.finalize(0)
    snapshot = DaySnapshot("agent", DAY, 1, ACTIVE, CAP, 0, repairs=True)
    (expired,) = runner.counter.publish([snapshot], TERMS, expire_before_ms=runner.ms)
    assert expired is not None
    assert expired.given_up_micros == CAP
    assert other.ask(CAP) is not None

    (reply,) = runner.counter.sync([pending.request])

    assert runner.book.exchanges.finish_top_up(pending, reply, CAP) is None
    with pytest.raises(CapExceeded):
        runner.ask(CAP)
    assert runner.book.free_micros("agent") == 0


def test_earmark_ends_with_its_lease(runner: Runner) -> None:
    hold = runner.ask(1_000)
    assert hold is not None
    hold.release()
    assert runner.book.free_micros("agent") >= 1_000
    pending = runner.book.exchanges.begin_top_up("agent", 50_000)
    assert pending.earmarked >= 1_000
    runner.ms += TERMS.ttl_ms

    (reply,) = runner.counter.sync([pending.request])
    pending.sent_ns = runner.ms * 1_000_000  # As if the question had been asked just now.

    runner.book.exchanges.finish_top_up(pending, reply, 50_000)
    assert pending.lease.returned == pending.earmarked, "it is handed back, not held"


def test_the_leases_that_have_something_to_learn_are_known(runner: Runner) -> None:
    hold = runner.ask(1_000)
    assert hold is not None
    assert runner.book.unsettled.leases() == []

    hold.finalize(700)

    assert runner.book.unsettled.leases() == list(runner.book.exchanges.leases())


def test_earmarked_money_refuses_nobody(runner: Runner) -> None:
    """P6: the greater of two that are asked at once, in two event loops, passes the cap; the smaller does not."""
    hold = runner.ask(CAP)
    assert hold is not None
    hold.release()
    greater = runner.book.exchanges.begin_top_up("agent", CAP + 1)
    smaller = runner.book.exchanges.begin_top_up("agent", 1)
    assert (greater.earmarked, smaller.earmarked) == (CAP, 0)
    replies = runner.counter.sync([greater.request, smaller.request])
    assert [reply.answer for reply in replies] == [Answer.REFUSED, Answer.REFUSED]

    assert runner.book.exchanges.finish_top_up(smaller, replies[1], 1) is None, "it is asked anew"
    with pytest.raises(CapExceeded):
        runner.book.exchanges.finish_top_up(greater, replies[0], CAP + 1)
    assert runner.book.reserve("agent", 1) is not None


def test_a_lone_runner_is_refused_only_at_the_true_cap(runner: Runner) -> None:
    """P6, to the micro: its own free money counts for it."""
    hold = runner.ask(CAP - 1)
    assert hold is not None
    hold.finalize(10)

    with pytest.raises(CapExceeded) as refused:
        runner.ask(CAP - 9)
    assert refused.value.remaining_micros == CAP - 10
    assert runner.ask(CAP - 10) is not None
