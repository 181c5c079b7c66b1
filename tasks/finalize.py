"""daycap.finalize: settle the events of messages, then publish. Messages are acknowledged only after the commit."""

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
from worker.batching import MOST_EVENTS, Arguments, BatchingConsumer, NotSettled
from worker.celery import app
from worker.deployment import get_deployment
from worker.health import health
from worker.queue import note_unsettled
from worker.sanitize import REASON, UNREADABLE

logger = logging.getLogger("daycap.worker")

_LONGEST_BACKOFF_S = 2.0
"""Seconds after which a recovered ledger is noticed at the latest."""

_REFUSED_S = 30.0
"""How long a refused batch makes a worker unready: it is retried sooner, or another worker has it."""

_MOST_LETTERS_LOGGED = 20
"""Dead letters logged per batch. One message may contain hundreds of thousands; the ledger stores all of them."""


class _Backoff:
    """Counts consecutive ledger failures; the wait grows with them."""

    failures = 0


@app.task(name=FINALIZE_TASK, Strategy="tasks.finalize:batching_strategy")
def finalize(*args: Any, **kwargs: Any) -> dict[str, int]:
    """Settle `events` and return counts. Anything else is stored as a dead letter.

    Runs only for messages whose sender waits for the result; all others are batched.
    """
    try:
        return settle_messages([(args, kwargs)])
    except NotSettled as error:
        time.sleep(error.wait_s)
        raise Reject("not settled", requeue=True) from error


def batching_strategy(task: Any, app: Celery, consumer: Any) -> Any:
    """Return Celery's default strategy over a consumer that batches."""
    return default(task, app, BatchingConsumer(consumer, settle_messages))


def settle_messages(messages: Sequence[Arguments]) -> dict[str, int]:
    """Settle and publish the events of `messages`, and return the counts that Flower shows.

    Raises `NotSettled` if the ledger operation fails for any reason.
    """
    started = time.perf_counter()
    try:
        outcome = _settle(messages)
    except Exception as error:
        raise NotSettled(_note_failure(error)) from error
    _Backoff.failures = 0
    health.note("settling")
    deployment = get_deployment()
    deployment.publisher.publish(deployment.ledger, outcome.snapshots)
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
    deployment = get_deployment()
    outcome = Outcome()
    events: list[object] = []
    for args, kwargs in messages:
        payloads = kwargs.get("events")
        if args or set(kwargs) != {"events"} or not isinstance(payloads, list) or not payloads:
            reason = str(kwargs.get(REASON)) if UNREADABLE in kwargs else "not a message of events"
            payload = {name: value for name, value in kwargs.items() if name != REASON}
            letter = DeadLetter(Kind.MALFORMED, reason, {"args": list(args), "kwargs": payload})
            outcome.add(keep(deployment.ledger, letter))
        else:
            events += payloads
    open_days = retention.open_days(deployment.settings, deployment.publisher.last_heard_ms())
    for start in range(0, len(events), MOST_EVENTS):
        outcome.add(settle(deployment.ledger, events[start : start + MOST_EVENTS], open_days))
    return outcome


def _note_failure(error: Exception) -> float:
    """Count and log a failure, and drop the connections. Returns the seconds to wait before the next try."""
    _Backoff.failures += 1
    metrics.LEDGER_FAILURES.inc()
    wait_s: float = min(0.1 * 2 ** (_Backoff.failures - 1), _LONGEST_BACKOFF_S)
    get_deployment().ledger.close()  # An old connection may keep failing: a file was read-only, a server has moved.
    health.note("settling", f"the ledger refused events: {type(error).__name__}: {error!s:.300}", _REFUSED_S)
    logger.error("not settled, retrying in %.1f s: %s: %.300s", wait_s, type(error).__name__, error)
    note_unsettled(app)
    return wait_s
