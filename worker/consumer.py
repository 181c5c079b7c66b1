"""Celery's consumer, patient: no error of a broker ends a worker, and it answers who inspects it while it is busy.

Celery's own ends at an error that a server answers with: a Redis that became a replica, cannot write, loads, or has a
new password; a RabbitMQ whose virtual host, queue or permission is gone. `worker.broker` makes connection errors of all
of them. What is left to do is to wait, longer each time, and to say what is wrong once instead of each second.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from celery.concurrency import solo
from celery.exceptions import WorkerShutdown
from celery.signals import worker_ready
from celery.worker import consumer as celery_consumer
from celery.worker import pidbox, state
from celery.worker.consumer.control import Control
from celery.worker.state import maybe_shutdown

logger = logging.getLogger("daycap.worker")

_WELL_AFTER_S = 1.0
"""A broker that has been listened to for so long is well again."""

_LONGEST_WAIT_S = 5.0
_WAIT_STEP_S = 0.2
"""How late SIGTERM may be noticed meanwhile."""

_TALKATIVE = ("celery.worker.consumer.consumer", "celery.worker.consumer.connection", "kombu.asynchronous.hub")


class Trouble(logging.Filter):
    """What is wrong with the broker, from its first error on until it is well again.

    As a filter it lets the loggers of Celery's consumer say each thing once meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since_s: float | None = None
        self._errors = 0
        self._said: set[str] = set()

    def begin(self, error: BaseException) -> float:
        """Note an error. Returns how long to wait before the next try; nothing after the first."""
        if self._since_s is None:
            self._since_s = time.monotonic()
        message = f"the broker is failing; waiting for it to recover: {type(error).__name__}: {error!s:.300}"
        if message not in self._said:
            self._said.add(message)
            logger.error("%s", message)
        self._errors += 1
        return min(self._errors - 1.0, _LONGEST_WAIT_S)

    def end(self) -> bool:
        """It is over, if there was any."""
        if self._since_s is None:
            return False
        logger.warning("the broker recovered after %.0f s", time.monotonic() - self._since_s)
        self._since_s, self._errors = None, 0
        self._said.clear()
        return True

    def filter(self, record: logging.LogRecord) -> bool:
        message = re.sub(r"[\d.]+", "", record.getMessage().partition("Trying again")[0])
        if message in self._said:
            return False
        if self._since_s is not None or record.levelno > logging.WARNING:
            self._since_s = self._since_s or time.monotonic()
            self._said.add(message)
        return True


class Consumer(celery_consumer.Consumer):  # type: ignore[misc]
    """What `worker_consumer` names."""

    class Blueprint(celery_consumer.Consumer.Blueprint):  # type: ignore[misc]
        """The same steps, with a mailbox of its own."""

        default_steps = [  # noqa: RUF012  (Celery's name)
            "worker.consumer:Mailbox" if step.endswith(":Control") else step
            for step in celery_consumer.Consumer.Blueprint.default_steps
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trouble = Trouble()
        self._well: Any = None
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(self._trouble)

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        self._wait(exc)
        super().on_connection_error_before_connected(exc)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        super().on_connection_error_after_connected(exc)
        self._wait(exc)

    def on_ready(self) -> None:
        super().on_ready()
        self._well = self.hub.call_later(_WELL_AFTER_S, self._is_well)

    def _wait(self, error: BaseException) -> None:
        if self._well is not None:
            self._well.cancel()
        end_s = time.monotonic() + self._trouble.begin(error)
        while time.monotonic() < end_s:
            maybe_shutdown()
            time.sleep(_WAIT_STEP_S)

    def _is_well(self) -> None:
        if self._trouble.end():
            # What a worker sends when it starts may have been lost, and what housekeeping sent meanwhile was.
            worker_ready.send(sender=self)


class Mailbox(Control):  # type: ignore[misc]
    """The step of the consumer that answers who inspects the worker: in a thread, for the worker may be busy."""

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self.box = ThreadBox(c)
        self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown


class ThreadBox(pidbox.Pidbox):  # type: ignore[misc]
    """A mailbox in a thread, on a connection of its own."""

    _stop: threading.Event | None = None

    def start(self, c: Any) -> None:
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(c, self._stop), name="daycap-mailbox", daemon=True).start()

    def stop(self, _c: Any) -> None:
        if self._stop is not None:
            self._stop.set()

    shutdown = stop

    def reset(self) -> None:
        """After a command that failed: the connection is made anew if it has to be."""

    def on_message(self, body: Any, message: Any) -> None:
        try:
            super().on_message(body, message)
        except WorkerShutdown as error:
            state.should_stop = error.code  # Raised here it would only end the thread.

    def _run(self, c: Any, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with c.app.connection_for_read() as connection:
                    self.node.channel = connection.channel()
                    self.node.listen(callback=self.on_message).on_decode_error = c.on_decode_error
                    while not stop.is_set():
                        with suppress(TimeoutError):
                            connection.drain_events(timeout=1.0)
            except Exception as error:
                logger.debug("the mailbox lost its connection: %r", error)  # The worker says what there is to say.
                stop.wait(1)


_OTHER_POOL = re.compile(r"(?:^| )(?:--pool[= ]|-P ?)(?!solo(?: |$))\S+")


def check_pool(options: dict[str, Any], arguments: Sequence[str]) -> str | None:
    """Why a worker must not start with these options of its app and of its command; None if it may.

    Celery ignores `--pool=prefork` where the settings name another, so that only the command tells of it.
    """
    pool = options.get("pool_cls") or "solo"
    alone = pool == "solo" or (isinstance(pool, type) and issubclass(pool, solo.TaskPool))
    if alone and not options.get("autoscale") and not _OTHER_POOL.search(" ".join(arguments)):
        return None
    return (
        "only --pool=solo is possible, and no --autoscale: a worker settles one batch at a time; "
        "start more workers instead"
    )
