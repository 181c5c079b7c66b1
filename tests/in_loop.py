"""An AsyncWallet with the face of a Wallet, so that a test written for threads is one of the event loop too."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from daycap import AsyncHold, AsyncWallet, Reading, Settings, Wallet
from daycap.counters.per_loop import PerLoop

T = TypeVar("T")


class InLoop:
    """Each call is made by a task in the event loop of all these wallets, and waited for here."""

    def __init__(self, *parts: Any) -> None:
        self._wallet = AsyncWallet(*parts)

    @classmethod
    def from_settings(cls, settings: Settings) -> InLoop:
        return cls._of(AsyncWallet.from_settings(settings))

    @classmethod
    def from_env(cls, **given: Any) -> InLoop:
        return cls._of(AsyncWallet.from_env(**given))

    @classmethod
    def _of(cls, wallet: AsyncWallet) -> InLoop:
        made = cls.__new__(cls)
        made._wallet = wallet
        return made

    def reserve(self, agent: str, estimate_micros: int, **labels: Any) -> AsyncHold:
        return _run(self._wallet.reserve(agent, estimate_micros, **labels))

    def extend(self, hold: AsyncHold, more_micros: int) -> None:
        _run(hold.extend(more_micros))

    def remaining(self, agent: str) -> Reading:
        return _run(self._wallet.remaining(agent))

    def spent(self, agent: str) -> Reading:
        return _run(self._wallet.spent(agent))

    def add_agent(self, agent: str, cap_micros: int) -> None:
        _run(self._wallet.add_agent(agent, cap_micros))

    def set_cap(self, agent: str, cap_micros: int) -> None:
        _run(self._wallet.set_cap(agent, cap_micros))

    def add_group(self, *args: Any, **kwargs: Any) -> None:
        _run(self._wallet.add_group(*args, **kwargs))

    def add_budget(self, *args: Any, **kwargs: Any) -> None:
        _run(self._wallet.add_budget(*args, **kwargs))

    def verify_identity_binding(self, agent: str, anchor: str) -> bool:
        return _run(self._wallet.verify_identity_binding(agent, anchor))

    def flush(self, timeout: float = 5) -> tuple[str, ...]:
        return _run(self._wallet.flush(timeout))

    def close(self, timeout: float = 5) -> tuple[str, ...]:
        return _run(self._wallet.close(timeout))

    def __enter__(self) -> InLoop:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wallet, name)


def _run(call: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(call, _loop(os.getpid())).result(timeout=120)


@functools.cache
def _loop(_: int) -> asyncio.AbstractEventLoop:
    """One for each process: a child that was forked has none of its parent's threads."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def locks_of(wallet: Any) -> dict[str, Any]:
    """Of each agent whose money was asked for, that of whoever asks."""
    of_wallet = wallet._topping_up
    return next(iter(of_wallet._all.values()), {}) if isinstance(of_wallet, PerLoop) else of_wallet


FACES: dict[str, Any] = {"threads": Wallet, "loop": InLoop}
"""The faces of a wallet that tests have for threads and for event loops alike."""
