"""What beat sends. Each may come late, twice at once, or not at all for a while.

Each works in slices: when its time is over it sends itself on with the place where it stopped, behind what waits, so
that events are settled in between. A message that is lost costs nothing: beat's next one starts from the beginning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import Task

from daycap.errors import CounterUnavailable
from daycap.ledger import opening, retention
from daycap.ledger.engine import is_transient
from daycap.ledger.slices import Place, Slice, slice_of
from worker import housekeeping
from worker.celery import app
from worker.deployment import deployment
from worker.queue import settled_before_ms

logger = logging.getLogger("daycap.worker")

_started_s = time.monotonic()
_beat_s: dict[str, float] = {}
"""When this process last got each task from beat, on the same clock."""
_ended_s: dict[str, float] = {}
"""When this process last ended a slice of each task, on a clock that no one sets."""


@app.task(name="daycap.rollover", bind=True)
def rollover(self: Task, place: Place | None = None, every_s: float = 0) -> dict[str, Any]:
    """Open today, and ahead of midnight the next day, for every active agent; then prune what is old."""
    parts = deployment()
    ahead_ms = round(parts.settings.open_ahead_hours * 3_600_000)
    done = _slice(self, lambda at: opening.rollover(parts.ledger, parts.publisher, ahead_ms, at), place, every_s)
    if done.place is None:
        prune.apply_async()
    return done.counts


@app.task(name="daycap.prune", bind=True)
def prune(self: Task, place: Place | None = None) -> dict[str, Any]:
    """Delete what the settings no longer keep."""
    parts = deployment()
    now_ms = parts.publisher.authoritative_ms()
    return _slice(self, lambda at: retention.prune(parts.ledger, parts.settings, now_ms, at), place).counts


@app.task(name="daycap.expire", bind=True)
def expire(self: Task, place: Place | None = None, every_s: float = 0) -> dict[str, Any]:
    """Give up the leases of runners that are gone."""
    parts = deployment()

    def step(at: Place) -> Slice:
        return housekeeping.expire(parts.ledger, parts.publisher, lambda now_ms: settled_before_ms(app, now_ms), at)

    return _slice(self, step, place, every_s).counts


@app.task(name="daycap.reconcile", bind=True)
def reconcile(self: Task, place: Place | None = None, every_s: float = 0) -> dict[str, Any]:
    """Repair the counter where it differs from the ledger."""
    parts = deployment()
    return _slice(self, lambda at: housekeeping.reconcile(parts.ledger, parts.publisher, at), place, every_s).counts


@app.task(name="daycap.last_beat", ignore_result=False)
def last_beat() -> dict[str, Any]:
    """How long ago this worker last got each of beat's tasks; with several workers, others may have got later ones."""
    now_s = time.monotonic()
    return {
        "result": [
            {
                "task": each["task"],
                "every_s": each["kwargs"]["every_s"],
                "came": each["task"] in _beat_s,
                "ago_s": now_s - _beat_s.get(each["task"], _started_s),
            }
            for each in app.conf.beat_schedule.values()
        ]
    }


def _slice(task: Task, step: Callable[[Place], Slice], place: Place | None, every_s: float = 0) -> Slice:
    """Do one slice and send the task on with the rest.

    `every_s` is how often beat sends a task from the beginning. A worker that was away finds a day's worth of them,
    and a long one is not begun anew while it is under way: one that comes early is dropped. No clock of a host is
    asked, as Celery's `expires` would.
    """
    if every_s and not place:
        _beat_s[task.name] = time.monotonic()
    if not place and time.monotonic() - _ended_s.get(task.name, float("-inf")) < every_s / 2:
        return Slice({}, [])
    try:
        done = slice_of(step, place or [])
    except Exception as error:
        if not (isinstance(error, CounterUnavailable) or is_transient(error)):
            raise
        # Beat sends it again soon: what is away now is a line in the log, not a failed task.
        logger.warning("put off: %s: %.300s", type(error).__name__, error)
        return Slice({"put_off": 1}, [])
    finally:
        _ended_s[task.name] = time.monotonic()
    if done.place is not None:
        task.apply_async(kwargs={"place": done.place})
    return done
