"""Where every limit of the counter lies, to the millisecond and the micro: in the scripts and in memory alike."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from daycap.clock import DAY_MS, day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.money import MAX_MICROS
from daycap.protocol.counter import (
    ACTIVE,
    PAUSED,
    UNKNOWN,
    Answer,
    DayReading,
    DaySnapshot,
    LeaseTerms,
    LeaseTotals,
    PublishReply,
    SyncReply,
    SyncRequest,
)
from tests.simulation.scripts_in_process import ScriptsInProcess

DAY = "2026-11-24"
START_MS = day_start_ms(DAY)
NOON_MS = START_MS + DAY_MS // 2
TERMS = LeaseTerms(ttl_ms=30_000, guard_ms=1_000, grace_ms=10_000)
A, B = "a" * 32, "b" * 32


class Day:
    """One agent's day in a counter, on a clock that the test sets."""

    def __init__(self, make: Callable[[Callable[[], int]], MemoryCounter | ScriptsInProcess]) -> None:
        self.ms = NOON_MS
        self.counter = make(lambda: self.ms)

    def publish(self, *leases: LeaseTotals, terms: LeaseTerms = TERMS, day: str = DAY, **said: Any) -> PublishReply:
        times = {name: said.pop(name) for name in ("expire_before_ms", "first_until_ms") if name in said}
        snapshot = DaySnapshot(
            "agent", day, **{"seq": 1, "status": ACTIVE, "cap_micros": 100, "spent_micros": 0, **said}
        )
        drawn = sum(each.drawn_micros for each in leases)
        snapshot = snapshot._replace(leases=leases, drawn_micros=drawn, repairs=True)
        (reply,) = self.counter.publish([snapshot], terms, **times)
        assert reply is not None
        return reply

    def open(self, **said: Any) -> None:
        self.publish(first_until_ms=self.ms + 1, **said)

    def sync(self, lease: str = A, granted: int = 0, returned: int = 0, need: int = 0, want: int = 0) -> SyncReply:
        (reply,) = self.counter.sync([SyncRequest("agent", DAY, lease, granted, returned, need, max(need, want))])
        return reply

    def read(self) -> DayReading | None:
        (reading,) = self.counter.read([("agent", DAY)])
        return reading


@pytest.fixture(params=[MemoryCounter, ScriptsInProcess])
def day(request: pytest.FixtureRequest) -> Day:
    return Day(request.param)


def test_each_answer_says_all_there_is_to_say(day: Day) -> None:
    day.open(cap_micros=800, seq=4)

    assert day.sync(need=60) == SyncReply(Answer.OK, NOON_MS, 60, 0, 0, 0, 30_000, 800, 0, 60, False)
    assert day.publish(LeaseTotals(A, 25, 2, 3), cap_micros=800, spent_micros=20, seq=5) == PublishReply(
        NOON_MS, 5, False, False, False, 35, 0
    )
    assert day.sync(B, need=5) == SyncReply(Answer.OK, NOON_MS, 5, 0, 0, 0, 30_000, 800, 25, 40, False)
    assert day.sync(A, granted=60) == SyncReply(Answer.OK, NOON_MS, 60, 25, 2, 3, 30_000, 800, 25, 40, False)
    assert day.read() == DayReading(NOON_MS, 5, ACTIVE, 800, 20, 25, 40, 0, False)


@pytest.mark.parametrize(
    ("at_ms", "answer"),
    [
        (START_MS - 1, Answer.WRONG_DAY),
        (START_MS, Answer.OK),
        (START_MS + DAY_MS - 1, Answer.OK),
        (START_MS + DAY_MS, Answer.WRONG_DAY),
    ],
)
def test_a_day_begins_and_ends_to_the_millisecond(day: Day, at_ms: int, answer: Answer) -> None:
    day.ms = at_ms
    day.open()
    assert day.sync(need=1).answer is answer
    assert day.sync(need=0).answer is Answer.OK


def test_one_micro_too_much_is_refused(day: Day) -> None:
    day.open(cap_micros=0)
    assert day.sync(need=1).answer is Answer.REFUSED
    assert day.sync(need=0).answer is Answer.OK


def test_lease_is_given_up_after_its_grace(day: Day) -> None:
    day.open()
    day.sync(A, need=60)
    day.ms += 5_000
    day.sync(A, granted=60)  # It is renewed.
    day.sync(B, need=1)
    over_ms = day.ms + TERMS.ttl_ms + TERMS.grace_ms

    assert day.publish(expire_before_ms=over_ms).given_up_micros == 0
    reply = day.publish(expire_before_ms=over_ms + 1)
    assert (reply.given_up_micros, reply.leased_micros) == (61, 0)
    assert day.publish(expire_before_ms=over_ms + 1).given_up_micros == 0, "only once"

    day.sync(B, need=7)
    assert day.publish(expire_before_ms=over_ms + 60_000).given_up_micros == 7
    reading = day.read()
    assert reading is not None
    assert reading.given_up_micros == 68


def test_a_given_up_lease_that_had_handed_back_comes_back_exact(day: Day) -> None:
    day.open()
    day.sync(A, need=60)
    day.sync(A, granted=60, returned=20)
    assert day.publish(expire_before_ms=day.ms + 60_000).given_up_micros == 40
    assert day.sync(A, granted=60, returned=30).leased_micros == 30


def test_old_message_revives_no_returned_lease(day: Day) -> None:
    """Where nothing is given up, the totals stay."""
    day.open()
    day.sync(A, need=60)
    day.sync(A, granted=60, returned=60)
    assert day.publish(expire_before_ms=day.ms + 60_000).given_up_micros == 0
    assert day.sync(A, granted=60).leased_micros == 0


def test_a_fence_falls_a_millisecond_after_its_ttl_guard_and_grace(day: Day) -> None:
    assert day.publish().fenced
    day.sync(A, granted=30)
    day.publish(LeaseTotals(A, 10, 1, 1), LeaseTotals(B, 15, 1, 1), spent_micros=20, seq=2)
    over_ms = day.ms + TERMS.ttl_ms + TERMS.guard_ms + TERMS.grace_ms
    again: Any = {"spent_micros": 20, "seq": 2}
    day.ms += 20_000
    day.sync(A, granted=30)

    assert day.publish(expire_before_ms=over_ms, **again).fenced
    assert day.sync(B, need=1).answer is Answer.FENCED
    reply = day.publish(expire_before_ms=over_ms + 1, **again)

    assert not reply.fenced
    assert reply.given_up_micros == 100 - 25 - 20, "the cap less what is drawn and what is leased"
    assert day.sync(B, need=1).answer is Answer.OK
    assert day.publish(expire_before_ms=over_ms + 1, **again).given_up_micros == 0


@pytest.mark.parametrize(("cap", "spent", "given_up"), [(100, 90, 10), (100, 100, 0), (50, 100, 0)])
def test_a_fence_gives_up_what_is_left_of_the_cap(day: Day, cap: int, spent: int, given_up: int) -> None:
    day.publish(cap_micros=cap, spent_micros=spent)
    reply = day.publish(cap_micros=cap, spent_micros=spent, expire_before_ms=day.ms + 60_000)
    assert (reply.fenced, reply.given_up_micros) == (False, given_up)


@pytest.mark.parametrize(("left_ms", "given_up"), [(1, 100), (0, 0)])
def test_a_fence_of_a_day_that_is_over_gives_up_nothing(day: Day, left_ms: int, given_up: int) -> None:
    day.publish()
    day.ms = START_MS + DAY_MS - left_ms
    reply = day.publish(expire_before_ms=day.ms)
    assert (reply.fenced, reply.given_up_micros) == (False, given_up)


def test_first_ends_to_the_millisecond(day: Day) -> None:
    assert day.publish(first_until_ms=day.ms).fenced
    assert day.publish(first_until_ms=day.ms).fenced
    assert not day.publish(first_until_ms=day.ms + 1).fenced


@pytest.mark.parametrize(("ahead_ms", "fenced"), [(TERMS.ttl_ms, True), (TERMS.ttl_ms + 1, False)])
def test_a_day_that_begins_more_than_a_ttl_later_has_no_fence(day: Day, ahead_ms: int, fenced: bool) -> None:
    day.ms = START_MS - ahead_ms
    assert day.publish().fenced is fenced


def test_a_recall_lasts_half_a_ttl_and_stops_slices_until_then(day: Day) -> None:
    day.open(cap_micros=1_000)
    day.sync(A, need=1)
    assert day.sync(B, need=1_000).recall, "there is another lease, of one micro"

    day.ms += TERMS.ttl_ms // 2 - 1
    assert day.sync(A, granted=1).recall
    assert day.sync(A, granted=1, need=1, want=50).granted_micros == 2
    day.ms += 1
    assert not day.sync(A, granted=2).recall
    assert day.sync(A, granted=2, need=1, want=50).granted_micros == 52


@pytest.mark.parametrize(
    ("need", "want", "granted"), [(10, 50, 50), (10, 100, 100), (10, 101, 100), (200, 300, 200), (10, 10, 10)]
)
def test_a_slice_is_what_is_wanted_up_to_an_eighth(day: Day, need: int, want: int, granted: int) -> None:
    day.open(cap_micros=807)
    assert day.sync(need=need, want=want).granted_micros == granted


def test_what_was_granted_unheard_counts_for_need_and_wish(day: Day) -> None:
    day.open(cap_micros=1_000)
    day.sync(need=60)
    assert day.sync(granted=0, need=70, want=100).granted_micros == 60 + 40
    assert day.sync(granted=0, need=99, want=1_000).granted_micros == 100, "nothing is missing"


def test_a_leases_totals_stop_at_the_largest_amount(day: Day) -> None:
    day.open(cap_micros=MAX_MICROS)
    near = MAX_MICROS - 10
    assert day.sync(A, granted=near, returned=near).leased_micros == 0
    reply = day.sync(A, granted=near, returned=near, need=5, want=100)
    assert (reply.granted_micros, reply.leased_micros) == (MAX_MICROS, 10)


def test_a_lease_that_drew_more_than_it_has_frees_nothing_for_others(day: Day) -> None:
    day.open()
    day.publish(LeaseTotals(A, 50, 1, 1), spent_micros=30, seq=2)
    assert day.sync(A, granted=20).leased_micros == 0
    assert day.sync(B, need=51).answer is Answer.REFUSED
    assert day.sync(A, granted=20, need=10).leased_micros == 0, "what it drew beyond its totals comes first"
    assert day.sync(B, need=50).leased_micros == 50


def test_more_out_than_the_cap_by_one_micro_is_recalled(day: Day) -> None:
    day.open()
    day.sync(need=60)
    day.publish(cap_micros=60, seq=2)
    assert not day.sync(granted=60).recall
    day.publish(cap_micros=59, seq=3)
    assert day.sync(granted=60).recall
    assert day.sync(granted=60, returned=1).leased_micros == 59


def test_a_lease_alone_recalls_nothing_and_one_micro_of_another_does(day: Day) -> None:
    day.open()
    day.sync(A, need=60)
    assert not day.sync(A, granted=60, need=41).recall
    day.sync(B, need=1)
    assert day.sync(A, granted=60, need=41).recall


@pytest.mark.parametrize(
    ("said", "repaired"),
    [
        ({}, False),
        ({"cap_micros": 99}, True),
        ({"spent_micros": 11}, True),
        ({"status": PAUSED}, True),
        ({"seq": 3, "cap_micros": 99, "spent_micros": 11, "status": PAUSED}, False),
        ({"seq": 1, "cap_micros": 99}, False),
        ({"terms": LeaseTerms(30_001, 1_000, 10_000)}, True),
        ({"terms": LeaseTerms(30_000, 999, 9_999)}, False),
    ],
)
def test_what_differs_at_the_same_seq_is_repaired(day: Day, said: dict[str, Any], repaired: bool) -> None:
    day.open(seq=2, spent_micros=10)
    before = day.read()
    reply = day.publish(**{"seq": 2, "spent_micros": 10, **said})
    assert (reply.repaired, reply.opened) == (repaired, False)
    reading = day.read()
    assert reading is not None
    if said.get("seq") == 1:
        assert reading == before
    else:
        expected = (said.get("status", ACTIVE), said.get("cap_micros", 100), said.get("spent_micros", 10))
        assert (reading.status, reading.cap_micros, reading.spent_micros) == expected


@pytest.mark.parametrize(
    ("seq", "totals", "repaired"),
    [
        (2, LeaseTotals(A, 9, 3, 4), False),
        (2, LeaseTotals(A, 10, 3, 4), True),
        (2, LeaseTotals(A, 9, 4, 4), True),
        (2, LeaseTotals(A, 9, 3, 5), True),
        (2, LeaseTotals(A, 8, 2, 3), False),
        (3, LeaseTotals(A, 10, 4, 5), False),
    ],
)
def test_totals_of_a_lease_only_grow_each_by_itself(day: Day, seq: int, totals: LeaseTotals, repaired: bool) -> None:
    day.open(seq=2)
    day.publish(LeaseTotals(A, 9, 3, 4), seq=2)
    assert day.publish(totals, seq=seq).repaired is repaired
    reply = day.sync(granted=20)
    assert (reply.drawn_micros, reply.events, reply.last_event) == (
        max(9, totals.drawn_micros),
        max(3, totals.events),
        max(4, totals.last_event),
    )
    assert reply.leased_micros == 20 - reply.drawn_micros


def test_a_day_is_forgotten_two_days_after_its_end(day: Day) -> None:
    day.open()
    day.ms = START_MS + 3 * DAY_MS - 1
    assert day.sync().answer is Answer.OK
    assert day.read() is not None
    day.ms += 1
    assert day.read() is None
    assert day.sync().answer is Answer.NOT_OPEN


def test_that_an_agent_is_unknown_is_forgotten_after_ten_seconds(day: Day) -> None:
    unknown = DaySnapshot("agent", DAY, 0, UNKNOWN, 0, 0)
    assert day.counter.publish([unknown], TERMS) == [None]
    day.ms += 9_999
    assert day.sync(need=1).answer is Answer.UNKNOWN_AGENT
    assert day.read() is None
    assert day.counter.read_leases([]) == []
    day.ms += 1
    assert day.sync(need=1).answer is Answer.NOT_OPEN


def test_an_open_day_is_not_made_unknown(day: Day) -> None:
    day.open()
    assert day.counter.publish([DaySnapshot("agent", DAY, 9, UNKNOWN, 0, 0)], TERMS) == [None]
    assert day.sync(need=100).answer is Answer.OK


def test_opened_stranger_lasts_as_long_as_others(day: Day) -> None:
    day.counter.publish([DaySnapshot("agent", DAY, 0, UNKNOWN, 0, 0)], TERMS)
    day.open()
    day.ms += 10_000
    assert day.sync(need=1).answer is Answer.OK
    reply = day.publish()
    assert (reply.opened, reply.repaired) == (False, False)


def test_the_time_is_exact_to_the_millisecond(day: Day) -> None:
    day.ms += 999
    assert day.publish().now_ms == day.ms
    reading = day.read()
    assert reading is not None
    assert (reading.now_ms, reading.fenced) == (day.ms, True)
    assert day.sync(need=1).now_ms == day.ms


def test_what_others_have_is_what_is_leased_less_ones_own_outstanding(day: Day) -> None:
    day.open(cap_micros=100)
    day.sync(A, need=60)
    day.sync(A, granted=60, returned=10)
    day.publish(LeaseTotals(A, 10, 1, 1), spent_micros=10, seq=2)
    assert day.sync(A, granted=60, returned=10, need=5).leased_micros == 45
    day.sync(B, need=1)
    assert day.sync(A, granted=65, returned=10, need=50).recall


def test_memory_counter_is_empty_in_a_forked_child() -> None:
    children: list[Any] = []

    def now_ms() -> int:
        if forking and not children:
            children.append(os.fork())
            if children == [0]:
                signal.alarm(20)  # Where it waits for its parent's lock, for ever.
                counter.forget()
                os._exit(counter.read([("agent", DAY)]) != [None])
        return NOON_MS

    forking, counter = False, MemoryCounter(now_ms)
    counter.publish([DaySnapshot("agent", DAY, 1, ACTIVE, 100, 0)], TERMS)
    forking = True

    assert counter.read([("agent", DAY)]) != [None]

    (child,) = children
    assert os.waitpid(child, 0)[1] == 0
