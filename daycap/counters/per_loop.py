"""Objects that belong to one event loop, such as its locks and its connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One object per event loop, made on first use. Objects of closed loops are dropped."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._all: dict[asyncio.AbstractEventLoop, T] = {}

    def get(self) -> T:
        """Return the running loop's object. Loops in several threads may call this at once."""
        loop = asyncio.get_running_loop()
        if (own := self._all.get(loop)) is None:
            for other in list(self._all):
                if other.is_closed():
                    self._all.pop(other, None)
            own = self._all[loop] = self._make()
        return own
