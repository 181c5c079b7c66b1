"""The lease book around the end of a day, and what it does about answers that never came."""

from __future__ import annotations

import pytest

from daycap.clock import DAY_MS
from daycap.protocol.counter import Answer
from tests.runner_without_io import DAY, MIDNIGHT_MS, NEXT, TERMS, Runner


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.mark.parametrize("before_ms", [999, 500, 1])
def test_money_can_be_reserved_up_to_the_days_end(runner: Runner, before_ms: int) -> None:
    runner.ms = MIDNIGHT_MS - before_ms

    hold = runner.ask(1_000)

    assert hold is not None
    assert hold.day == DAY


def test_at_midnight_the_old_lease_makes_no_hold_and_the_new_one_does(runner: Runner) -> None:
    runner.ms = MIDNIGHT_MS - 5_000
    first = runner.ask(1_000)
    assert first is not None
    first.release()
    assert runner.book.reserve("agent", 500) is not None

    runner.ms = MIDNIGHT_MS

    assert runner.book.reserve("agent", 100) is None
    hold = runner.ask(100)
    assert hold is not None
    assert hold.day == NEXT


def test_free_money_of_an_ended_day_is_handed_back_and_holds_are_kept(runner: Runner) -> None:
    kept, other = runner.ask(1_000), runner.ask(5_000)
    assert kept is not None
    assert other is not None
    other.release()

    runner.ms = MIDNIGHT_MS + 10
    runner.renew()

    assert runner.leased(DAY) == 1_000
    kept.finalize(800)
    assert [(event.day, event.actual_micros) for event in runner.events] == [(DAY, 800)]


def test_what_was_handed_back_without_an_answer_is_handed_back_again(runner: Runner) -> None:
    hold = runner.ask(1_000)
    assert hold is not None
    hold.release()

    runner.ms = MIDNIGHT_MS + 10
    pending = runner.begin_renewal()  # And this sync is lost on its way.
    assert pending[0].request.returned_micros == 1_000
    assert runner.leased(DAY) == 1_000

    runner.renew()
    assert runner.leased(DAY) == 0
    assert runner.renew() == [], "the counter has all of it: there is nothing to renew"


def test_what_was_handed_back_with_a_wrong_day_is_handed_back_again(runner: Runner) -> None:
    runner.ms = MIDNIGHT_MS - 1
    hold = runner.ask(1_000)
    assert hold is not None
    hold.release()

    # Given a top-up that was built just before the server's midnight and came just after it
    runner.ms = MIDNIGHT_MS
    runner.book.clock.hear(MIDNIGHT_MS - 1)
    pending = runner.book.exchanges.begin_top_up("agent", 2_000)
    (reply,) = runner.counter.sync([pending.request])
    assert reply.answer is Answer.WRONG_DAY
    assert runner.book.exchanges.finish_top_up(pending, reply, 2_000) is None

    hold = runner.ask(2_000)
    assert hold is not None
    assert hold.day == NEXT
    runner.renew()
    assert (runner.leased(DAY), runner.leased(NEXT)) == (0, 2_000)


@pytest.mark.parametrize("late", [False, True], ids=["lost", "late"])
def test_money_granted_in_an_answer_that_did_not_count_comes_back(runner: Runner, late: bool) -> None:
    """Given up is 0 while a runner renews: it must find out what it was granted."""
    pending = runner.book.exchanges.begin_top_up("agent", 1_000)
    (reply,) = runner.counter.sync([pending.request])
    if late:
        runner.ms += TERMS.guard_ms + 1
        assert runner.book.exchanges.finish_top_up(pending, reply, 1_000) is None
    else:
        runner.book.exchanges.abandon(pending)
    assert runner.leased(DAY) == 1_000

    for _ in range(4):
        runner.ms += TERMS.ttl_ms // 3
        runner.renew()

    assert runner.leased(DAY) == 0
    assert runner.renew() == []


def test_endless_hold_of_a_forgotten_day_is_dropped(runner: Runner) -> None:
    assert runner.ask(1_000) is not None

    runner.ms = MIDNIGHT_MS + 2 * DAY_MS - 1
    assert len(runner.renew()) == 1
    runner.ms += 1
    assert runner.renew() == []
    assert runner.book.live_holds() == 0


def test_event_of_a_forgotten_day_is_kept(runner: Runner) -> None:
    hold = runner.ask(1_000)
    assert hold is not None
    hold.finalize(700)

    runner.ms = MIDNIGHT_MS + 2 * DAY_MS
    assert runner.renew() == []
    assert runner.book.unsettled.events() == runner.events


def test_renewal_does_not_hide_a_lost_grant(runner: Runner) -> None:
    pending = runner.book.exchanges.begin_top_up("agent", 1_000)
    runner.ms += 1
    runner.renew()
    runner.counter.sync([pending.request])
    runner.ms += 1
    runner.book.exchanges.abandon(pending)
    assert runner.leased(DAY) == 1_000

    for _ in range(4):
        runner.ms += TERMS.ttl_ms // 3
        runner.renew()

    assert runner.leased(DAY) == 0


def test_empty_hold_keeps_its_lease(runner: Runner) -> None:
    """P7: nothing is set aside for it, in the counter or here, but its call may cost something."""
    hold = runner.ask(0)
    assert hold is not None
    runner.ms = MIDNIGHT_MS + 10
    for _ in range(3):
        runner.renew()

    hold.finalize(800)

    assert runner.book.unsettled.events() == runner.events


def test_late_answer_does_not_hide_a_newer_grant(runner: Runner) -> None:
    """P5: the counter answered a renewal first, and then a question; the answers came the other way round."""
    question = runner.book.exchanges.begin_top_up("agent", 1)
    runner.ms += 1
    (renewal,) = runner.begin_renewal()
    (nothing,), (granted,) = runner.counter.sync([renewal.request]), runner.counter.sync([question.request])
    hold = runner.book.exchanges.finish_top_up(question, granted, 1)
    assert hold is not None
    hold.release()
    runner.book.exchanges.apply(renewal, nothing)

    (lost,) = runner.begin_renewal(hand_back=True)
    assert lost.request.returned_micros == 1
    runner.ms += 1
    runner.renew()

    assert runner.leased(DAY) == 0
    assert runner.renew() == []


def test_renewals_answer_does_not_answer_later_questions(runner: Runner) -> None:
    """P5: that question's answer came too late to count."""
    runner.book.exchanges.abandon(runner.book.exchanges.begin_top_up("agent", 1_000))
    (renewal,) = runner.begin_renewal()
    runner.ms += 1
    question = runner.book.exchanges.begin_top_up("agent", 1_000)
    (nothing,), (late,) = runner.counter.sync([renewal.request]), runner.counter.sync([question.request])
    runner.book.exchanges.apply(renewal, nothing)
    runner.ms += TERMS.guard_ms + 1
    assert runner.book.exchanges.finish_top_up(question, late, 1_000) is None

    for _ in range(4):
        runner.ms += TERMS.ttl_ms // 3
        runner.renew()

    assert runner.leased(DAY) == 0


def test_a_days_lease_is_dead_in_the_millisecond_that_its_day_ends(runner: Runner) -> None:
    """Also where the runner has yet to learn that it has."""
    runner.ms = MIDNIGHT_MS - 1
    hold = runner.ask(1_000)
    assert hold is not None
    runner.ms = MIDNIGHT_MS
    runner.book.clock.hear(MIDNIGHT_MS - 1)
    (renewal,) = runner.begin_renewal()
    (reply,) = runner.counter.sync([renewal.request])
    assert reply.answer is Answer.OK
    runner.book.exchanges.apply(renewal, reply)
    hold.release()

    assert runner.book.reserve("agent", 1_000) is None


def test_earmark_is_handed_back_after_its_day(runner: Runner) -> None:
    """P5, to the micro: until the question is over, nothing of the lease is in use but what it is owed."""
    runner.ms = MIDNIGHT_MS - 10
    hold = runner.ask(1)
    assert hold is not None
    hold.release()
    question = runner.book.exchanges.begin_top_up("agent", 5)
    assert question.earmarked == 1
    runner.renew()
    runner.ms = MIDNIGHT_MS + 10
    runner.renew()

    runner.book.exchanges.abandon(question)
    runner.renew()

    assert runner.leased(DAY) == 0
