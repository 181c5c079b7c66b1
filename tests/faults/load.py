"""Spending under way while something breaks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from daycap import BudgetUnavailable, Wallet
from tests.spine import wait_for

HELD, ACTUAL = 1_000, 700
_MOST_UNSETTLED = 100


def spend(wallet: Wallet, agent: str, calls: int) -> None:
    """Reserve and finalize so often."""
    for _ in range(calls):
        wallet.reserve(agent, HELD).finalize(ACTUAL)


def spend_one_that_is_taken(wallet: Wallet, agent: str, broker: redis.Redis) -> None:
    """Spend once, until a worker has the message: the only one, which it keeps as long as the ledger is locked."""
    spend(wallet, agent, 1)
    wait_for(lambda: broker.hlen("unacked") == 1)


class Spending:
    """A thread that reserves and finalizes one call after the other. `calls` counts those whose finalize returned."""

    def __init__(self, wallet: Wallet, agent: str, pause_s: float) -> None:
        self.calls = 0
        self.error: BaseException | None = None
        self._wallet, self._agent, self._pause_s = wallet, agent, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause_s):
                if self._wallet.stats().unsettled >= _MOST_UNSETTLED:
                    continue  # The machine is busy, or something is broken: more of the same would show nothing new.
                try:
                    hold = self._wallet.reserve(self._agent, HELD)
                except BudgetUnavailable:
                    continue
                hold.finalize(ACTUAL)
                self.calls += 1
        except BaseException as error:
            self.error = error


@contextmanager
def spending(wallet: Wallet, agent: str, pause_s: float = 0.02) -> Iterator[Spending]:
    """Spend while the block runs."""
    load = Spending(wallet, agent, pause_s)
    try:
        yield load
    finally:
        load.stop()
