"""A user's Celery application, whose tasks spend: 1,000 micros of "agent-7" each."""

from __future__ import annotations

import os

from celery import Celery

from daycap import Wallet

AGENT, COST = "agent-7", 1_000

app = Celery("users", broker=os.environ["USERS_BROKER_URL"], backend=os.environ["USERS_BROKER_URL"])
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
wallet = Wallet.from_env()


@app.task
def spend() -> int:
    """The process that did it."""
    wallet.reserve(AGENT, 2 * COST).finalize(COST)
    return os.getpid()
