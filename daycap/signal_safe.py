"""What code may use that a signal handler, or the garbage collector, can interrupt anywhere and call again.

A lock of `threading.Event` is held while it is set: whoever sets it again from a handler waits for itself. A
`queue.SimpleQueue` is made to be entered again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def join(thread: threading.Thread, timeout_s: float) -> None:
    """Wait for the thread's end; not at all where this call interrupted the one that is just starting it."""
    with suppress(RuntimeError):
        thread.join(timeout_s)


class Signal:
    """A `threading.Event` whose methods may interrupt one another in the same thread."""

    def __init__(self) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        """Whether it was set, and not cleared since."""
        return not self._tokens.empty()

    def set(self) -> None:
        """Wake whoever waits, now or later."""
        if self._tokens.empty():
            self._tokens.put(None)

    def clear(self) -> None:
        """From now on `wait` waits."""
        try:
            while True:
                self._tokens.get_nowait()
        except Empty:
            pass

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is set, for at most `timeout_s` seconds; whether it was."""
        try:
            self._tokens.get(timeout=timeout_s)
        except Empty:
            return False
        self._tokens.put(None)  # For whoever else waits.
        return True


class Busy(Exception):
    """Another thread has the lock."""


class Turn:
    """A lock that an exception cannot leave locked, wherever it comes from, and that knows who has it.

    `with lock` alone is as safe, but waits for as long as it takes; `acquire(timeout=...)` and `try` are two steps, and
    a signal's handler may raise between them.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.mine: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        """Whether the thread that asks has it: then it was interrupted, and calls from a handler or a finalizer."""

    def take(self, call: Callable[[], T], timeout_s: float = 0) -> T:
        """Call it with the lock. Raises `Busy` if that cannot be had in time.

        In a thread that has it already it is called at once.
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
