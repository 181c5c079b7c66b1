"""Reentrant primitives, for code that a signal handler or the garbage collector may interrupt anywhere and call again.

`threading.Event.set` holds a lock, so a handler that sets the same event deadlocks. `queue.SimpleQueue` is reentrant.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import ClassVar, TypeVar

T = TypeVar("T")


def join(thread: threading.Thread, timeout_s: float) -> None:
    """Wait for the thread to end; return at once if this call interrupted the code that is starting it."""
    with suppress(RuntimeError):
        thread.join(timeout_s)


class Signal:
    """A `threading.Event` whose methods may interrupt one another in the same thread."""

    def __init__(self) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        """Whether it is set."""
        return not self._tokens.empty()

    def set(self) -> None:
        """Wake every thread that waits, now or later."""
        if self._tokens.empty():
            self._tokens.put(None)

    def clear(self) -> None:
        """Make `wait` block again."""
        try:
            while True:
                self._tokens.get_nowait()
        except Empty:
            pass

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is set, for at most `timeout_s` seconds. Returns whether it was set."""
        try:
            self._tokens.get(timeout=timeout_s)
        except Empty:
            return False
        self._tokens.put(None)  # For the other waiters.
        return True


class Busy(Exception):
    """Another thread holds the lock."""


class Turn:
    """A lock with a timeout that no exception can leave locked, and that knows its owner.

    `with lock` is as safe, but has no timeout. Between `acquire(timeout=...)` and `try`, a signal handler may raise.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.mine: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        """Whether the calling thread holds it: then this is a handler or a finalizer that interrupted the owner."""

    def take(self, call: Callable[[], T], timeout_s: float = 0) -> T:
        """Run `call` under the lock. Raises `Busy` if the lock is not free in time.

        A thread that already holds the lock runs `call` at once.
        """
        if self.mine():
            return call()
        try:
            try:
                if not self._lock.acquire(timeout=timeout_s):
                    raise Busy
                return call()
            finally:
                self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        if self.mine():
            self._lock.release()


class Background(ABC):
    """One daemon thread, started when it is first needed. `start` may be interrupted anywhere and called again."""

    _thread_name: ClassVar[str]
    _thread: threading.Thread | None
    _starting: Turn

    @abstractmethod
    def _run(self) -> None:
        """Do the thread's work."""

    def _reset_thread(self) -> None:
        """Begin without a thread, at first and in a forked child."""
        self._starting = Turn()
        self._thread = None

    def start(self) -> None:
        """Start the thread if it is not running. Raises `RuntimeError` if no thread can start."""
        if not self._runs() and not self._starting.mine():
            with suppress(Busy):  # Another thread is starting it, or it checks for work before it ends.
                self._starting.take(self._start)

    def _start(self) -> None:
        if self._runs():
            return
        thread = self._thread = threading.Thread(target=self._run, name=self._thread_name, daemon=True)
        try:
            thread.start()
        except BaseException:
            if not thread.is_alive():
                self._thread = None
            raise

    def _runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()
