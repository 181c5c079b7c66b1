"""The worker's Celery app. `celery -A worker` finds it by this module's name."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, worker_ready

import celeryconfig
from daycap.errors import DaycapError, InvalidSetting, LedgerUnavailable
from daycap.ledger.engine import is_transient, unavailable
from worker import environment, metrics
from worker.consumer import check_pool
from worker.deployment import deployment

logger = logging.getLogger("daycap.worker")

_RELEASE_S = 60.0
"""How long the Procfile's release may take: honcho starts it beside the workers, and stops everything when one ends."""
_LOOK_S = 0.25

environment.refuse_options()
environment.make_own(os.environ, celeryconfig.settings)
app = Celery("daycap", amqp="worker.broker:Messaging")
app.config_from_object(celeryconfig)


@celeryd_init.connect
def check_before_work(options: dict[str, Any], **_: Any) -> None:
    """Stop with a clear message before anything is taken from the queue."""
    if reason := check_pool(options, sys.argv):
        raise SystemExit(f"daycap worker: {reason}")
    wait_s = _RELEASE_S if "HONCHO_PROCESS_NAME" in os.environ else 0
    while error := _ledger_error():
        if wait_s <= 0 or not isinstance(error, LedgerUnavailable):
            raise SystemExit(f"daycap worker: {error}") from error
        if wait_s == _RELEASE_S:
            logger.warning("waiting up to %d s for the Procfile's release: %s", wait_s, error)
        time.sleep(_LOOK_S)
        wait_s -= _LOOK_S
    settings = deployment().settings
    if settings.metrics_port:
        try:
            metrics.serve(settings.metrics_address, settings.metrics_port, deployment().ledger)
        except InvalidSetting as error:
            raise SystemExit(f"daycap worker: {error}") from error


def _ledger_error() -> DaycapError | None:
    """Why this worker cannot work with its ledger now."""
    try:
        deployment().take_ledger()
    except DaycapError as error:
        return error
    except Exception as error:
        if not is_transient(error):
            raise
        return unavailable(error)
    return None


@worker_ready.connect
def catch_up(**_: Any) -> None:
    """A worker that was away at midnight opens the day now; what Redis lost meanwhile is published anew.

    Also when its broker is well again.
    """
    for task in ("daycap.rollover", "daycap.reconcile"):
        app.send_task(task, ignore_result=True)
