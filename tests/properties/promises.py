"""What truly happened, and the promises P1 to P7, P12 and P13 as far as they can be looked at from outside."""

from __future__ import annotations

import json
from collections import Counter as Count
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from daycap import CapExceeded
from daycap.ledger import tables
from daycap.ledger.engine import Ledger
from daycap.protocol.counter import ACTIVE, PAUSED, AgentDay, DayReading, SyncReply, SyncRequest
from daycap.protocol.plan import ENFORCE, is_budget
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet.hold import BaseHold
from daycap.wallet.lease import Lease
from tests.properties.world import SETTINGS

Read = Callable[[Sequence[AgentDay]], list[DayReading | None]]

_DAYS = sa.select(tables.daily_agent_spending, tables.agent_accounts.c.status).join_from(
    tables.daily_agent_spending, tables.agent_accounts
)
_PERIODS = sa.select(tables.budget_periods, tables.budgets.c.mode, tables.budgets.c.removed_at).join_from(
    tables.budget_periods, tables.budgets
)
_SETTLED = sa.select(tables.settlements, tables.contexts.c.budgets).join_from(
    tables.settlements,
    tables.contexts,
    tables.settlements.c.context_id == tables.contexts.c.context_id,
    isouter=True,
)


def leases_of(hold: BaseHold) -> tuple[Lease, ...]:
    """Return what a hold draws on: the lease of its agent's day, and those of other budgets."""
    return (hold._lease, *(hold._route.others if hold._route is not None else ()))


class Truth:
    """What the runners' calls took of agents' days and budgets' periods, whoever knows of it. Amounts are micros.

    `taken`: the most that each reservation takes out of which leases. `late`: the reservations whose runner died, or
    did not renew that lease in time, while they were not settled. Only their money may be lent twice.
    """

    def __init__(self, ledger: Ledger, read: Read) -> None:
        self._ledger = ledger
        self._read = read
        self.taken: dict[str, dict[AgentDay, tuple[str, int]]] = {}
        self.counted: dict[str, list[list[str]]] = {}
        """The budgets' periods that each call counts in since it was reserved, watched ones too."""
        self.finalized: dict[str, FinalizeEvent] = {}
        self.late: set[tuple[str, AgentDay]] = set()
        self.unheard: set[str] = set()
        self.given_up = Count[AgentDay]()
        self.highest_cap: dict[AgentDay, int] = {}
        self.known_seq: dict[AgentDay, int] = {}
        """What the counter said it had of the ledger, for as long as it keeps its data."""
        self._renewed_ms: dict[str, int] = {}
        self._settled: set[str] = set()

    # --- what happens -----------------------------------------------------------------------------------------

    def hold(self, hold: BaseHold) -> None:
        self.taken[hold.id] = {(each.agent, each.day): (each.id, hold.held_micros) for each in leases_of(hold)}
        shares = hold._route.shares if hold._route is not None else ()
        self.counted[hold.id] = sorted([share.budget, share.period] for share in shares)

    def release(self, hold: BaseHold) -> None:
        del self.taken[hold.id]

    def finalize(self, event: FinalizeEvent) -> None:
        self.finalized[event.reservation] = event
        taken = {(event.agent, event.day): (event.lease, event.drawn_micros)}
        taken |= {
            (share.budget, share.period): (share.lease, drawn(event, share)) for share in event.also if share.lease
        }
        self.taken[event.reservation] = taken

    def taken_of(self, where: AgentDay) -> dict[str, int]:
        """What each reservation takes of an agent's day, or of a budget's period."""
        return {reservation: wheres[where][1] for reservation, wheres in self.taken.items() if where in wheres}

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
        for reservation in self.taken.keys() - self._settled:
            self.late |= {(reservation, where) for where, (id_, _) in self.taken[reservation].items() if id_ == lease}

    # --- what must be true ------------------------------------------------------------------------------------

    def rows(self) -> dict[AgentDay, Any]:
        with self._ledger.reading() as connection:
            return _rows(connection)

    def _readings(self, rows: dict[AgentDay, Any]) -> list[tuple[AgentDay, Any, DayReading | None]]:
        readings = self._read(list(rows))
        return [(where, row, reading) for (where, row), reading in zip(rows.items(), readings, strict=True)]

    def check(self) -> None:
        """P1 to P4, as far as they hold at every moment."""
        with self._ledger.reading() as connection:
            rows = _rows(connection)
            settled = list(connection.execute(_SETTLED))
            leases = list(connection.execute(sa.select(tables.lease_totals)))
            budget_leases = list(connection.execute(sa.select(tables.budget_leases)))
            shortfalls = list(connection.execute(sa.select(tables.shortfalls)))
        self._settled = {row.reservation_id for row in settled}
        self._check_once(settled, leases)
        charged = self._charged(settled, shortfalls)
        self._check_budget_leases(settled, budget_leases)
        for where, row, reading in self._readings(rows):
            highest = self.highest_cap[where] = max(self.highest_cap.get(where, 0), row.cap_micros)
            assert row.spent_micros <= highest, ("P1", where, row)
            assert row.spent_micros == charged[where], ("P3", where, row, charged[where])
            if reading is not None:
                self._check_counter(where, row, reading)
            self._check_wallets(where, highest)

    def _check_once(self, settled: list[Any], leases: list[Any]) -> None:
        for row in settled:
            event = self.finalized.get(row.reservation_id)
            assert event is not None, ("P2", "settled but never finalized", row)
            assert (row.held_micros, row.actual_micros) == (event.held_micros, event.actual_micros), ("P2", row)
        for lease in leases:
            events = [self.finalized[row.reservation_id] for row in settled if row.lease_id == lease.lease_id]
            drawn_micros = sum(event.drawn_micros for event in events)
            assert (lease.events, lease.drawn_micros) == (len(events), drawn_micros), ("P2", lease)

    def _charged(self, settled: list[Any], shortfalls: list[Any]) -> Count[AgentDay]:
        """What the settlements say was charged; P12: each to the budgets and periods that it was reserved for."""
        charged = Count[AgentDay]()
        for row in settled:
            charged[row.agent_account_id, row.spending_date] += row.charged_micros
            budgets = json.loads(row.budgets or "[]")
            assert sorted(budgets) == self.counted[row.reservation_id], ("P12", row, self.counted)
            for budget, period in budgets:
                charged[budget, period] += row.actual_micros
        for row in shortfalls:
            charged[row.budget_id, row.period_id] -= row.uncovered_micros
        return charged

    def _check_budget_leases(self, settled: list[Any], leases: list[Any]) -> None:
        events = [self.finalized[row.reservation_id] for row in settled]
        expected = Count[str]()
        for event in events:
            for share in event.also:
                if share.lease:
                    expected[share.lease] += drawn(event, share)
        for lease in leases:
            if not is_budget(lease.lease_id):  # Otherwise of calls that held nothing of it.
                assert lease.drawn_micros == expected[lease.lease_id], ("P2", lease, expected)

    def _check_counter(self, where: AgentDay, row: Any, reading: DayReading) -> None:
        assert reading.seq >= self.known_seq.get(where, 0), ("P3", where, "an older snapshot was taken", reading)
        self.known_seq[where] = reading.seq
        assert reading.seq <= row.seq, ("P3", where, reading, row)
        said = (reading.cap_micros, reading.spent_micros, reading.status)
        same = said == (row.cap_micros, row.spent_micros, _status(row))
        assert same or reading.seq < row.seq or _was_over(row), ("P3", where, reading, row)

    def _check_wallets(self, where: AgentDay, highest: int) -> None:
        """P4, twice: by what was given up, and without those who were late, when nothing need be given up."""
        taken = self.taken_of(where)
        most = highest + self.given_up[where]
        assert sum(taken.values()) <= most, ("P4", where, taken, highest, self.given_up[where])
        in_time = {
            reservation: micros for reservation, micros in taken.items() if (reservation, where) not in self.late
        }
        assert sum(in_time.values()) <= highest, ("P4", where, "of those who renewed in time", in_time, highest)

    def check_level(self) -> None:
        """P3 after a reconcile: the counter is as the ledger."""
        for where, row, reading in self._readings(self.rows()):
            if _is_enforced(row):
                assert reading is not None, ("P3", where, "not open")
                said = (reading.seq, reading.cap_micros, reading.spent_micros)
                assert said == (row.seq, row.cap_micros, row.spent_micros), ("P3", where, reading, row)

    def check_refusal(self, refused: CapExceeded, live: Iterable[BaseHold]) -> None:
        """P6 and P13, for a lone wallet without faults: each budget that the refusal names is full."""
        holds = list(live)
        for full in refused.full:
            where = (full.budget or refused.agent, full.period)
            held = sum(hold.held_micros for hold in holds if where in self.taken.get(hold.id, ()))
            spent = sum(event.actual_micros for event in self.finalized.values() if self._counts(event, where))
            total = spent + held + refused.estimate_micros
            assert total > self.rows()[where].cap_micros, ("P6", where, spent, held, refused.estimate_micros)

    def _counts(self, event: FinalizeEvent, where: AgentDay) -> bool:
        return (event.agent, event.day) == where or list(where) in self.counted[event.reservation]

    def lost(self) -> set[str]:
        """The events that the ledger does not have though their runner lives."""
        return self.finalized.keys() - self._settled - self.unheard

    def set_aside(self) -> list[tuple[AgentDay, DayReading]]:
        """Of what something is still set aside in the counter: by a lease, or by a fence."""
        return [
            (where, reading)
            for where, row, reading in self._readings(self.rows())
            if _is_enforced(row) and reading is not None and (reading.leased_micros or reading.fenced)
        ]


def drawn(event: FinalizeEvent, share: Any) -> int:
    """Return what an event takes from the lease of one of its shares."""
    held = event.held_micros if share.held_micros is None else share.held_micros
    return min(event.actual_micros, held)


def _rows(connection: sa.Connection) -> dict[AgentDay, Any]:
    rows = {(row.agent_account_id, row.spending_date): row for row in connection.execute(_DAYS)}
    return rows | {(row.budget_id, row.period_id): row for row in connection.execute(_PERIODS)}


def _status(row: Any) -> str:
    if "mode" not in row._fields:
        return str(row.status)
    return ACTIVE if row.removed_at is None else PAUSED


def _is_enforced(row: Any) -> bool:
    """Whether the counter must be level with it: nobody leases from a budget that only watches."""
    return "mode" not in row._fields or row.mode == ENFORCE


def _was_over(row: Any) -> bool:
    """Whether it is a period that had ended when its budget was removed, of which the counter need not hear."""
    return "mode" in row._fields and row.removed_at is not None and row.end_ms <= row.removed_at
