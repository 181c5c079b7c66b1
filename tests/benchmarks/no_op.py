"""A task that does nothing, for daycap's worker: `celery -A worker worker -I tests.benchmarks.no_op`."""

from __future__ import annotations

from typing import Any

from celery import shared_task

NO_OP_TASK = "benchmark.no_op"


@shared_task(name=NO_OP_TASK)  # The worker's app takes it up; to import that here would need its settings.
def no_op(**_: Any) -> None:
    """Take the same arguments as finalize."""
