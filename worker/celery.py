"""The worker's Celery app. `celery -A worker` finds it by this module's name."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, worker_ready

import celeryconfig
from daycap.errors import DaycapError, InvalidSetting
from worker import environment, metrics
from worker.consumer import check_pool
from worker.deployment import deployment
from worker.ledger import passes, unavailable

logger = logging.getLogger("daycap.worker")

environment.refuse_options()
environment.make_own(os.environ, celeryconfig.settings)
app = Celery("daycap", amqp="worker.broker:Messaging")
app.config_from_object(celeryconfig)


@celeryd_init.connect
def check_before_work(options: dict[str, Any], **_: Any) -> None:
    """Stop with a clear message before anything is taken from the queue."""
    if reason := check_pool(options, sys.argv):
        raise SystemExit(f"daycap worker: {reason}")
    try:
        deployment().ledger.check_tables()
    except DaycapError as error:
        raise SystemExit(f"daycap worker: {error}") from error
    except Exception as error:
        if not passes(error):
            raise
        raise SystemExit(f"daycap worker: {unavailable(error)}") from error
    settings = deployment().settings
    if settings.metrics_port:
        try:
            metrics.serve(settings.metrics_address, settings.metrics_port, deployment().ledger)
        except InvalidSetting as error:
            raise SystemExit(f"daycap worker: {error}") from error


@worker_ready.connect
def catch_up(**_: Any) -> None:
    """A worker that was away at midnight opens the day now; what Redis lost meanwhile is published anew.

    Also when its broker is well again.
    """
    for task in ("daycap.rollover", "daycap.reconcile"):
        app.send_task(task, ignore_result=True)
