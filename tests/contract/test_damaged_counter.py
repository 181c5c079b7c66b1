"""A counter that someone else wrote to is as good as lost: nothing is lent of it, and it is opened anew and fenced.

In a real server, by the real scripts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.counters.redis import RedisCounter, counter_key
from daycap.protocol.counter import (
    ACTIVE,
    Answer,
    DaySnapshot,
    LeaseKey,
    LeaseTerms,
    LeaseTotals,
    PublishReply,
    SyncRequest,
)

TERMS = LeaseTerms(ttl_ms=30_000, guard_ms=1_000, grace_ms=10_000)
LEASE = "a" * 32
FIELDS = ("seq", "status", "cap", "spent", "drawn", "leased", "given_up", "ttl_ms", "recall_until_ms")
UNREADABLE = ("", "x", "-1", "1.5", "1" * 18)
DAMAGES = [(field, value) for field in FIELDS for value in (None, *UNREADABLE) if value is None or field != "status"]
"""None is a missing field. Any text is a status, and only `active` lends."""


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def counter(redis_url: str) -> Iterator[RedisCounter]:
    counter = RedisCounter(redis_url, timeout_s=2)
    yield counter
    counter.close()


@pytest.fixture
def key(counter: RedisCounter) -> str:
    """An open day with one lease: 60 granted, 20 returned, 10 drawn."""
    first = DaySnapshot("agent", day_of(counter.now_ms()), 1, ACTIVE, 100, 0)
    counter.publish([first], TERMS, first_until_ms=counter.now_ms() + 10_000)
    sync(counter, granted=0, returned=0, need=60)
    sync(counter, granted=60, returned=20)
    publish(counter)
    return counter_key("agent", first.day)


def publish(counter: RedisCounter) -> PublishReply:
    day = day_of(counter.now_ms())
    snapshot = DaySnapshot("agent", day, 2, ACTIVE, 100, 10, 10, (LeaseTotals(LEASE, 10, 1, 1),), repairs=True)
    (reply,) = counter.publish([snapshot], TERMS)
    assert reply is not None
    return reply


def sync(counter: RedisCounter, granted: int = 60, returned: int = 20, need: int = 0) -> Answer:
    (reply,) = counter.sync([SyncRequest("agent", day_of(counter.now_ms()), LEASE, granted, returned, need, need)])
    return reply.answer


def lends(counter: RedisCounter) -> bool:
    return sync(counter, need=1) is Answer.OK


def is_read(counter: RedisCounter) -> bool:
    day = day_of(counter.now_ms())
    (reading,), (lease,) = counter.read([("agent", day)]), counter.read_leases([LeaseKey("agent", day, LEASE)])
    assert (reading is None) == (lease is None)
    return reading is not None


def check_opened_anew(counter: RedisCounter, client: redis.Redis, key: str) -> None:
    """Behind a fence, of the ledger's figures only, and whole again."""
    reply = publish(counter)
    assert (reply.opened, reply.fenced, reply.repaired, reply.leased_micros) == (True, True, False, 0)
    assert sync(counter, need=1) is Answer.FENCED
    again = publish(counter)
    assert (again.opened, again.repaired, again.leased_micros) == (False, False, 30)
    assert client.pexpiretime(key) == day_start_ms(day_of(counter.now_ms())) + 3 * DAY_MS


@pytest.mark.parametrize(("field", "value"), DAMAGES)
def test_a_field_that_cannot_be_read_is_noticed_by_whoever_needs_it(
    counter: RedisCounter, client: redis.Redis, key: str, field: str, value: str | None
) -> None:
    if value is None:
        client.hdel(key, field)
    else:
        client.hset(key, field, value)

    may_be_missing = value is None and field == "recall_until_ms"
    assert lends(counter) == (field in ("seq", "given_up") or may_be_missing)
    assert is_read(counter) == (field in ("ttl_ms", "recall_until_ms"))
    if not may_be_missing:
        check_opened_anew(counter, client, key)


@pytest.mark.parametrize("value", ["", "60 20 10 1 1", "60 20 10 1 1 x", "60 20 -1 1 1 1", "60 20 10 1 1 1 1"])
def test_a_lease_that_cannot_be_read_is_noticed(
    counter: RedisCounter, client: redis.Redis, key: str, value: str
) -> None:
    client.hset(key, f"lease:{LEASE}", value)
    assert not lends(counter)
    check_opened_anew(counter, client, key)


@pytest.mark.parametrize(("field", "value"), [("leased", 31), ("leased", 29), ("drawn", 9), ("drawn", 11)])
def test_sums_that_are_not_those_of_the_leases_are_noticed(
    counter: RedisCounter, client: redis.Redis, key: str, field: str, value: int
) -> None:
    client.hset(key, field, value)
    check_opened_anew(counter, client, key)


def test_a_key_of_another_type_is_no_counter(counter: RedisCounter, client: redis.Redis, key: str) -> None:
    client.delete(key)
    client.set(key, "text")
    assert sync(counter) is Answer.NOT_OPEN
    assert not is_read(counter)
    check_opened_anew(counter, client, key)


@pytest.mark.parametrize("damage", ["persist", "short", "long"])
def test_an_expiry_that_someone_changed_is_repaired(
    counter: RedisCounter, client: redis.Redis, key: str, damage: str
) -> None:
    right_ms = client.pexpiretime(key)
    if damage == "persist":
        client.persist(key)
    else:
        client.pexpireat(key, right_ms + (5_000 if damage == "long" else -5_000))

    reply = publish(counter)

    assert (reply.opened, reply.repaired) == (False, True)
    assert client.pexpiretime(key) == right_ms


def test_restored_server_lends_no_old_money(counter: RedisCounter, client: redis.Redis, key: str) -> None:
    """P4: whoever lives puts its lease back; what was drawn still counts."""
    client.hset(key, mapping={"run_id": "another life", f"lease:{LEASE}": "60 20 12 3 4 1", "drawn": 12, "leased": 28})
    assert not lends(counter)
    assert not is_read(counter)

    reply = publish(counter)

    assert (reply.opened, reply.fenced, reply.repaired, reply.leased_micros) == (True, True, False, 0)
    assert client.hget(key, f"lease:{LEASE}") == "0 0 12 3 4 1"
    assert sync(counter) is Answer.FENCED
    assert publish(counter).leased_micros == 28
