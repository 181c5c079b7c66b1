"""The tasks that beat sends. Each may come late, twice at once, or not at all for a while.

They work in time slices: at the end of a slice a task requeues itself with the place where it stopped, so that events
are settled in between. A lost message does no harm: beat's next one starts from the beginning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import Task

from daycap.errors import CounterUnavailable
from daycap.ledger import carry_over, opening, retention
from daycap.ledger.engine import is_transient
from daycap.ledger.slices import Place, Slice, slice_of
from worker import housekeeping
from worker.celery import app
from worker.deployment import get_deployment
from worker.queue import settled_before_ms

logger = logging.getLogger("daycap.worker")

_started_s = time.monotonic()
_beat_s: dict[str, float] = {}
"""When this process last received each task from beat (monotonic clock)."""
_ended_s: dict[str, float] = {}
"""When this process last finished a slice of each task (monotonic clock)."""


@app.task(name="daycap.rollover", bind=True)
def rollover(self: Task, place: Place | None = None, every_s: float = 0) -> dict[str, Any]:
    """Open today, and shortly before midnight the next day, for every active agent. Then prune."""
    deployment = get_deployment()
    ahead_ms = round(deployment.settings.open_ahead_hours * 3_600_000)

    def step(at: Place) -> Slice:
        return opening.rollover(deployment.ledger, deployment.publisher, ahead_ms, at)

    done = _slice(self, step, place, every_s)
    if done.place is None:
        prune.apply_async()
    return done.counts


@app.task(name="daycap.prune", bind=True)
def prune(self: Task, place: Place | None = None) -> dict[str, Any]:
    """Delete data that is past its retention."""
    deployment = get_deployment()
    now_ms = deployment.publisher.authoritative_ms()
    return _slice(self, lambda at: retention.prune(deployment.ledger, deployment.settings, now_ms, at), place).counts


@app.task(name="daycap.adjust_caps", bind=True)
def adjust_caps(self: Task, place: Place | None = None, every_s: float = 0) -> dict[str, Any]:
    """End the raises of caps whose time is over, and carry over what periods left."""
    ledger, publisher = get_deployment().ledger, get_deployment().publisher
    return _slice(self, lambda at: carry_over.adjust_caps(ledger, publisher, at), place, every_s).counts


@app.task(name="daycap.expire", bind=True)
def expire(self: Task, place: Place | None = None, every_s: float = 0) -> dict[str, Any]:
    """Expire the leases of dead runners."""
    ledger, publisher = get_deployment().ledger, get_deployment().publisher

    def step(at: Place) -> Slice:
        return housekeeping.expire(ledger, publisher, lambda now_ms: settled_before_ms(app, now_ms), at)

    return _slice(self, step, place, every_s).counts


@app.task(name="daycap.reconcile", bind=True)
def reconcile(self: Task, place: Place | None = None, every_s: float = 0) -> dict[str, Any]:
    """Repair the counter where it differs from the ledger."""
    ledger, publisher = get_deployment().ledger, get_deployment().publisher
    return _slice(self, lambda at: housekeeping.reconcile(ledger, publisher, at), place, every_s).counts


@app.task(name="daycap.last_beat", ignore_result=False)
def last_beat() -> dict[str, Any]:
    """Return how long ago this worker last got each of beat's tasks. Other workers may have later ones."""
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
    """Run one time slice and requeue the task for the rest.

    `every_s` is the interval at which beat sends the task. A message that starts from the beginning too early is
    dropped: a worker that was down finds a day's worth of them, and a long run must not be restarted while it is under
    way. Celery's `expires` would depend on the hosts' clocks.
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
        # Beat sends the task again soon, so an outage is a log line, not a failed task.
        logger.warning("%s postponed: %s: %.300s", task.name, type(error).__name__, error)
        return Slice({"put_off": 1}, [])
    finally:
        _ended_s[task.name] = time.monotonic()
    if done.place is not None:
        task.apply_async(kwargs={"place": done.place})
    return done
