"""Expire and reconcile: what keeps the counter honest between settles. Each is safe to run twice, and late."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.counter import DayReading, DaySnapshot
from daycap.ledger_reader import read_snapshots
from worker import days, metrics
from worker.ledger import Ledger
from worker.publish import CounterPublisher
from worker.schema import daily_agent_spending as spending

logger = logging.getLogger("daycap.worker")

_AT_ONCE = 500


class Expired(NamedTuple):
    """What one expire found: days looked at, fences that still stand, micros given up."""

    days: int
    fenced: int
    given_up_micros: int


class Reconciled(NamedTuple):
    """What one reconcile found: days looked at, days that differed and were published anew."""

    days: int
    drift: int


def expire(ledger: Ledger, publisher: CounterPublisher, settled_before_ms: Callable[[int], int]) -> Expired:
    """Give up what runners that are gone had set aside, where the queue has caught up with them.

    `settled_before_ms` maps the counter's time to one before which every event is settled, 0 for unknown.
    """
    now_ms = publisher.now_ms()
    before_ms = settled_before_ms(now_ms) if now_ms is not None else 0
    looked_at = fenced = given_up = 0
    if now_ms is None or before_ms <= 0:
        return Expired(0, 0, 0)
    for some in _days_in_use(ledger, now_ms):
        looked_at += len(some)
        readings = publisher.read(some)
        leased = [where for where, reading in zip(some, readings, strict=True) if _may_expire(reading)]
        replies = publisher.publish(_snapshots(ledger, leased), expire_before_ms=before_ms)
        fenced += sum(reply is not None and reply.fenced for reply in replies)
        given_up += sum(reply.given_up_micros for reply in replies if reply is not None)
    return Expired(looked_at, fenced, given_up)


def reconcile(ledger: Ledger, publisher: CounterPublisher) -> Reconciled:
    """Compare the counter with the ledger for the days in use and publish what differs."""
    now_ms = publisher.now_ms()
    looked_at = drift = 0
    if now_ms is None:
        return Reconciled(0, 0)
    for some in _days_in_use(ledger, now_ms):
        looked_at += len(some)
        readings = publisher.read(some)
        snapshots = _snapshots(ledger, some)
        differing = [
            (snapshot, reading)
            for snapshot, reading in zip(snapshots, readings, strict=True)
            if reading is None or _differs(snapshot, reading)
        ]
        # What was settled between the two looks is not drift: look again at what differs, the counter last.
        settled = _snapshots(ledger, [(s.agent, s.day) for s, _ in differing])
        again = publisher.read([(s.agent, s.day) for s in settled])
        wrong = [s for s, r in zip(settled, again, strict=True) if r is None or (_differs(s, r) and r.seq <= s.seq)]
        ahead = [(s.agent, s.day, r.seq) for s, r in zip(settled, again, strict=True) if r and r.seq > s.seq]
        wrong += _overtake(ledger, ahead)
        publisher.publish(wrong)
        drift += len(wrong)
    if drift:
        metrics.DRIFT.inc(drift)
        logger.warning("reconcile: %d of %d days differed from the ledger and were published anew", drift, looked_at)
    return Reconciled(looked_at, drift)


def _days_in_use(ledger: Ledger, now_ms: int) -> Iterator[list[days.AgentDay]]:
    """Every day that has a row and whose counter may be there still, some at a time."""
    oldest = day_of(now_ms - 2 * DAY_MS)
    last: days.AgentDay = ("", "")
    key = sa.tuple_(spending.c.agent_account_id, spending.c.spending_date)
    while True:
        statement = (
            sa.select(spending.c.agent_account_id, spending.c.spending_date)
            .where(spending.c.spending_date >= oldest, key > last)
            .order_by(spending.c.agent_account_id, spending.c.spending_date)
            .limit(_AT_ONCE)
        )
        with ledger.reading() as connection:
            some = [(row[0], row[1]) for row in connection.execute(statement)]
        if not some:
            return
        yield some
        last = some[-1]


def _snapshots(ledger: Ledger, agent_days: list[days.AgentDay]) -> list[DaySnapshot]:
    with ledger.reading() as connection:
        return read_snapshots(connection, agent_days)


def _may_expire(reading: DayReading | None) -> bool:
    return reading is not None and (reading.leased_micros > 0 or reading.fenced)


def _differs(snapshot: DaySnapshot, reading: DayReading) -> bool:
    return (snapshot.seq, snapshot.status, snapshot.cap_micros, snapshot.spent_micros) != (
        reading.seq,
        reading.status,
        reading.cap_micros,
        reading.spent_micros,
    )


def _overtake(ledger: Ledger, ahead: list[tuple[str, str, int]]) -> list[DaySnapshot]:
    """A counter that is ahead of the ledger, which was restored from an older copy: the ledger goes past it."""
    overtaken = []
    for agent, day, seq in ahead:
        here = (spending.c.agent_account_id == agent, spending.c.spending_date == day)
        with ledger.writing() as connection:
            statement = sa.update(spending).where(*here, spending.c.seq < seq).values(seq=seq + 1)
            if connection.execute(statement).rowcount:
                overtaken += read_snapshots(connection, [(agent, day)])
    return overtaken
