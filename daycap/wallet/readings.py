"""Read budgets in three tiers: the counter, else the ledger, else what this process last heard."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from daycap.delivery.transport import Transport
from daycap.errors import BudgetUnavailable, CounterUnavailable, LedgerUnavailable, Unavailable, UnknownAgent
from daycap.ledger.reader import LedgerReader
from daycap.protocol.counter import UNKNOWN, Counter, DayReading, DaySnapshot
from daycap.protocol.wire import agent_id
from daycap.wallet.lease_book import LeaseBook

logger = logging.getLogger("daycap")


class Reading(NamedTuple):
    """An amount in micros and the tier that answered: `redis`, `ledger` or `memory`."""

    micros: int
    tier: str


class Readings:
    """Reads what remains and what is spent from the first tier that answers."""

    def __init__(
        self, book: LeaseBook[Any], counter: Counter, ledger: LedgerReader | None, transport: Transport
    ) -> None:
        self._book = book
        self._counter = counter
        self._ledger = ledger
        self._transport = transport
        self.fallthroughs = 0
        """How often a tier did not answer since the start."""

    def remaining(self, agent: str) -> Reading:
        """See `Wallet.remaining`."""
        return self._read(
            agent,
            lambda day: day.remaining_micros + self._book.free_micros(agent),
            lambda day: day.remaining_micros,
            lambda cap, spent, leased: max(0, cap - spent - leased) + self._book.free_micros(agent),
        )

    def spent(self, agent: str) -> Reading:
        """See `Wallet.spent`."""
        return self._read(
            agent, lambda day: day.spent_micros, lambda day: day.spent_micros, lambda _cap, spent, _leased: spent
        )

    def _read(
        self,
        agent: str,
        of_counter: Callable[[DayReading], int],
        of_ledger: Callable[[DaySnapshot], int],
        of_memory: Callable[[int, int, int], int],
    ) -> Reading:
        agent = agent_id(agent)
        day = self._book.clock.today()
        try:
            if self._book.clock.ms() is None:  # No answer yet, and this host's clock may show another day.
                self._book.clock.hear(self._counter.now_ms())
                day = self._book.clock.today()
            (reading,) = self._counter.read([(agent, day)])
            if reading is not None:
                return Reading(of_counter(reading), self._counter.tier)
        except CounterUnavailable as error:
            self._fall_through(agent, error)
        if self._ledger is not None:
            try:
                (snapshot,) = self._ledger.rows([(agent, day)])
                return Reading(of_ledger(_known(snapshot)), "ledger")
            except LedgerUnavailable as error:
                self._fall_through(agent, error)
        lease = self._book.leases.last_known(agent)
        if lease is not None and lease.day == day:
            return Reading(of_memory(lease.cap, lease.spent, lease.leased), "memory")
        if (settled := self._transport.snapshot(agent, day)) is not None:
            return Reading(of_ledger(_known(settled)), "memory")
        raise BudgetUnavailable(f"agent {agent}: neither Redis nor the ledger nor memory has {day}")

    def _fall_through(self, agent: str, error: Unavailable) -> None:
        self.fallthroughs += 1
        logger.warning("falling through to the next tier for agent %s: %s", agent, error)


def _known(snapshot: DaySnapshot) -> DaySnapshot:
    if snapshot.status == UNKNOWN:
        raise UnknownAgent(snapshot.agent)
    return snapshot
