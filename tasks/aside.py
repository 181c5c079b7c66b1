"""Tasks that only read, in threads beside the worker's own: an audit of millions of settlements holds nothing up."""

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
_waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()


def aside(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`work`, in a thread that sends the answer when it has it. Its message is acknowledged before.

    Where the worker ends meanwhile nothing is answered: whoever asks sees that no worker answered, and asks again.
    """

    @functools.wraps(work)
    def run(*args: Any, **kwargs: Any) -> dict[str, Any]:
        request = app.current_task.request
        if request.called_directly:
            return work(*args, **kwargs)
        _start()
        _waiting.put(lambda: _answer(request, functools.partial(work, *args, **kwargs)))
        raise Ignore

    return run


@functools.cache
def _start() -> None:
    for number in range(_THREADS):
        threading.Thread(target=_run, name=f"daycap-aside-{number}", daemon=True).start()


def _run() -> None:
    while True:
        answer = _waiting.get()
        try:
            answer()
        except Exception as error:
            logger.warning("an answer was lost: %s: %.300s", type(error).__name__, error)


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
