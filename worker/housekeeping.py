"""Expire and reconcile: what keeps the counter honest between settles. Each is safe to run twice, and late."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.ledger import days
from daycap.ledger.agent_days import AgentDay
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import Place, Slice
from daycap.ledger.snapshots import read_snapshots
from daycap.ledger.tables import daily_agent_spending as spending
from daycap.protocol.counter import DayReading, DaySnapshot
from worker import metrics

logger = logging.getLogger("daycap.worker")

_AT_ONCE = 500

_PUBLISH_S = 0.1
"""How long a publish that another worker has under way may take: until then a counter that is behind is no drift."""


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

    Counts `days` looked at and those with `drift`. Looks at every day whose counter may be there. The publish itself
    compares: in one script, so that nothing moves in between.
    """
    now_ms = publisher.now_ms()
    if now_ms is None:
        return Slice({"days": 0, "drift": 0}, None)
    on = [day_of(now_ms + offset_ms) for offset_ms in (-2 * DAY_MS, -DAY_MS, 0, DAY_MS)]
    some = _days_with_a_row(ledger, on, place)
    if not some:
        return Slice({"days": 0, "drift": 0}, None)
    seqs = _seqs(publisher, some)
    snapshots = _snapshots(ledger, some)
    behind = [s for s in snapshots if seqs[s.agent, s.day] < s.seq]
    drift = _publish_lost(ledger, publisher, behind)
    level = [s for s in snapshots if seqs[s.agent, s.day] >= s.seq]
    replies = publisher.publish(level)
    drift += sum(reply is not None and (reply.repaired or reply.opened) for reply in replies)
    ahead = [(s.agent, s.day, r.seq) for s, r in zip(level, replies, strict=False) if r is not None and r.seq > s.seq]
    overtaken = _overtake(ledger, ahead)
    publisher.publish(overtaken)
    drift += len(overtaken)
    if drift:
        metrics.DRIFT.inc(drift)
        logger.warning("reconcile: %d of %d days differed from the ledger, published anew", drift, len(some))
    return Slice({"days": len(some), "drift": drift}, days.place_after(some))


def _publish_lost(ledger: Ledger, publisher: CounterPublisher, behind: list[DaySnapshot]) -> int:
    """Publish the days whose counter stays behind these snapshots. Returns how many there were."""
    if not behind:
        return 0
    time.sleep(_PUBLISH_S)
    seqs = _seqs(publisher, [(s.agent, s.day) for s in behind])
    lost = [(s.agent, s.day) for s in behind if seqs[s.agent, s.day] < s.seq]
    publisher.publish(_snapshots(ledger, lost))
    return len(lost)


def _seqs(publisher: CounterPublisher, agent_days: list[AgentDay]) -> dict[AgentDay, int]:
    """What the counter has of the ledger, by seq; -1 where it is not open."""
    readings = publisher.read(agent_days)
    return {where: -1 if reading is None else reading.seq for where, reading in zip(agent_days, readings, strict=True)}


def _days_with_a_row(ledger: Ledger, on: list[str], place: Place) -> list[AgentDay]:
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


def _snapshots(ledger: Ledger, agent_days: list[AgentDay]) -> list[DaySnapshot]:
    with ledger.reading() as connection:
        return read_snapshots(connection, agent_days)


def _may_expire(reading: DayReading | None) -> bool:
    return reading is not None and (reading.leased_micros > 0 or reading.fenced)


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
