"""A ledger on each database that there is: SQLite, and a real PostgreSQL server from a wheel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.migrated import migrate
from tests.postgresql import LocalPostgreSQL
from worker.ledger import Ledger


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
