"""A snapshot is of one state of the ledger, on every database: what is drawn never comes without what is spent.

If it did, the counter would take money out of a lease before it counts as spent, and lend it a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from daycap.clock import day_of, wall_ms
from daycap.counters.memory import MemoryCounter
from daycap.ledger import accounts, settle
from daycap.ledger.engine import Ledger
from daycap.ledger.opening import open_days
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.reader import LedgerReader
from daycap.ledger.retention import OpenDays
from daycap.protocol.counter import NOT_OPEN, LeaseTerms, LeaseTotals, SyncRequest
from daycap.protocol.wire import FinalizeEvent

TODAY = day_of(wall_ms())
A = "a" * 32


@pytest.fixture
def publisher() -> CounterPublisher:
    return CounterPublisher(MemoryCounter(), LeaseTerms(30_000, 1_000, 10_000))


@pytest.fixture
def agent(ledger: Ledger, publisher: CounterPublisher) -> str:
    accounts.add(ledger, publisher, {"agent": 100}, "test")
    return "agent"


def settle_before_leases_are_read(engine: sa.Engine, ledger: Ledger) -> Callable[[], bool]:
    """Another worker settles 60 micros just before `engine` reads leases. Returns whether it has."""
    settled: list[object] = []

    def on_execute(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT") and "drawn_micros" in statement and not settled:
            settled.append(statement)
            event = FinalizeEvent(A, 1, 1, "agent", TODAY, 60, 60, 1)
            settle.settle(ledger, [event.to_wire()], OpenDays(TODAY, TODAY))

    sa.event.listen(engine, "before_cursor_execute", on_execute)
    return lambda: bool(settled)


def test_a_reader_sees_one_state_of_the_ledger(ledger: Ledger, ledger_url: str, agent: str) -> None:
    reader = LedgerReader(ledger_url)
    assert reader._engine is not None
    has_settled = settle_before_leases_are_read(reader._engine, ledger)

    (during,) = reader.changes({(agent, TODAY): NOT_OPEN})
    (after,) = reader.changes({(agent, TODAY): NOT_OPEN})
    reader.close()

    assert has_settled()
    assert (during.spent_micros, during.leases) == (0, ())
    assert (after.spent_micros, after.leases) == (60, (LeaseTotals(A, 60, 1, 1),))


def test_reopening_during_settling_lends_nothing_twice(
    ledger: Ledger, ledger_url: str, agent: str, publisher: CounterPublisher
) -> None:
    """P4: two runners ask for the day to be opened; the second request comes while a worker settles."""
    counter = publisher.counter
    assert counter is not None
    counter.sync([SyncRequest(agent, TODAY, A, 0, 0, 60, 60)])
    second = Ledger(ledger_url)
    has_settled = settle_before_leases_are_read(second.engine, ledger)

    open_days(second, publisher, [(agent, TODAY)])
    second.close()

    assert has_settled()
    (reading,) = counter.read([(agent, TODAY)])
    assert reading is not None
    assert reading.remaining_micros == 40
