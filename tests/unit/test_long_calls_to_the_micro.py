"""A call that is extended, or settled in parts, moves every micro once: each is held, free or charged."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from daycap import BudgetUnavailable, HoldEnded
from daycap.wallet.hold import AsyncHold, Hold, kinds
from daycap.wallet.lease_book import LeaseBook
from tests.runner_without_io import CAP, MIDNIGHT_MS, TERMS, Runner, free, held

HELD = 1_000


@pytest.fixture
def runner() -> Runner:
    runner = Runner()
    runner.book.exchanges.slice_seconds = 0  # Nothing is lent ahead.
    runner.book.reserve_more = lambda agent, more_micros, **_: held(runner, more_micros)
    return runner


@pytest.fixture
def hold(runner: Runner) -> Hold:
    return held(runner, HELD)


def said(runner: Runner) -> list[tuple[str, int, int]]:
    """What the events say: the number of the hold, what it held, what it cost."""
    return [(e.reservation.rpartition("-")[2], e.held_micros, e.actual_micros) for e in runner.events]


def test_a_part_is_a_hold_of_its_own_that_is_charged_at_once(runner: Runner, hold: Hold) -> None:
    before_ms = time.time_ns() // 1_000_000
    hold.settle_part(300)
    hold.settle_part(1)

    assert (hold.held_micros, hold.ended, free(runner), runner.book.live_holds()) == (699, False, 0, 1)
    other = held(runner, 5)
    assert other.id.endswith("-4"), "each part has a number that no other hold has"
    hold.finalize(600)
    assert said(runner) == [("2", 300, 300), ("3", 1, 1), ("1", 699, 600)]
    assert (free(runner), runner.book.live_holds()) == (99, 1)
    assert all(before_ms <= event.at_ms <= time.time_ns() // 1_000_000 for event in runner.events)


def test_a_part_may_cost_more_than_is_held(runner: Runner, hold: Hold) -> None:
    hold.settle_part(HELD + 200)

    assert (hold.held_micros, hold.ended, free(runner)) == (0, False, 0)
    hold.finalize(0)
    assert said(runner) == [("2", HELD, HELD + 200), ("1", 0, 0)]


def test_a_hold_that_ended_or_is_the_parents_has_no_parts(runner: Runner, hold: Hold) -> None:
    ended, parents = held(runner, 10), hold
    ended.release()
    with pytest.raises(HoldEnded, match="already finalized or released"):
        ended.settle_part(1)

    runner.book.forget()
    with pytest.raises(HoldEnded, match="forked"):
        parents.settle_part(1)
    assert said(runner) == []


def test_a_part_cut_off_is_charged_once(runner: Runner, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the exception of a signal's handler, while its event is handed on."""
    emit = runner.book.emit

    def cut_off(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.book, "emit", cut_off)
    with pytest.raises(KeyboardInterrupt):
        hold.settle_part(300)
    monkeypatch.setattr(runner.book, "emit", emit)

    assert (runner.book.live_holds(), hold.held_micros) == (1, HELD - 300)
    assert [event.actual_micros for event in runner.book.unsettled.events()] == [300]
    assert said(runner) == [("2", 300, 300)]


def test_what_a_hold_is_extended_by_is_its_own_and_no_second_hold(runner: Runner, hold: Hold) -> None:
    hold.extend(500)

    assert (hold.held_micros, free(runner), runner.book.live_holds()) == (HELD + 500, 0, 1)
    hold.release()
    assert (free(runner), runner.book.live_holds()) == (HELD + 500, 0)


def test_a_hold_of_an_event_loop_is_extended_too(runner: Runner, hold: Hold) -> None:
    async def reserve_more(agent: str, more_micros: int, **_: Any) -> Hold:
        return held(runner, more_micros)

    runner.book.reserve_more = reserve_more
    runner.book._ended_type, runner.book._make_hold = kinds(AsyncHold, traced=False)
    hold.release()
    in_loop: Any = held(runner, HELD)
    asyncio.run(in_loop.extend(500))

    assert (in_loop.held_micros, runner.book.live_holds()) == (HELD + 500, 1)


def test_more_is_given_back_if_the_hold_ended_meanwhile(runner: Runner, hold: Hold) -> None:
    more = held(runner, 500)
    hold.finalize(HELD)

    with pytest.raises(HoldEnded):
        runner.book.join(hold, more)

    assert more.ended
    assert (hold.held_micros, free(runner), runner.book.live_holds()) == (HELD, 500, 0)


def test_more_of_another_lease_is_given_back(runner: Runner, hold: Hold) -> None:
    runner.book.leases.retire(hold._lease)

    with pytest.raises(BudgetUnavailable, match="call settle_part and reserve again"):
        hold.extend(500)

    assert (hold.held_micros, hold.ended, free(runner), runner.book.live_holds()) == (HELD, False, 500, 1)


def test_the_parents_hold_is_not_extended_with_the_childs_money(runner: Runner, hold: Hold) -> None:
    runner.book.forget()
    runner.book.clock.hear(runner.ms)

    with pytest.raises(HoldEnded, match="forked"):
        hold.extend(500)
    assert (free(runner), runner.book.live_holds()) == (500, 0)


def test_two_holds_of_one_lease_are_joined_only_while_both_can_be_used(runner: Runner, hold: Hold) -> None:
    more = held(runner, 500)
    runner.book.join(hold, more)

    with pytest.raises(HoldEnded):
        more.finalize(1)
    with pytest.raises(HoldEnded):
        more.release()
    assert (hold.held_micros, runner.book.live_holds()) == (HELD + 500, 1)


def test_an_answer_that_is_applied_as_the_day_ends_makes_no_hold(runner: Runner) -> None:
    """P4: at its deadline, to the millisecond, a lease is over."""
    runner.ms = MIDNIGHT_MS - TERMS.guard_ms
    pending = runner.book.exchanges.begin_top_up("agent", CAP)
    (reply,) = runner.counter.sync([pending.request])
    runner.ms = MIDNIGHT_MS

    assert runner.book.exchanges.finish_top_up(pending, reply, CAP) is None


def test_keeper_hears_of_every_ended_event() -> None:
    runner, told = Runner(), list[int]()
    runner.book = LeaseBook(
        runner.events.append,
        lambda event: told.append(event.number),
        guard_ms=TERMS.guard_ms,
        slice_seconds=2,
        now_ns=lambda: runner.ms * 1_000_000,
    )
    runner.book.clock.hear(runner.ms)
    one, two = held(runner, 10), held(runner, 10)
    one.finalize(10)
    runner.settle(*runner.events)
    runner.renew()
    assert told == [1]

    two.finalize(10)
    runner.ms += 60_000
    assert [event.number for event in runner.book.unsettled.stalled(15_000_000_000)] == [2]
    runner.ms += 3 * 86_400_000
    assert [event.number for event in runner.book.unsettled.drop_expired()] == [2]
    assert told == [1, 2]
