"""Expire and reconcile: keep the counter correct between settles. Both are safe to run late, or twice at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from daycap.clock import DAY_MS, day_of
from daycap.ledger import days, walks
from daycap.ledger.engine import Ledger
from daycap.ledger.folding import fold
from daycap.ledger.plan_check import repair_plans
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import Place, Slice
from daycap.ledger.snapshots import read_repairs, read_rows
from daycap.protocol.counter import KEPT_DAYS, AgentDay, CounterLease, DayReading, DaySnapshot
from daycap.protocol.runs import is_run
from worker import metrics

logger = logging.getLogger("daycap.worker")

_CROWDED = 40
"""From how many fields on a day's leases are folded. Fewer cost nothing, and each fold writes to the ledger."""

_MOST_COMPARED = 1000
"""Up to how many fields all leases of a day are compared: Redis does nothing else meanwhile, some milliseconds."""

_PUBLISH_S = 0.1
"""Seconds that another worker's publish may take. A counter that is behind for less than that is not drift."""


def expire(
    ledger: Ledger,
    publisher: CounterPublisher,
    settled_before_ms: Callable[[int], int],
    place: Place,
    *,
    fold_above: int = _CROWDED,
) -> Slice:
    """Expire the leases of dead runners whose events are all settled, and fold the leases of ended ones. One step.

    Goes through agents' days, then through budgets' periods. Counts `days` and periods checked, those still `fenced`,
    leases `folded`, and `given_up_micros`. `settled_before_ms` maps the counter's time to one before which every event
    is settled, 0 if unknown. Only the first step calls it. Leases are folded where the counter has more than
    `fold_above` fields.
    """
    now_ms = publisher.now_ms()
    if now_ms is None:
        return Slice({"days": 0}, None)
    before_ms, *place = place or [settled_before_ms(now_ms)]
    if before_ms <= 0:
        return Slice({"days": 0}, None)
    # Leases are granted now, and those of a day ago may still be held. Older periods were done long ago.
    agent_days, place = walks.step(ledger, place, [day_of(now_ms - DAY_MS), day_of(now_ms)], now_ms - DAY_MS, now_ms)
    if not agent_days:
        return Slice({"days": 0}, None)
    open_days = {
        where: reading for where, reading in zip(agent_days, publisher.read(agent_days), strict=True) if reading
    }
    crowded = {where for where, size in publisher.sizes(list(open_days)).items() if size > fold_above}
    wanted = [where for where, each in open_days.items() if each.leased_micros > 0 or each.fenced or where in crowded]
    overdue = publisher.overdue(wanted, before_ms)
    folds = fold(ledger, {where: finished for where in crowded if (finished := _finished(overdue[where]))})
    publisher.publish(ledger, folds)
    replies = publisher.publish(
        ledger,
        _rows(ledger, wanted),
        expire_before_ms=before_ms,
        overdue={where: _outstanding(leases) for where, leases in overdue.items()},
    )
    counts = {
        "days": len(agent_days),
        "fenced": sum(reply is not None and reply.fenced for reply in replies),
        "folded": sum(len(each.folded) for each in folds),
        "given_up_micros": sum(reply.given_up_micros for reply in replies if reply is not None),
    }
    return Slice(counts, [before_ms, *place])


def _outstanding(leases: dict[str, CounterLease]) -> list[str]:
    """Return those that still have money set aside."""
    return [lease for lease, each in leases.items() if each.outstanding_micros > 0]


def _finished(leases: dict[str, CounterLease]) -> list[tuple[str, int]]:
    """Return those that said farewell and have nothing set aside, with what it named."""
    return [
        (lease, each.farewell)
        for lease, each in leases.items()
        if each.farewell is not None and each.outstanding_micros == 0
    ]


def reconcile(ledger: Ledger, publisher: CounterPublisher, place: Place) -> Slice:
    """Compare the counter with the ledger and publish what differs. One step.

    Goes through agents' days, then through budgets' periods: all that the counter may still have. Counts `days` and
    periods checked, and those with `drift`. The publish script compares by itself, atomically. Of a day with very many
    leases it compares only the sums. Compares the plans of agents whose today is open, too, and repairs them.
    """
    now_ms = publisher.now_ms()
    if now_ms is None:
        return Slice({"days": 0, "drift": 0}, None)
    on = [day_of(now_ms + ago * DAY_MS) for ago in range(-KEPT_DAYS, 2)]
    agent_days, place = walks.step(ledger, place, on, now_ms - KEPT_DAYS * DAY_MS)
    if not agent_days:
        return Slice({"days": 0, "drift": 0}, None)
    today = day_of(now_ms)
    drift = repair_plans(ledger, publisher, [agent for agent, day in agent_days if day == today])
    readings = dict(zip(agent_days, publisher.read(agent_days), strict=True))
    # A run that is not open is known to one process only.
    agent_days = [where for where in agent_days if readings[where] is not None or not is_run(where[0])]
    small = {where for where, size in publisher.sizes(agent_days).items() if 0 < size <= _MOST_COMPARED}
    rows = [
        *_repairs(ledger, publisher, sorted(small)),
        *_rows(ledger, [where for where in agent_days if where not in small]),
    ]
    behind = [row for row in rows if _seq(readings[row.agent, row.day]) < row.seq]
    drift += _publish_lost(ledger, publisher, behind)
    level = [row for row in rows if _seq(readings[row.agent, row.day]) >= row.seq]
    replies = publisher.publish(ledger, level)
    drift += sum(reply is not None and (reply.repaired or reply.opened) for reply in replies)
    ahead = {
        (row.agent, row.day): reply.seq
        for row, reply in zip(level, replies, strict=False)
        if reply is not None and reply.seq > row.seq
    }
    overtaken = _overtake(ledger, ahead)
    publisher.publish(ledger, _repairs(ledger, publisher, overtaken))
    drift += len(overtaken)
    if drift:
        metrics.DRIFT.inc(drift)
        logger.warning("reconcile: %d of %d days differed from the ledger and were repaired", drift, len(agent_days))
    return Slice({"days": len(agent_days), "drift": drift}, place)


def _publish_lost(ledger: Ledger, publisher: CounterPublisher, behind: list[DaySnapshot]) -> int:
    """Publish the days for which the counter stays behind these snapshots. Returns their number."""
    if not behind:
        return 0
    time.sleep(_PUBLISH_S)
    wanted = [(row.agent, row.day) for row in behind]
    readings = publisher.read(wanted)
    lost = [where for where, row, reading in zip(wanted, behind, readings, strict=True) if _seq(reading) < row.seq]
    publisher.publish(ledger, _rows(ledger, lost))
    return len(lost)


def _seq(reading: DayReading | None) -> int:
    """Return the seq that the counter has of a day; -1 if the day is not open there."""
    return -1 if reading is None else reading.seq


def _rows(ledger: Ledger, agent_days: list[AgentDay]) -> list[DaySnapshot]:
    with ledger.reading() as connection:
        return read_rows(connection, agent_days)


def _repairs(ledger: Ledger, publisher: CounterPublisher, agent_days: list[AgentDay]) -> list[DaySnapshot]:
    seen = publisher.leases(agent_days)
    with ledger.reading() as connection:
        return read_repairs(connection, seen)


def _overtake(ledger: Ledger, ahead: dict[AgentDay, int]) -> list[AgentDay]:
    """Raise the ledger's seq above the counter's, which is ahead if the ledger was restored from an older backup.

    Returns the days of which it was raised.
    """
    if not ahead:
        return []
    with ledger.writing() as connection:
        rows = days.lock(connection, ahead)
        overtaken = [where for where, row in rows.items() if row.seq < ahead[where]]
        for where in overtaken:
            days.set_seq(connection, where, ahead[where] + 1)
    return overtaken
