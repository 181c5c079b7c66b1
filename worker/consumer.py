"""A Celery consumer that survives every broker error, and answers inspection while it is busy.

Celery's own consumer exits on errors that the server returns: a Redis that became a replica, cannot write, is loading
or has a new password; a RabbitMQ whose virtual host, queue or permission is gone. `worker.broker` treats them all as
connection errors. This module waits with a growing delay, and logs each problem once instead of every second.
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

from worker.health import health

logger = logging.getLogger("daycap.worker")

_RECOVERED_AFTER_S = 1.0
"""The broker counts as recovered once the worker has consumed from it for this long."""

_PROGRESS_S = 1.0
"""How often an idle loop says that it goes round."""

_LONGEST_WAIT_S = 5.0
_WAIT_STEP_S = 0.2
"""How often a waiting worker checks for SIGTERM."""

_REPETITIVE_LOGGERS = ("celery.worker.consumer.consumer", "celery.worker.consumer.connection", "kombu.asynchronous.hub")


class Outage(logging.Filter):
    """An outage of the broker, from its first error until it recovers.

    As a filter, it lets the loggers of Celery's consumer log each message once per outage.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since_s: float | None = None
        self._errors = 0
        self._logged: set[str] = set()

    def begin(self, error: BaseException) -> float:
        """Record an error. Returns the seconds to wait before the next try: none after the first error."""
        if self._since_s is None:
            self._since_s = time.monotonic()
        message = f"the broker is failing; waiting for it to recover: {type(error).__name__}: {error!s:.300}"
        if message not in self._logged:
            self._logged.add(message)
            logger.error("%s", message)
        self._errors += 1
        return min(self._errors - 1.0, _LONGEST_WAIT_S)

    def end(self) -> bool:
        """End the outage. Returns whether there was one."""
        if self._since_s is None:
            return False
        logger.warning("the broker recovered after %.0f s", time.monotonic() - self._since_s)
        self._since_s, self._errors = None, 0
        self._logged.clear()
        return True

    def filter(self, record: logging.LogRecord) -> bool:
        message = re.sub(r"[\d.]+", "", record.getMessage().partition("Trying again")[0])
        if message in self._logged:
            return False
        if self._since_s is not None or record.levelno > logging.WARNING:
            self._since_s = self._since_s or time.monotonic()
            self._logged.add(message)
        return True


class Consumer(celery_consumer.Consumer):  # type: ignore[misc]
    """The consumer that the setting `worker_consumer` names."""

    class Blueprint(celery_consumer.Consumer.Blueprint):  # type: ignore[misc]
        """Celery's steps, with `Mailbox` instead of `Control`."""

        default_steps = [  # noqa: RUF012  (Celery's name)
            "worker.consumer:Mailbox" if step.endswith(":Control") else step
            for step in celery_consumer.Consumer.Blueprint.default_steps
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._outage = Outage()
        self._timers: list[Any] = []
        for name in _REPETITIVE_LOGGERS:
            logging.getLogger(name).addFilter(self._outage)

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        self._wait(exc)
        super().on_connection_error_before_connected(exc)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        super().on_connection_error_after_connected(exc)
        self._wait(exc)

    def on_ready(self) -> None:
        super().on_ready()
        self._timers = [
            self.hub.call_later(_RECOVERED_AFTER_S, self._on_recovered),
            self.hub.call_repeatedly(_PROGRESS_S, health.progressed),
        ]

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Return Celery's handler of messages. A busy loop handles many before it looks at its timers."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            health.progressed()
            handle(message)

        return on_message

    def _wait(self, error: BaseException) -> None:
        health.note("broker", f"{type(error).__name__}: {error!s:.300}")
        for timer in self._timers:
            timer.cancel()
        end_s = time.monotonic() + self._outage.begin(error)
        while time.monotonic() < end_s:
            maybe_shutdown()
            health.progressed()
            time.sleep(_WAIT_STEP_S)

    def _on_recovered(self) -> None:
        health.note("broker")
        if self._outage.end():
            # Housekeeping messages sent during the outage are lost, and those sent at startup may be.
            worker_ready.send(sender=self)


class Mailbox(Control):  # type: ignore[misc]
    """The consumer step that answers remote control commands, in a thread, because the worker may be busy."""

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self.box = ThreadBox(c)
        self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown


class ThreadBox(pidbox.Pidbox):  # type: ignore[misc]
    """A mailbox in its own thread, with its own connection."""

    _stopping: threading.Event | None = None

    def start(self, c: Any) -> None:
        self._stopping = threading.Event()
        threading.Thread(target=self._run, args=(c, self._stopping), name="daycap-mailbox", daemon=True).start()

    def stop(self, _c: Any) -> None:
        if self._stopping is not None:
            self._stopping.set()

    shutdown = stop

    def reset(self) -> None:
        """Do nothing after a failed command: `_run` reconnects when it has to."""

    def on_message(self, body: Any, message: Any) -> None:
        try:
            super().on_message(body, message)
        except WorkerShutdown as error:
            state.should_stop = error.code  # Raising here would end this thread only.

    def _run(self, c: Any, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                with c.app.connection_for_read() as connection:
                    self.node.channel = connection.channel()
                    self.node.listen(callback=self.on_message).on_decode_error = c.on_decode_error
                    while not stopping.is_set():
                        with suppress(TimeoutError):
                            connection.drain_events(timeout=1.0)
            except Exception as error:
                logger.debug("the mailbox lost its connection: %r", error)  # The consumer logs the outage itself.
                stopping.wait(1)


_OTHER_POOL = re.compile(r"(?:^| )(?:--pool[= ]|-P ?)(?!solo(?: |$))\S+")


def check_pool(options: dict[str, Any], arguments: Sequence[str]) -> str | None:
    """Return why a worker must not start with these app options and command arguments; None if it may.

    The command is checked too: Celery ignores `--pool=prefork` when the settings name another pool.
    """
    pool = options.get("pool_cls") or "solo"
    alone = pool == "solo" or (isinstance(pool, type) and issubclass(pool, solo.TaskPool))
    if alone and not options.get("autoscale") and not _OTHER_POOL.search(" ".join(arguments)):
        return None
    return (
        "only --pool=solo is possible, and no --autoscale: a worker settles one batch at a time; "
        "start more workers instead"
    )
