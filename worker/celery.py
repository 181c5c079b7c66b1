"""The worker's Celery app. `celery -A worker` finds it by this module's name."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from celery import Celery
from celery.signals import beat_init, celeryd_init, worker_ready

import celeryconfig
from daycap.errors import DaycapError, InvalidSetting, LedgerUnavailable
from daycap.ledger.engine import is_transient, unavailable
from worker import environment, health, metrics
from worker.consumer import check_pool
from worker.deployment import get_deployment

logger = logging.getLogger("daycap.worker")

_RELEASE_S = 60.0
"""How long to wait for the Procfile's release: honcho starts it beside the workers, and stops all if one exits."""
_POLL_S = 0.25

environment.refuse_options()
environment.apply(os.environ, celeryconfig.settings)
app = Celery("daycap", amqp="worker.broker:Messaging")
app.config_from_object(celeryconfig)


@celeryd_init.connect
def check_before_work(options: dict[str, Any], **_: Any) -> None:
    """Exit with a clear message if the worker cannot work, before it takes any message."""
    if reason := check_pool(options, sys.argv):
        raise SystemExit(f"daycap worker: {reason}")
    wait_s = _RELEASE_S if "HONCHO_PROCESS_NAME" in os.environ else 0
    while error := _ledger_error():
        if wait_s <= 0 or not isinstance(error, LedgerUnavailable):
            raise SystemExit(f"daycap worker: {error}") from error
        if wait_s == _RELEASE_S:
            logger.warning("waiting up to %d s for the Procfile's release: %s", wait_s, error)
        time.sleep(_POLL_S)
        wait_s -= _POLL_S
    settings = get_deployment().settings
    if settings.metrics_port:
        try:
            metrics.serve(settings.metrics_address, settings.metrics_port, get_deployment().ledger)
        except InvalidSetting as error:
            raise SystemExit(f"daycap worker: {error}") from error


@beat_init.connect
def serve_health(**_: Any) -> None:
    """Let beat answer probes. Exit with a clear message if it cannot."""
    settings, own = celeryconfig.settings, health.health
    if not settings.beat_port:
        return
    checks = {"/healthz": own.alive, "/readyz": own.ready}
    try:
        health.serve(settings.metrics_address, "DAYCAP_BEAT_PORT", settings.beat_port, checks, health.not_found)
    except InvalidSetting as error:
        raise SystemExit(f"daycap beat: {error}") from error


def _ledger_error() -> DaycapError | None:
    """Take the ledger. Return the reason if this worker cannot use it now, else None."""
    try:
        get_deployment().take_ledger()
    except DaycapError as error:
        return error
    except Exception as error:
        if not is_transient(error):
            raise
        return unavailable(error)
    return None


@worker_ready.connect
def catch_up(**_: Any) -> None:
    """Open today, in case this worker was down at midnight, and republish what Redis lost meanwhile.

    Runs at startup and after the broker recovers.
    """
    for task in ("daycap.adjust_caps", "daycap.rollover", "daycap.reconcile"):
        app.send_task(task, ignore_result=True)
