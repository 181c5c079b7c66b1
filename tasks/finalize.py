"""daycap.finalize: settle the events of messages, then publish. Acknowledged after the commit, never before."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from celery.worker.strategy import default

from daycap.ledger import retention
from daycap.ledger.dead_letters import DeadLetter
from daycap.ledger.settle import Outcome, keep, settle
from daycap.protocol.dead_letter import Kind
from daycap.protocol.wire import FINALIZE_TASK
from worker import metrics
from worker.batching import MOST_EVENTS, Arguments, Gathered, NotSettled
from worker.celery import app
from worker.deployment import deployment
from worker.queue import note_unsettled
from worker.sanitize import REASON, UNREADABLE

logger = logging.getLogger("daycap.worker")

_LONGEST_BACKOFF_S = 2.0
"""A ledger that is well again is found so soon."""

_MOST_LETTERS_LOGGED = 20
"""A message may bring hundreds of thousands; the ledger has all of them."""


class _Backoff:
    """How long to wait after the ledger was away: longer each time in a row."""

    failures = 0


@app.task(name=FINALIZE_TASK, Strategy="tasks.finalize:gathering")
def finalize(*args: Any, **kwargs: Any) -> dict[str, int]:
    """Settle `events`; whatever else arrives is kept as a dead letter. Returns counts.

    What nobody waits for is gathered first: this runs for the other messages only.
    """
    try:
        return settle_messages([(args, kwargs)])
    except NotSettled as error:
        time.sleep(error.wait_s)
        raise Reject("not settled", requeue=True) from error


def gathering(task: Any, app: Celery, consumer: Any) -> Any:
    """Celery's strategy for the messages of this task: the default one, over a consumer that gathers."""
    return default(task, app, Gathered(consumer, settle_messages))


def settle_messages(messages: Sequence[Arguments]) -> dict[str, int]:
    """Settle the events of `messages`, publish and say what became of them, as Flower shows it.

    Raises `NotSettled`, whatever it was that the ledger refused.
    """
    started = time.perf_counter()
    try:
        outcome = _settle(messages)
    except Exception as error:
        raise NotSettled(_note(error)) from error
    _Backoff.failures = 0
    deployment().publisher.publish(outcome.snapshots)
    metrics.count(outcome)
    metrics.BATCH_SECONDS.observe(time.perf_counter() - started)
    counts = {
        "settled": outcome.settled,
        "duplicates": outcome.duplicates,
        "dead_letters": len(outcome.dead_letters),
    }
    logger.info(
        "%d messages: settled %d, duplicates %d, dead letters %d, charged %d micros, uncovered %d micros",
        len(messages),
        *counts.values(),
        outcome.charged_micros,
        outcome.uncovered_micros,
    )
    for letter in outcome.dead_letters[:_MOST_LETTERS_LOGGED]:
        logger.error("dead letter %s (%s): %s", letter.id, letter.kind, letter.reason)
    return counts


def _settle(messages: Sequence[Arguments]) -> Outcome:
    parts = deployment()
    outcome = Outcome()
    events: list[object] = []
    for args, kwargs in messages:
        said = kwargs.get("events")
        if args or set(kwargs) != {"events"} or not isinstance(said, list) or not said:
            reason = str(kwargs.get(REASON)) if UNREADABLE in kwargs else "not a message of events"
            payload = {name: value for name, value in kwargs.items() if name != REASON}
            letter = DeadLetter(Kind.MALFORMED, reason, {"args": list(args), "kwargs": payload})
            outcome.add(keep(parts.ledger, letter))
        else:
            events += said
    open_days = retention.open_days(parts.settings, parts.publisher.last_heard_ms())
    for start in range(0, len(events), MOST_EVENTS):
        outcome.add(settle(parts.ledger, events[start : start + MOST_EVENTS], open_days))
    return outcome


def _note(error: Exception) -> float:
    """Count and say a failure. Returns how many seconds to wait: the worker would do nothing but try."""
    _Backoff.failures += 1
    metrics.LEDGER_FAILURES.inc()
    wait_s: float = min(0.1 * 2 ** (_Backoff.failures - 1), _LONGEST_BACKOFF_S)
    deployment().ledger.close()  # A connection may be stuck with what was: a file read-only, a server that has moved.
    logger.error("not settled, trying again in %.1f s: %s: %.300s", wait_s, type(error).__name__, error)
    note_unsettled(app)
    return wait_s
