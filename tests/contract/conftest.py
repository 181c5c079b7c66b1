"""A ledger on each database that there is, SQLite and a real PostgreSQL server; a counter whose clock is set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daycap.clock import day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.protocol.counter import LeaseTerms
from tests.migrated import migrate
from tests.postgresql import LocalPostgreSQL

DAY, NEXT = "2026-11-24", "2026-11-25"
TERMS = LeaseTerms(ttl_ms=30_000, guard_ms=1_000, grace_ms=10_000)


class ServerClock:
    """The counter's clock, as a test sets it; it begins at noon of `DAY`."""

    def __init__(self) -> None:
        self.ms = day_start_ms(DAY) + 12 * 3_600_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    server: LocalPostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def empty(ledger_url: str) -> Iterator[Ledger]:
    """A ledger without tables."""
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


@pytest.fixture
def ledger(empty: Ledger) -> Ledger:
    """A ledger as the migrations leave it."""
    migrate(empty)
    return empty


@pytest.fixture
def clock() -> ServerClock:
    return ServerClock()


@pytest.fixture
def counter(clock: ServerClock) -> MemoryCounter:
    return MemoryCounter(clock)


@pytest.fixture
def publisher(counter: MemoryCounter) -> CounterPublisher:
    return CounterPublisher(counter, TERMS)
