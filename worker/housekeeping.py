"""Expire and reconcile: what keeps the counter honest between settles. Each is safe to run twice, and late."""

from __future__ import annotations

import logging
from collections.abc import Callable

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.counter import DayReading, DaySnapshot
from daycap.ledger_reader import read_snapshots
from worker import days, metrics
from worker.ledger import Ledger
from worker.publish import CounterPublisher
from worker.schema import daily_agent_spending as spending
from worker.slices import Place, Slice

logger = logging.getLogger("daycap.worker")

_AT_ONCE = 500


def expire(ledger: Ledger, publisher: CounterPublisher, settled_before_ms: Callable[[int], int], place: Place) -> Slice:
    """A step of giving up what runners that are gone had set aside, where the queue has caught up with them.

    Counts `days` looked at, `fenced` that still are, and `given_up_micros`. `settled_before_ms` maps the counter's
    time to one before which every event is settled, 0 for unknown; it is asked once, by the first step.
    """
    now_ms = publisher.now_ms()
    if now_ms is None:
        return Slice({"days": 0}, None)
    before_ms, *place = place or [settled_before_ms(now_ms)]
    # Money is lent today; what was lent of yesterday is still held. Older days have long been looked at.
    on = [day_of(now_ms - DAY_MS), day_of(now_ms)]
    some = _days_with_a_row(ledger, on, place) if before_ms > 0 else []
    if not some:
        return Slice({"days": 0}, None)
    readings = publisher.read(some)
    leased = [where for where, reading in zip(some, readings, strict=True) if _may_expire(reading)]
    replies = publisher.publish(_snapshots(ledger, leased), expire_before_ms=before_ms)
    counts = {
        "days": len(some),
        "fenced": sum(reply is not None and reply.fenced for reply in replies),
        "given_up_micros": sum(reply.given_up_micros for reply in replies if reply is not None),
    }
    return Slice(counts, [before_ms, *days.place_after(some)])


def reconcile(ledger: Ledger, publisher: CounterPublisher, place: Place) -> Slice:
    """A step of comparing the counter with the ledger, and publishing what differs.

    Counts `days` looked at and those with `drift`. Looks at every day whose counter may be there.
    """
    now_ms = publisher.now_ms()
    if now_ms is None:
        return Slice({"days": 0, "drift": 0}, None)
    on = [day_of(now_ms + offset_ms) for offset_ms in (-2 * DAY_MS, -DAY_MS, 0, DAY_MS)]
    some = _days_with_a_row(ledger, on, place)
    if not some:
        return Slice({"days": 0, "drift": 0}, None)
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
    if wrong:
        metrics.DRIFT.inc(len(wrong))
        logger.warning("reconcile: %d of %d days differed from the ledger, published anew", len(wrong), len(some))
    return Slice({"days": len(some), "drift": len(wrong)}, days.place_after(some))


def _days_with_a_row(ledger: Ledger, on: list[str], place: Place) -> list[days.AgentDay]:
    """The next of them, by day and agent."""

    def agents_after(day: str, last: str) -> list[str]:
        statement = (
            sa.select(spending.c.agent_account_id)
            .where(spending.c.spending_date == day, spending.c.agent_account_id > last)
            .order_by(spending.c.agent_account_id)
            .limit(_AT_ONCE)
        )
        with ledger.reading() as connection:
            return list(connection.scalars(statement))

    return days.walk(on, place, agents_after)


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
