"""An AsyncWallet with the face of a Wallet, so that a test written for threads is one of the event loop too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from daycap import AsyncHold, AsyncWallet, Reading, Settings

T = TypeVar("T")


class InLoop:
    """A wallet in an event loop of its own thread: each call is made by a task there and waited for here."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._wallet = AsyncWallet.from_settings(settings)

    def reserve(self, agent: str, estimate_micros: int) -> AsyncHold:
        return self._run(self._wallet.reserve(agent, estimate_micros))

    def extend(self, hold: AsyncHold, more_micros: int) -> None:
        self._run(hold.extend(more_micros))

    def remaining(self, agent: str) -> Reading:
        return self._run(self._wallet.remaining(agent))

    def spent(self, agent: str) -> Reading:
        return self._run(self._wallet.spent(agent))

    def flush(self, timeout: float = 5) -> tuple[str, ...]:
        return self._run(self._wallet.flush(timeout))

    def close(self, timeout: float = 5) -> tuple[str, ...]:
        if self._loop.is_closed():
            return ()
        unsettled = self._run(self._wallet.close(timeout))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        return unsettled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wallet, name)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(timeout=120)
