"""Every counter keeps the same contract: the tests run on Redis' scripts, in a server and in
this process, and on the counter in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from daycap.clock import DAY_MS, day_of, day_start_ms, wall_ms
from daycap.counters.memory import MemoryCounter
from daycap.counters.redis import RedisCounter, counter_key
from daycap.money import MAX_MICROS
from daycap.protocol.counter import (
    ACTIVE,
    PAUSED,
    UNKNOWN,
    Answer,
    Counter,
    DaySnapshot,
    LeaseKey,
    LeaseTerms,
    LeaseTotals,
    SyncReply,
    SyncRequest,
)
from tests.simulation.scripts_in_process import ScriptsInProcess

TERMS = LeaseTerms(ttl_ms=30_000, guard_ms=1_000, grace_ms=10_000)
A, B = "a" * 32, "b" * 32


@pytest.fixture(params=["memory", "redis", "scripts in process"])
def counter(request: pytest.FixtureRequest) -> Iterator[Counter]:
    if request.param == "memory":
        yield MemoryCounter()
        return
    if request.param == "scripts in process":
        yield ScriptsInProcess(wall_ms)
        return
    counter = RedisCounter(request.getfixturevalue("redis_url"), timeout_s=2)
    yield counter
    counter.close()


@pytest.fixture
def forget(counter: Counter, request: pytest.FixtureRequest) -> Callable[[], object]:
    """Lose every key, as FLUSHALL does."""
    if isinstance(counter, MemoryCounter | ScriptsInProcess):
        return counter.flush
    url: str = request.getfixturevalue("redis_url")
    return redis.Redis.from_url(url).flushall


@pytest.fixture
def today(counter: Counter) -> str:
    return day_of(counter.now_ms())


def snapshot(
    day: str, *leases: LeaseTotals, cap: int = 100, spent: int = 0, seq: int = 1, status: str = ACTIVE
) -> DaySnapshot:
    drawn = sum(totals.drawn_micros for totals in leases)
    return DaySnapshot("agent", day, seq, status, cap, spent, drawn, leases, repairs=True)


def open_day(counter: Counter, day: str, cap: int = 100) -> None:
    (reply,) = counter.publish([snapshot(day, cap=cap)], TERMS, first_until_ms=counter.now_ms() + 10_000)
    assert reply is not None
    assert (reply.opened, reply.fenced) == (True, False)


def sync(
    counter: Counter, day: str, lease: str = A, granted: int = 0, returned: int = 0, need: int = 0, want: int = 0
) -> SyncReply:
    (reply,) = counter.sync([SyncRequest("agent", day, lease, granted, returned, need, max(need, want))])
    return reply


def test_a_counter_that_nobody_opened_grants_nothing(counter: Counter, today: str) -> None:
    assert sync(counter, today, need=1).answer is Answer.NOT_OPEN
    assert counter.read([("agent", today)]) == [None]


def test_an_unknown_agent_is_told_so_until_it_is_added(counter: Counter, today: str) -> None:
    assert counter.publish([snapshot(today, status=UNKNOWN)], TERMS) == [None]
    assert sync(counter, today, need=1).answer is Answer.UNKNOWN_AGENT
    assert counter.read([("agent", today)]) == [None]
    open_day(counter, today)
    assert sync(counter, today, need=1).answer is Answer.OK


def test_need_is_granted_up_to_the_cap_and_not_a_micro_beyond(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=100)
    assert sync(counter, today, A, need=60).granted_micros == 60
    refused = sync(counter, today, B, need=41)
    assert (refused.answer, refused.granted_micros, refused.leased_micros) == (Answer.REFUSED, 0, 60)
    assert sync(counter, today, B, need=40).granted_micros == 40


def test_a_wish_is_met_with_an_eighth_of_what_remains(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=800)
    assert sync(counter, today, need=1, want=1_000).granted_micros == 100


def test_a_lost_reply_counts_first(counter: Counter, today: str) -> None:
    """P6: granted is absolute, so asking again for what was granted already takes nothing more."""
    open_day(counter, today, cap=100)
    assert sync(counter, today, granted=0, need=60).granted_micros == 60
    again = sync(counter, today, granted=0, need=60)
    assert (again.answer, again.granted_micros, again.leased_micros) == (Answer.OK, 60, 60)
    assert sync(counter, today, granted=0, need=100).granted_micros == 100


def test_money_handed_back_can_be_lent_again(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=100)
    sync(counter, today, A, granted=100, returned=30)
    assert sync(counter, today, B, need=31).answer is Answer.REFUSED
    assert sync(counter, today, B, need=30).answer is Answer.OK


def test_totals_that_come_late_change_nothing(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=100)
    sync(counter, today, need=100)
    sync(counter, today, granted=100, returned=70)
    late = sync(counter, today, granted=50, returned=10)
    assert (late.granted_micros, late.leased_micros) == (100, 30)


def test_a_refusal_recalls_what_others_do_not_use(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=60)
    assert not sync(counter, today, A, granted=60).recall
    sync(counter, today, B, need=50)
    assert sync(counter, today, A, granted=60).recall
    assert sync(counter, today, B, need=1, want=40).granted_micros == 1, "while it recalls, none gets a slice"


def test_a_lone_lease_that_is_refused_recalls_nothing(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=60)
    assert not sync(counter, today, A, granted=60, need=50).recall


def test_settling_moves_money_from_leased_to_spent(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=60)
    counter.publish([snapshot(today, LeaseTotals(A, 25, 2, 3), spent=25, seq=2)], TERMS)
    (reading,) = counter.read([("agent", today)])
    assert reading is not None
    assert (reading.spent_micros, reading.leased_micros, reading.remaining_micros) == (25, 35, 40)
    reply = sync(counter, today, A, granted=60)
    assert (reply.drawn_micros, reply.events, reply.last_event) == (25, 2, 3)


def test_what_is_settled_of_a_lease_can_be_read_without_renewing_it(counter: Counter, today: str) -> None:
    leases = [LeaseKey("agent", today, A), LeaseKey("agent", today, B)]
    assert counter.read_leases(leases) == [None, None]
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=60)
    counter.publish([snapshot(today, LeaseTotals(A, 25, 2, 3), spent=25, seq=2)], TERMS)

    assert counter.read_leases(leases) == [LeaseTotals(A, 25, 2, 3), LeaseTotals(B, 0, 0, 0)]

    over_ms = counter.now_ms() + TERMS.ttl_ms + TERMS.grace_ms + 5_000
    (reply,) = counter.publish([snapshot(today, seq=2)], TERMS, expire_before_ms=over_ms)
    assert reply is not None
    assert reply.given_up_micros == 35


def test_an_older_snapshot_changes_neither_cap_nor_spent(counter: Counter, today: str) -> None:
    """P4: of two publishes that cross, the one with the smaller seq is ignored."""
    open_day(counter, today, cap=100)
    counter.publish([snapshot(today, cap=50, spent=40, seq=7)], TERMS)
    counter.publish([snapshot(today, LeaseTotals(A, 5, 1, 1), cap=100, spent=5, seq=6)], TERMS)
    (reading,) = counter.read([("agent", today)])
    assert reading is not None
    assert (reading.cap_micros, reading.spent_micros, reading.seq) == (50, 40, 7)


def test_drawn_never_goes_down(counter: Counter, today: str) -> None:
    open_day(counter, today)
    counter.publish([snapshot(today, LeaseTotals(A, 9, 3, 4), seq=3)], TERMS)
    counter.publish([snapshot(today, LeaseTotals(A, 5, 1, 1), seq=2)], TERMS)
    reply = sync(counter, today, A, granted=20)
    assert (reply.drawn_micros, reply.events, reply.last_event, reply.leased_micros) == (9, 3, 4, 11)


def test_paused_agent_keeps_what_it_holds(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=100)
    sync(counter, today, need=10)
    counter.publish([snapshot(today, status=PAUSED, seq=2)], TERMS)
    reply = sync(counter, today, granted=10, need=1)
    assert (reply.answer, reply.granted_micros, reply.leased_micros) == (Answer.PAUSED, 10, 10)


def test_a_lowered_cap_refuses_at_once_and_recalls(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=100)
    sync(counter, today, need=60)
    counter.publish([snapshot(today, cap=50, seq=2)], TERMS)
    reply = sync(counter, today, granted=60, need=1)
    assert (reply.answer, reply.recall) == (Answer.REFUSED, True)


def test_drawn_money_counts_under_a_raised_cap(counter: Counter, today: str) -> None:
    """P4: the money is spent, though the ledger could not charge it under the cap of that moment."""
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=60)
    counter.publish([snapshot(today, cap=10, seq=2)], TERMS)
    counter.publish([snapshot(today, LeaseTotals(A, 60, 1, 1), cap=10, spent=10, seq=3)], TERMS)
    counter.publish([snapshot(today, LeaseTotals(A, 60, 1, 1), cap=100, spent=10, seq=4)], TERMS)

    (reading,) = counter.read([("agent", today)])
    assert reading is not None
    assert (reading.spent_micros, reading.drawn_micros, reading.remaining_micros) == (10, 60, 40)
    refused = sync(counter, today, B, need=41)
    assert (refused.answer, refused.spent_micros) == (Answer.REFUSED, 60)
    assert sync(counter, today, B, need=40).answer is Answer.OK


def test_a_counter_that_lost_its_keys_is_fenced(counter: Counter, today: str, forget: Callable[[], None]) -> None:
    """P4: until every living runner has put its lease back, no new money."""
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=60)
    forget()
    assert sync(counter, today, A, granted=60).answer is Answer.NOT_OPEN
    (reply,) = counter.publish([snapshot(today, seq=2)], TERMS)
    assert reply is not None
    assert (reply.opened, reply.fenced) == (True, True)
    assert sync(counter, today, B, need=1).answer is Answer.FENCED
    assert sync(counter, today, A, granted=60).leased_micros == 60, "a lease is put back behind the fence"

    counter.publish([snapshot(today, seq=2)], TERMS, expire_before_ms=counter.now_ms() + 30_000)
    assert sync(counter, today, B, need=1).answer is Answer.FENCED, "ttl and grace are not over"
    later_ms = counter.now_ms() + TERMS.ttl_ms + TERMS.guard_ms + TERMS.grace_ms
    (reply,) = counter.publish([snapshot(today, seq=2)], TERMS, expire_before_ms=later_ms + 1_000)
    assert reply is not None
    assert not reply.fenced
    assert reply.given_up_micros >= 40
    assert sync(counter, today, B, need=1).answer is Answer.OK


def test_what_an_old_copy_had_lent_is_nobodys(redis_url: str) -> None:
    """P4: a reply was lost, the lease given up and lent to another; then a replica of before takes over."""
    counter = RedisCounter(redis_url, timeout_s=2)
    today = day_of(counter.now_ms())
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=60)
    with redis.Redis.from_url(redis_url) as client:
        client.hset(counter_key("agent", today), "run_id", "another life of a server")

    (reply,) = counter.publish([snapshot(today, LeaseTotals(B, 25, 1, 1), spent=25)], TERMS)

    assert reply is not None
    assert (reply.opened, reply.fenced, reply.leased_micros) == (True, True, 0)
    unseen = sync(counter, today, A, granted=0, need=60)
    assert (unseen.answer, unseen.granted_micros) == (Answer.FENCED, 0)
    assert sync(counter, today, A, granted=60, need=0).leased_micros == 60, "who lives puts its lease back"
    counter.close()


def test_first_counts_only_for_a_while(counter: Counter, today: str) -> None:
    """A first publish that was held up may come after leases were given and lost: it must fence."""
    (reply,) = counter.publish([snapshot(today)], TERMS, first_until_ms=counter.now_ms() - 1)
    assert reply is not None
    assert reply.fenced


def test_a_day_that_has_not_begun_needs_no_fence(counter: Counter, today: str, forget: Callable[[], None]) -> None:
    """Nobody can have leased of it: where the counter was lost before midnight, the next day is open in time."""
    later = day_of(day_start_ms(today) + 2 * DAY_MS)
    for _ in range(2):
        (reply,) = counter.publish([snapshot(later)], TERMS)
        assert reply is not None
        assert (reply.opened, reply.fenced) == (True, False)
        forget()


def test_a_first_publish_that_was_overtaken_lets_the_fence_fall(counter: Counter, today: str) -> None:
    """Two workers meet at a new day: the one that did not insert its row may be faster."""
    (overtaking,) = counter.publish([snapshot(today)], TERMS)
    assert overtaking is not None
    assert overtaking.fenced
    (first,) = counter.publish([snapshot(today)], TERMS, first_until_ms=counter.now_ms() + 10_000)
    assert first is not None
    assert not first.fenced
    assert sync(counter, today, need=1).answer is Answer.OK


def test_a_second_publish_does_not_fence_an_open_day(counter: Counter, today: str) -> None:
    open_day(counter, today)
    (reply,) = counter.publish([snapshot(today, seq=2)], TERMS)
    assert reply is not None
    assert (reply.opened, reply.fenced) == (False, False)


def test_given_up_leases_late_totals_are_exact(counter: Counter, today: str) -> None:
    """P5, and no phantom: what the dead runner had drawn still counts when its events come in."""
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=60)
    over_ms = counter.now_ms() + TERMS.ttl_ms + TERMS.grace_ms
    (reply,) = counter.publish([snapshot(today)], TERMS, expire_before_ms=over_ms - 5_000)
    assert reply is not None
    assert (reply.given_up_micros, reply.leased_micros) == (0, 60)
    (reply,) = counter.publish([snapshot(today)], TERMS, expire_before_ms=over_ms + 5_000)
    assert reply is not None
    assert (reply.given_up_micros, reply.leased_micros) == (60, 0)
    counter.publish([snapshot(today, LeaseTotals(A, 20, 1, 1), spent=20, seq=2)], TERMS)
    (reading,) = counter.read([("agent", today)])
    assert reading is not None
    assert (reading.spent_micros, reading.leased_micros, reading.given_up_micros) == (20, 0, 60)
    back = sync(counter, today, A, granted=60)
    assert back.leased_micros == 40, "a runner that comes back puts its lease back, less what is settled"


def test_a_ttl_that_is_made_shorter_takes_back_no_deadline(counter: Counter, today: str) -> None:
    """P4: the runner trusts what it was told before."""
    open_day(counter, today, cap=100)
    sync(counter, today, A, need=60)
    shorter = LeaseTerms(ttl_ms=1_000, guard_ms=100, grace_ms=100)
    counter.publish([snapshot(today, seq=2)], shorter)
    assert sync(counter, today, A, granted=60).ttl_ms == 1_000

    (reply,) = counter.publish([snapshot(today, seq=2)], shorter, expire_before_ms=counter.now_ms() + 20_000)

    assert reply is not None
    assert (reply.given_up_micros, reply.leased_micros) == (0, 60)


def test_money_is_only_granted_for_the_day_that_it_is(counter: Counter, today: str) -> None:
    now_ms = counter.now_ms()
    for other in (day_of(now_ms - DAY_MS), day_of(now_ms + DAY_MS)):
        counter.publish([snapshot(other)], TERMS, first_until_ms=now_ms + 10_000)
        reply = sync(counter, other, need=1)
        assert reply.answer is Answer.WRONG_DAY
        assert day_of(reply.now_ms) == today
        assert sync(counter, other, granted=5).answer is Answer.OK, "totals of another day are taken"


def test_the_largest_amount_is_exact(counter: Counter, today: str) -> None:
    open_day(counter, today, cap=MAX_MICROS)
    reply = sync(counter, today, need=MAX_MICROS)
    assert (reply.granted_micros, reply.leased_micros, reply.cap_micros) == (MAX_MICROS,) * 3
    totals = LeaseTotals(A, MAX_MICROS, 1, 1)
    counter.publish([snapshot(today, totals, cap=MAX_MICROS, spent=MAX_MICROS, seq=MAX_MICROS)], TERMS)
    (reading,) = counter.read([("agent", today)])
    assert reading is not None
    assert (reading.spent_micros, reading.seq, reading.leased_micros) == (MAX_MICROS, MAX_MICROS, 0)


def test_redis_counting_has_an_expiry_set_at_the_first_write(redis_url: str) -> None:
    """The script that first writes the hash also sets when it goes: two days after the day's end."""
    counter = RedisCounter(redis_url, timeout_s=2)
    today = day_of(counter.now_ms())
    open_day(counter, today)
    with redis.Redis.from_url(redis_url) as client:
        expected_ms = day_start_ms(today) + 3 * DAY_MS
        assert client.pexpiretime(counter_key("agent", today)) == expected_ms
        sync(counter, today, need=1)
        counter.publish([snapshot(today, seq=2)], TERMS)
        assert client.pexpiretime(counter_key("agent", today)) == expected_ms
    counter.close()
