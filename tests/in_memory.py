"""Wallets without a server: one counter and one ledger in memory, which a test can hang, refuse or lose."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from typing import Any

from daycap import Settings, Wallet
from daycap.counters.memory import MemoryCounter
from daycap.delivery.memory import MemoryLedger, caps_in_code
from daycap.delivery.outbox import Outbox
from daycap.errors import CounterUnavailable
from daycap.ledger.reader import LedgerReader
from daycap.protocol.counter import SyncReply, SyncRequest
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet.wiring import Parts
from tests.spine import wait_for

CAP = 1_000_000


class Counter(MemoryCounter):
    """It can be told to hang before it answers, or not to answer."""

    immediate = False

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()
        self.away = False

    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        self.asked += 1
        self.answers.wait()
        if self.away:
            raise CounterUnavailable("away")
        return super().sync(requests)

    def forget(self) -> None:
        super().forget()
        self._said.append("counter forgets")

    def close(self) -> None:
        self._said.append("counter is closed")


class Ledger(MemoryLedger):
    """It can be told not to take events, to lose them, and to open no day."""

    def __init__(self, counter: MemoryCounter, said: list[str]) -> None:
        super().__init__(counter, Settings().terms, caps_in_code({"agent-7": CAP, "agent-8": CAP}))
        self._said = said
        self.refuses = self.loses = False
        self.opens = True
        self.counter_ms: Callable[[], int | None] = lambda: None

    def send(self, events: Sequence[FinalizeEvent]) -> None:
        if self.refuses:
            raise ConnectionError("refused")
        if not self.loses:
            super().send(events)

    def open_day(self, agent: str, day: str) -> None:
        if self.opens:
            super().open_day(agent, day)

    def use_clock(self, counter_ms: Callable[[], int | None]) -> None:
        self.counter_ms = counter_ms

    def forget(self) -> None:
        super().forget()
        self._said.append("transport forgets")

    def close(self) -> None:
        self._said.append("transport is closed")


class Reader(LedgerReader):
    """Nobody needs its answers here."""

    def __init__(self, said: list[str]) -> None:
        super().__init__("sqlite:////nowhere/ledger.sqlite3")
        self._said = said

    def forget(self) -> None:
        self._said.append("reader forgets")

    def close(self) -> None:
        self._said.append("reader is closed")


class Deployment:
    """The parts that wallets share, and what they were told at their end. `face`: of threads, or of an event loop."""

    def __init__(self, face: Callable[[Parts, Settings], Any] = Wallet) -> None:
        self._face = face
        self.said: list[str] = []
        self.counter = Counter(self.said)
        self.ledger = Ledger(self.counter, self.said)
        self._wallets: list[Wallet] = []

    def parts(self) -> Parts:
        return Parts(self.counter, self.ledger, None, None)

    def wallet(self, outbox: Outbox | None = None, reader: Reader | None = None, **settings: Any) -> Wallet:
        wallet: Wallet = self._face(Parts(self.counter, self.ledger, reader, outbox), Settings(**settings))
        self._wallets.append(wallet)
        return wallet

    def leased(self, wallet: Wallet) -> int:
        return CAP - wallet.remaining("agent-7").micros

    def close(self) -> None:
        self.counter.answers.set()
        self.counter.away = self.ledger.refuses = self.ledger.loses = False
        for wallet in self._wallets:
            wallet._sender.resend(wallet._book.unsettled.events())  # Some were lost.
            wallet.close(5)
        gc.collect()  # Holds that a test left live, in the traceback of what it expected.
        wait_for(lambda: not any(wallet._open_parts for wallet in self._wallets))


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name in ("daycap-renewer", "daycap-sender")}
