"""A task that does nothing, for daycap's worker: `celery -A worker worker -I tests.benchmarks.no_op`."""

from __future__ import annotations

from typing import Any

from worker.celery import app

NO_OP_TASK = "benchmark.no_op"


@app.task(name=NO_OP_TASK)
def no_op(**_: Any) -> None:
    """Take the same arguments as finalize."""
