"""What truly happened, and the promises P1 to P7 as far as they can be looked at from outside."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from daycap.ledger.engine import Ledger
from daycap.ledger.tables import agent_accounts, daily_agent_spending, lease_totals, settlements
from daycap.protocol.counter import DayReading, SyncReply, SyncRequest
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet.hold import BaseHold
from tests.properties.world import AGENT, SETTINGS

Read = Callable[[Sequence[tuple[str, str]]], list[DayReading | None]]


class Truth:
    """What the runners' calls took, whoever knows of it. Amounts are micros.

    `taken`: the day of each reservation, and the most that its call takes out of its lease. `late`: the reservations
    whose runner died, or did not renew in time, while they were not settled. Only their money may be lent twice.
    """

    def __init__(self, ledger: Ledger, read: Read) -> None:
        self._ledger = ledger
        self._read = read
        self.taken: dict[str, tuple[str, int]] = {}
        self.finalized: dict[str, FinalizeEvent] = {}
        self.late: set[str] = set()
        self.unheard: set[str] = set()
        self.given_up = Count[str]()
        self.highest_cap: dict[str, int] = {}
        self.known_seq: dict[str, int] = {}
        """What the counter said it had of the ledger, for as long as it keeps its data."""
        self._renewed_ms: dict[str, int] = {}
        self._settled: set[str] = set()

    # --- what happens -----------------------------------------------------------------------------------------

    def hold(self, hold: BaseHold) -> None:
        self.taken[hold.id] = hold.day, hold.held_micros

    def release(self, hold: BaseHold) -> None:
        del self.taken[hold.id]

    def finalize(self, event: FinalizeEvent) -> None:
        self.finalized[event.reservation] = event
        self.taken[event.reservation] = event.day, event.drawn_micros

    def hear(self, sent_ms: int, exchange: Iterable[tuple[SyncRequest, SyncReply]]) -> None:
        """A wallet has the counter's answers to what it sent then."""
        for request, reply in exchange:
            if reply.answer.taken:
                self._renewed_ms[request.lease] = sent_ms

    def time_is(self, now_ms: int) -> None:
        """What is held of leases that were not renewed in time may be lent to others from now on."""
        for lease, renewed_ms in list(self._renewed_ms.items()):
            if now_ms >= renewed_ms + SETTINGS.terms.ttl_ms:
                self._be_late(lease)

    def die(self, leases: Iterable[str], unsettled: Iterable[FinalizeEvent]) -> None:
        """A runner's end. Its calls go on at the provider and cost all that is held, though nobody will ever tell."""
        self.unheard |= {event.reservation for event in unsettled}
        for lease in leases:
            self._be_late(lease)

    def _be_late(self, lease: str) -> None:
        self._renewed_ms.pop(lease, None)
        self.late |= {each for each in self.taken.keys() - self._settled if each.rpartition("-")[0] == lease}

    # --- what must be true ------------------------------------------------------------------------------------

    def rows(self) -> dict[str, Any]:
        with self._ledger.reading() as connection:
            return {row.spending_date: row for row in connection.execute(sa.select(daily_agent_spending))}

    def _readings(self, rows: dict[str, Any]) -> list[tuple[str, Any, DayReading | None]]:
        readings = self._read([(AGENT, day) for day in rows])
        return [(day, row, reading) for (day, row), reading in zip(rows.items(), readings, strict=True)]

    def check(self) -> None:
        """P1 to P4, as far as they hold at every moment."""
        with self._ledger.reading() as connection:
            rows = {row.spending_date: row for row in connection.execute(sa.select(daily_agent_spending))}
            settled = list(connection.execute(sa.select(settlements)))
            leases = list(connection.execute(sa.select(lease_totals)))
            status = connection.scalar(sa.select(agent_accounts.c.status))
        self._settled = {row.reservation_id for row in settled}
        self._check_once(settled, leases)
        for day, row, reading in self._readings(rows):
            highest = self.highest_cap[day] = max(self.highest_cap.get(day, 0), row.cap_micros)
            assert row.spent_micros <= highest, ("P1", day, row)
            charged = sum(each.charged_micros for each in settled if each.spending_date == day)
            assert row.spent_micros == charged, ("P3", day, row, charged)
            if reading is not None:
                self._check_counter(row, reading, status)
            self._check_wallets(day, highest)

    def _check_once(self, settled: list[Any], leases: list[Any]) -> None:
        for row in settled:
            event = self.finalized.get(row.reservation_id)
            assert event is not None, ("P2", "settled but never finalized", row)
            assert (row.held_micros, row.actual_micros) == (event.held_micros, event.actual_micros), ("P2", row)
        for lease in leases:
            events = [self.finalized[row.reservation_id] for row in settled if row.lease_id == lease.lease_id]
            drawn = sum(event.drawn_micros for event in events)
            assert (lease.events, lease.drawn_micros) == (len(events), drawn), ("P2", lease)

    def _check_counter(self, row: Any, reading: DayReading, status: str | None) -> None:
        day = row.spending_date
        assert reading.seq >= self.known_seq.get(day, 0), ("P3", day, "an older snapshot was taken", reading)
        self.known_seq[day] = reading.seq
        assert reading.seq <= row.seq, ("P3", day, reading, row)
        said = (reading.cap_micros, reading.spent_micros, reading.status)
        same = said == (row.cap_micros, row.spent_micros, status)
        assert same or reading.seq < row.seq, ("P3", day, reading, row)

    def _check_wallets(self, day: str, highest: int) -> None:
        """P4, twice: by what was given up, and without those who were late, when nothing need be given up."""
        taken = {reservation: micros for reservation, (its_day, micros) in self.taken.items() if its_day == day}
        most = highest + self.given_up[day]
        assert sum(taken.values()) <= most, ("P4", day, taken, highest, self.given_up[day])
        in_time = {reservation: micros for reservation, micros in taken.items() if reservation not in self.late}
        assert sum(in_time.values()) <= highest, ("P4", day, "of those who renewed in time", in_time, highest)

    def check_level(self) -> None:
        """P3 after a reconcile: the counter is as the ledger."""
        for day, row, reading in self._readings(self.rows()):
            assert reading is not None, ("P3", day, "not open")
            said = (reading.seq, reading.cap_micros, reading.spent_micros)
            assert said == (row.seq, row.cap_micros, row.spent_micros), ("P3", day, reading, row)

    def check_refusal(self, day: str, live: Iterable[BaseHold], estimate: int) -> None:
        """P6, for a lone wallet without faults."""
        held = sum(hold.held_micros for hold in live if hold.day == day)
        spent = sum(event.actual_micros for event in self.finalized.values() if event.day == day)
        cap = self.rows()[day].cap_micros
        assert spent + held + estimate > cap, ("P6", spent, held, estimate, cap)

    def lost(self) -> set[str]:
        """The events that the ledger does not have though their runner lives."""
        return self.finalized.keys() - self._settled - self.unheard

    def set_aside(self) -> list[tuple[str, DayReading]]:
        """The days of which something is still set aside in the counter: by a lease, or by a fence."""
        return [
            (day, reading)
            for day, _, reading in self._readings(self.rows())
            if reading is not None and (reading.leased_micros or reading.fenced)
        ]
