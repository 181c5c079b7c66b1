"""Celery's scheduler in memory, which also says whether it goes round and whether the broker took its last task."""

from __future__ import annotations

from typing import Any

from celery import beat

from worker.health import health


class Scheduler(beat.Scheduler):  # type: ignore[misc]
    """The scheduler that the setting `beat_scheduler` names."""

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """See `celery.beat.Scheduler.tick`."""
        health.progressed()
        return super().tick(*args, **kwargs)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """See `celery.beat.Scheduler.apply_async`."""
        try:
            sent = super().apply_async(*args, **kwargs)
        except Exception as error:
            health.note("broker", f"{type(error).__name__}: {error!s:.300}")
            raise
        health.note("broker")
        return sent
