"""What belongs to an event loop: locks that its tasks wait for, a connection that it reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One for each event loop that asks, made when it first does. What is of a loop that was closed is let go of."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._all: dict[asyncio.AbstractEventLoop, T] = {}

    def get(self) -> T:
        """That of the running loop. Loops in several threads may ask at once."""
        loop = asyncio.get_running_loop()
        if (its := self._all.get(loop)) is None:
            for other in list(self._all):
                if other.is_closed():
                    self._all.pop(other, None)
            its = self._all[loop] = self._make()
        return its
