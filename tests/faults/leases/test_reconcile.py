"""Reconcile: whatever counter and ledger say differently is repaired and counted, and nothing else is (P3)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.ledger.slices import all_of
from daycap.protocol.counter import LeaseTerms, SyncRequest
from tests.events import event
from tests.faults.leases.conftest import LeaseSpine
from tests.faults.load import spending
from worker import housekeeping
from worker.deployment import Deployment

ENDED, LIVE = "a" * 32, "b" * 32
"""A lease of which all is settled or handed back, and one that has 40 out: leases of a runner in another language."""

Drift = Callable[[LeaseSpine, str, str], object]
"""What someone does to a counter behind daycap's back, given the agent and its key."""


def field(name: str, value: Any) -> Drift:
    return lambda spine, agent, key: spine.redis.hset(key, name, value)


def lease(lease_id: str, **changes: int) -> Drift:
    def change(spine: LeaseSpine, agent: str, key: str) -> None:
        changed = spine.lease(agent, f"{lease_id}-1")._replace(**changes)
        spine.redis.hset(key, f"lease:{lease_id}", " ".join(map(str, changed)))

    return change


def no_field(name: str) -> Drift:
    return lambda spine, agent, key: spine.redis.hdel(key, name)


def of_another_type(spine: LeaseSpine, agent: str, key: str) -> None:
    spine.redis.delete(key)
    spine.redis.lpush(key, "what is this")


def another_ttl(spine: LeaseSpine, agent: str, key: str) -> None:
    snapshots = spine.snapshots(agent)
    spine.counter.publish(snapshots, LeaseTerms(60_000, 400, 1_000))


REPAIRED: dict[str, Drift] = {
    "spent too low": field("spent", 1),
    "spent too high": field("spent", 99),
    "cap": field("cap", 1_000_000),
    "status": field("status", "paused"),
    "status that there is not": field("status", "happy"),
    "seq too low": field("seq", 1),
    "seq too high": field("seq", 12),
    "a settled lease had fewer events": lease(ENDED, events=0),
    "ttl": another_ttl,
    "no expiry": lambda spine, agent, key: spine.redis.persist(key),
    "an expiry that is too early": lambda spine, agent, key: spine.redis.pexpire(key, 60_000),
}
"""What a publish puts right."""

OPENED_ANEW: dict[str, Drift] = {
    "gone": lambda spine, agent, key: spine.redis.delete(key),
    "of another type": of_another_type,
    "of another life of the server": field("run_id", "0" * 40),
    "of no life": no_field("run_id"),
    "a settled lease drew less": lease(ENDED, drawn=3),
    "a lease that was given up drew less": lease(ENDED, granted=0, returned=0, drawn=3),
    "a settled lease is gone": no_field(f"lease:{ENDED}"),
    "a live lease drew less": lease(LIVE, drawn=5),
    "a live lease drew more": lease(LIVE, drawn=50),
    "a live lease is gone": no_field(f"lease:{LIVE}"),
    "leased is not the sum of its leases": field("leased", 0),
    "drawn is not the sum of its leases": field("drawn", 0),
    "leased is negative": field("leased", -40),
    "garbage in a lease": field(f"lease:{LIVE}", "what is this"),
    "a lease too many": field("lease:x", "9 0 0 0 0 0"),
} | {
    f"garbage in {name}": field(name, garbage)
    for name, garbage in {
        "seq": "",
        "cap": "what is this",
        "spent": "1e3",
        "drawn": "12.5",
        "leased": "nan",
        "ttl_ms": "0x10",
        "given_up": "-1",
        "recall_until_ms": "soon",
        "fence_until_ms": "later",
    }.items()
}
"""What nobody can put right: it is as good as lost."""


@pytest.fixture
def agent(spine: LeaseSpine) -> str:
    """Has spent 30, and 40 are out on lease; another agent beside it."""
    agents = [spine.add(name, 100) for name in ("agent-7", "agent-8")]
    for name in agents:
        leases = {ENDED: 50, LIVE: 50} if name == "agent-7" else {"c" * 32: 50, "d" * 32: 50}
        for each, need in leases.items():
            spine.counter.sync([SyncRequest(name, spine.today, each, 0, 0, need, need)])
        ended, live = leases
        spine.counter.sync([SyncRequest(name, spine.today, ended, 50, 30)])
        spine.deliver(
            event(name, spine.today, lease=ended, held=20, actual=20),
            event(name, spine.today, lease=live, held=10, actual=10),
        )
    assert spine.reconcile() == 0
    return agents[0]


def check_the_counter_is_the_ledgers(spine: LeaseSpine, agent: str) -> None:
    row, reading = spine.day_row(agent), spine.reading(agent)
    assert (reading.seq, reading.cap_micros, reading.spent_micros) == (row["seq"], 100, 30)
    assert (row["cap_micros"], row["spent_micros"], reading.status) == (100, 30, "active")
    for each, drawn in ((ENDED, 20), (LIVE, 10)):
        found = spine.lease(agent, f"{each}-1")
        assert (found.drawn, found.events, found.last_event) == (drawn, 1, 1)
    assert spine.redis.hget(spine.key(agent), "ttl_ms") == str(spine.settings.terms.ttl_ms)
    assert spine.redis.pexpiretime(spine.key(agent)) == day_start_ms(spine.today) + 3 * DAY_MS
    assert spine.ask("daycap.audit")["differences"] == []
    assert spine.reconcile() == 0


def check_others_were_left_alone(spine: LeaseSpine) -> None:
    other = spine.reading("agent-8")
    assert (other.fenced, other.spent_micros, other.leased_micros) == (False, 30, 40)


@pytest.mark.parametrize("drift", REPAIRED)
def test_drift_is_repaired_and_counted(spine: LeaseSpine, agent: str, drift: str) -> None:
    before, leased = spine.drift, spine.leased(agent)

    REPAIRED[drift](spine, agent, spine.key(agent))

    assert spine.reconcile() == 1
    assert spine.drift == before + 1
    assert (spine.reading(agent).fenced, spine.leased(agent)) == (False, leased)
    check_the_counter_is_the_ledgers(spine, agent)
    check_others_were_left_alone(spine)


@pytest.mark.parametrize("drift", OPENED_ANEW)
def test_damaged_counter_is_reopened_behind_a_fence(spine: LeaseSpine, agent: str, drift: str) -> None:
    before = spine.drift

    OPENED_ANEW[drift](spine, agent, spine.key(agent))

    assert spine.reconcile() == 1
    assert spine.drift == before + 1
    assert spine.reading(agent).fenced
    # And whoever lives puts its lease back
    (reply,) = spine.counter.sync([SyncRequest(agent, spine.today, LIVE, 50, 0)])
    assert (reply.granted_micros, reply.drawn_micros, spine.leased(agent)) == (50, 10, 40)
    check_the_counter_is_the_ledgers(spine, agent)
    check_others_were_left_alone(spine)


@pytest.mark.parametrize("drift", ["of another type", "garbage in spent", "garbage in a lease"])
def test_a_counter_that_cannot_be_read_stops_nobody_elses(spine: LeaseSpine, drift: str) -> None:
    """A runner renews all its agents in one pipeline, a worker publishes all days of a batch in one."""
    agent, other, a = spine.add("agent-7", 100), spine.add("agent-8", 100), spine.wallet()
    broken, whole = a.reserve(agent, 40), a.reserve(other, 40)
    before_ms = spine.lease(other, whole.id).deadline_ms

    OPENED_ANEW[drift](spine, agent, spine.key(agent))

    spine.wait_for(lambda: spine.lease(other, whole.id).deadline_ms > before_ms)
    # And of itself it hears soon: the runner asks, the worker opens, the lease is put back
    spine.wait_for(lambda: spine.is_open(agent) and spine.leased(agent) == 40)
    OPENED_ANEW[drift](spine, agent, spine.key(agent))
    broken.finalize(30)
    whole.finalize(30)
    assert a.flush(timeout=20) == ()
    assert (spine.reading(agent).spent_micros, spine.reading(other).spent_micros) == (30, 30)
    a.close()
    spine.check_all_ended(agent, other)


def test_a_pause_is_no_drift_of_a_day_that_is_over(spine: LeaseSpine, agent: str) -> None:
    yesterday = day_of(spine.counter.now_ms() - DAY_MS)
    spine.deliver(event(agent, yesterday, lease="e" * 32))
    assert spine.reconcile() == 0

    spine.ask("daycap.set_status", agent=agent, status="paused", changed_by="ann")

    assert spine.reconcile() == 0
    (reading,) = spine.counter.read([(agent, yesterday)])
    assert reading is not None
    assert reading.status == "paused"


def test_a_ledger_restored_from_an_older_copy_is_believed(spine: LeaseSpine, agent: str, tmp_path: Path) -> None:
    ledger = Path(spine.settings.ledger_url.removeprefix("sqlite:///"))
    copy(ledger, tmp_path / "copy.sqlite3")
    spine.deliver(event(agent, spine.today, lease=LIVE, number=2, held=10, actual=10))
    spine.deliver(event(agent, spine.today, lease=LIVE, number=3, held=10, actual=10))
    before, seq = spine.drift, spine.reading(agent).seq
    assert spine.reading(agent).spent_micros == 50

    copy(tmp_path / "copy.sqlite3", ledger)

    assert spine.reconcile() == 1
    assert spine.drift == before + 1
    assert (spine.reading(agent).spent_micros, spine.reading(agent).seq) == (30, seq + 1)
    assert spine.ask("daycap.audit")["differences"] == []
    # And what comes after is believed too
    spine.deliver(event(agent, spine.today, lease=ENDED, number=2, held=5, actual=5))
    assert spine.reading(agent).spent_micros == 35
    assert spine.reconcile() == 0


def copy(source: Path, target: Path) -> None:
    """As an operator would, with SQLite's own backup."""
    with sqlite3.connect(source) as there, sqlite3.connect(target, timeout=20) as here:
        there.backup(here)
    there.close()
    here.close()


def test_under_load_there_is_no_drift_and_no_harm(spine: LeaseSpine) -> None:
    """Another worker reconciles without a pause while this one settles."""
    agents = [spine.add(f"agent-{number}", 10_000_000) for number in range(3)]
    deployment = Deployment.from_settings(spine.settings)
    wallet = spine.wallet(redis_timeout_seconds=0.12)
    found: list[Any] = []
    with spending(wallet, agents[0]) as a, spending(wallet, agents[1]) as b:
        while min(a.calls, b.calls) < 200 or len(found) < 15:
            found.append(all_of(lambda place: housekeeping.reconcile(deployment.ledger, deployment.publisher, place)))
    assert wallet.close(timeout=30) == ()
    deployment.publisher.close()
    deployment.ledger.close()

    assert {each["drift"] for each in found} == {0}
    assert [spine.day_row(agent)["settled_count"] for agent in agents] == [a.calls, b.calls, 0]
    assert not any(spine.reading(agent).fenced for agent in agents)
    spine.check_all_ended(*agents)
