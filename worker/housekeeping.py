"""Expire and reconcile: keep the counter correct between settles. Both are safe to run late, or twice at once."""

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
"""Seconds that another worker's publish may take. A counter that is behind for less than that is not drift."""


def expire(ledger: Ledger, publisher: CounterPublisher, settled_before_ms: Callable[[int], int], place: Place) -> Slice:
    """Expire the leases of dead runners whose events are all settled. One step.

    Counts `days` checked, days still `fenced`, and `given_up_micros`. `settled_before_ms` maps the counter's time to
    one before which every event is settled, 0 if unknown. Only the first step calls it.
    """
    now_ms = publisher.now_ms()
    if now_ms is None:
        return Slice({"days": 0}, None)
    before_ms, *place = place or [settled_before_ms(now_ms)]
    # Leases are granted today, and yesterday's may still be held. Older days were done long ago.
    on = [day_of(now_ms - DAY_MS), day_of(now_ms)]
    agent_days = _agent_days(ledger, on, place) if before_ms > 0 else []
    if not agent_days:
        return Slice({"days": 0}, None)
    readings = publisher.read(agent_days)
    leased = [where for where, reading in zip(agent_days, readings, strict=True) if _may_expire(reading)]
    replies = publisher.publish(_snapshots(ledger, leased), expire_before_ms=before_ms)
    counts = {
        "days": len(agent_days),
        "fenced": sum(reply is not None and reply.fenced for reply in replies),
        "given_up_micros": sum(reply.given_up_micros for reply in replies if reply is not None),
    }
    return Slice(counts, [before_ms, *days.place_after(agent_days)])


def reconcile(ledger: Ledger, publisher: CounterPublisher, place: Place) -> Slice:
    """Compare the counter with the ledger and publish what differs. One step.

    Counts `days` checked and those with `drift`. Checks every day that the counter may still have. The publish script
    compares by itself, atomically.
    """
    now_ms = publisher.now_ms()
    if now_ms is None:
        return Slice({"days": 0, "drift": 0}, None)
    on = [day_of(now_ms + offset_ms) for offset_ms in (-2 * DAY_MS, -DAY_MS, 0, DAY_MS)]
    agent_days = _agent_days(ledger, on, place)
    if not agent_days:
        return Slice({"days": 0, "drift": 0}, None)
    seqs = _seqs(publisher, agent_days)
    snapshots = _snapshots(ledger, agent_days)
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
        logger.warning("reconcile: %d of %d days differed from the ledger and were republished", drift, len(agent_days))
    return Slice({"days": len(agent_days), "drift": drift}, days.place_after(agent_days))


def _publish_lost(ledger: Ledger, publisher: CounterPublisher, behind: list[DaySnapshot]) -> int:
    """Publish the days for which the counter stays behind these snapshots. Returns their number."""
    if not behind:
        return 0
    time.sleep(_PUBLISH_S)
    seqs = _seqs(publisher, [(s.agent, s.day) for s in behind])
    lost = [(s.agent, s.day) for s in behind if seqs[s.agent, s.day] < s.seq]
    publisher.publish(_snapshots(ledger, lost))
    return len(lost)


def _seqs(publisher: CounterPublisher, agent_days: list[AgentDay]) -> dict[AgentDay, int]:
    """Return the seq that the counter has of each day; -1 if the day is not open there."""
    readings = publisher.read(agent_days)
    return {where: -1 if reading is None else reading.seq for where, reading in zip(agent_days, readings, strict=True)}


def _agent_days(ledger: Ledger, on: list[str], place: Place) -> list[AgentDay]:
    """Return the next agent-days that have a row, ordered by day and agent."""

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
    """Raise the ledger's seq above the counter's, which is ahead if the ledger was restored from an older backup."""
    overtaken = []
    for agent, day, seq in ahead:
        here = (spending.c.agent_account_id == agent, spending.c.spending_date == day)
        with ledger.writing() as connection:
            statement = sa.update(spending).where(*here, spending.c.seq < seq).values(seq=seq + 1)
            if connection.execute(statement).rowcount:
                overtaken += read_snapshots(connection, [(agent, day)])
    return overtaken
