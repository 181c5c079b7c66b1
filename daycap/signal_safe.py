"""Reentrant primitives, for code that a signal handler or the garbage collector may interrupt anywhere and call again.

`threading.Event.set` holds a lock, so a handler that sets the same event deadlocks. `queue.SimpleQueue` is reentrant.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

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
