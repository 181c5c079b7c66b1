"""daycap.finalize: settle a message's events, then publish. Acknowledged after the commit, never before."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.exceptions import Reject

from daycap.wire import FINALIZE_TASK, MAX_EVENTS_PER_MESSAGE
from worker import metrics, retention
from worker.celery import app
from worker.dead_letters import DeadLetter, Kind
from worker.deployment import deployment
from worker.settle import Outcome, keep, settle

logger = logging.getLogger("daycap.worker")

_LONGEST_BACKOFF_S = 2.0
"""The worker does nothing else meanwhile: whoever asks it what is wrong must not wait long."""

_MOST_LETTERS_LOGGED = 20
"""A message may bring hundreds of thousands; the ledger has all of them."""


class _Backoff:
    """How long to wait after the ledger was away: longer each time in a row."""

    failures = 0


@app.task(name=FINALIZE_TASK)
def finalize(*args: Any, **kwargs: Any) -> dict[str, int]:
    """Settle `events`; whatever else arrives is kept as a dead letter. Returns counts, for Flower."""
    started = time.perf_counter()
    try:
        outcome = _settle(args, kwargs)
    except Exception as error:
        raise _give_back(error) from error
    _Backoff.failures = 0
    deployment().publisher.publish(outcome.snapshots)
    metrics.count(outcome)
    metrics.BATCH_SECONDS.observe(time.perf_counter() - started)
    logger.info(
        "settled %d, duplicates %d, dead letters %d, charged %d micros, uncovered %d micros",
        outcome.settled,
        outcome.duplicates,
        len(outcome.dead_letters),
        outcome.charged_micros,
        outcome.uncovered_micros,
    )
    for letter in outcome.dead_letters[:_MOST_LETTERS_LOGGED]:
        logger.error("dead letter %s (%s): %s", letter.id, letter.kind, letter.reason)
    return {
        "settled": outcome.settled,
        "duplicates": outcome.duplicates,
        "dead_letters": len(outcome.dead_letters),
    }


def _settle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
    parts = deployment()
    events = kwargs.get("events")
    if args or set(kwargs) != {"events"} or not isinstance(events, list) or not events:
        letter = DeadLetter(Kind.MALFORMED, "not a message of events", {"args": list(args), "kwargs": kwargs})
        return keep(parts.ledger, letter)
    open_days = retention.open_days(parts.settings, parts.publisher.last_heard_ms())
    outcome = Outcome()
    for start in range(0, len(events), MAX_EVENTS_PER_MESSAGE):
        outcome.add(settle(parts.ledger, events[start : start + MAX_EVENTS_PER_MESSAGE], open_days))
    return outcome


def _give_back(error: Exception) -> Reject:
    """Back into the queue, after a wait: nothing is acknowledged that was not committed."""
    _Backoff.failures += 1
    metrics.LEDGER_FAILURES.inc()
    wait_s = min(0.1 * 2 ** (_Backoff.failures - 1), _LONGEST_BACKOFF_S)
    deployment().ledger.close()  # A connection may be stuck with what was: a file read-only, a server that has moved.
    logger.error("not settled, trying again in %.1f s: %s: %.300s", wait_s, type(error).__name__, error)
    time.sleep(wait_s)
    return Reject("not settled", requeue=True)
