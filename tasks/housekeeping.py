"""What beat sends. Each may come late, twice at once, or not at all for a while."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from daycap.errors import CounterUnavailable
from worker import housekeeping, opening
from worker.celery import app
from worker.deployment import deployment
from worker.ledger import passes
from worker.queue import settled_before_ms

logger = logging.getLogger("daycap.worker")


@app.task(name="daycap.rollover")
def rollover() -> dict[str, Any]:
    """Open today, and ahead of midnight the next day, for every active agent."""
    parts = deployment()
    ahead_ms = round(parts.settings.open_ahead_hours * 3_600_000)
    return _quietly(lambda: {"opened": opening.rollover(parts.ledger, parts.publisher, ahead_ms)})


@app.task(name="daycap.expire")
def expire() -> dict[str, Any]:
    """Give up the leases of runners that are gone."""
    parts = deployment()
    return _quietly(
        lambda: housekeeping.expire(parts.ledger, parts.publisher, lambda now: settled_before_ms(app, now))._asdict()
    )


@app.task(name="daycap.reconcile")
def reconcile() -> dict[str, Any]:
    """Repair the counter where it differs from the ledger."""
    parts = deployment()
    return _quietly(lambda: housekeeping.reconcile(parts.ledger, parts.publisher)._asdict())


def _quietly(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Beat sends it again soon: what is away now is a line in the log, not a failed task."""
    try:
        return work()
    except Exception as error:
        if not (isinstance(error, CounterUnavailable) or passes(error)):
            raise
        logger.warning("put off: %s: %.300s", type(error).__name__, error)
        return {"put_off": type(error).__name__}
