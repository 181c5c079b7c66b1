"""Runs read-only tasks in background threads, so that an audit of millions of settlements delays nothing."""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from celery.exceptions import Ignore

from worker.celery import app

logger = logging.getLogger("daycap.worker")

_THREADS = 4
_jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()


def aside(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Run `work` in a background thread, which sends the answer. The message is acknowledged before that.

    If the worker exits first, there is no answer: the caller times out and asks again.
    """

    @functools.wraps(work)
    def run(*args: Any, **kwargs: Any) -> dict[str, Any]:
        request = app.current_task.request
        if request.called_directly:
            return work(*args, **kwargs)
        _start_threads()
        _jobs.put(lambda: _answer(request, functools.partial(work, *args, **kwargs)))
        raise Ignore

    return run


@functools.cache
def _start_threads() -> None:
    for number in range(_THREADS):
        threading.Thread(target=_run, name=f"daycap-aside-{number}", daemon=True).start()


def _run() -> None:
    while True:
        job = _jobs.get()
        try:
            job()
        except Exception as error:
            logger.warning("could not answer a request: %s: %.300s", type(error).__name__, error)


def _answer(request: Any, work: Callable[[], dict[str, Any]]) -> None:
    began_s = time.monotonic()
    try:
        answer = work()
    except Exception as error:
        app.backend.mark_as_failure(request.id, error, request=request)
        raise
    app.backend.mark_as_done(request.id, answer, request=request)
    with app.events.default_dispatcher(hostname=request.hostname) as flower:
        flower.send("task-succeeded", uuid=request.id, result="answered", runtime=time.monotonic() - began_s)
