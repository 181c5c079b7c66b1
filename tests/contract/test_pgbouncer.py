"""Through a pooler: sessions are shared between clients, so that nothing may stay in one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from daycap.clock import day_of, wall_ms
from daycap.errors import LedgerUnavailable
from daycap.ledger import accounts, settle
from daycap.ledger.audit import audit
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.reader import LedgerReader
from daycap.ledger.retention import open_days, prune
from daycap.ledger.slices import all_of
from daycap.protocol.counter import LeaseTerms
from daycap.protocol.wire import FinalizeEvent
from daycap.settings import Settings
from tests.migrated import migrate
from tests.pgbouncer import PgBouncer
from tests.postgresql import LocalPostgreSQL

NOWHERE = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))
TODAY = day_of(wall_ms())
AGENTS = [f"agent-{number}" for number in range(20)]
_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name NOT IN ('application_name', 'transaction_timeout')"
_LEFT = (
    "SELECT name FROM pg_prepared_statements",
    "SELECT pg_listening_channels()",
    "SELECT locktype FROM pg_locks WHERE locktype = 'advisory'",
    "SELECT oid FROM pg_namespace WHERE oid = pg_my_temp_schema()",
)


@pytest.fixture
def server_url(postgresql: LocalPostgreSQL) -> str:
    """An empty database without a pooler."""
    return postgresql.new_database()


@pytest.fixture
def pooler(server_url: str, tmp_path: Path) -> Iterator[PgBouncer]:
    with closing(PgBouncer(tmp_path, server_url)) as pooler:
        yield pooler


def batch(number: int) -> list[object]:
    """Events of every agent, as many as a message brings: some statements have many shapes, some one."""
    some = AGENTS[: 1 + number % len(AGENTS)]
    return [FinalizeEvent(f"{agent}.{number}", 1, 1, agent, TODAY, 10, 10, 1).to_wire() for agent in some]


def work(ledger: Ledger, first: int, last: int) -> None:
    """What a worker does."""
    for number in range(first, last):
        settle.settle(ledger, [*batch(number), "no event"], open_days(Settings(), wall_ms()))
        accounts.set_cap(ledger, NOWHERE, AGENTS[number % len(AGENTS)], 10_000 + number, "test")
    all_of(lambda place: prune(ledger, Settings(), wall_ms(), place))
    ledger.check()


def test_workers_and_readers_share_sessions(pooler: PgBouncer) -> None:
    ledgers = [Ledger(pooler.url) for _ in range(3)]
    migrate(ledgers[0])
    accounts.add(ledgers[0], NOWHERE, dict.fromkeys(AGENTS, 10_000), "test")
    over = threading.Event()

    def read() -> int:
        with closing(LedgerReader(pooler.url)) as reader:
            while not over.is_set():
                spent = sum(day.spent_micros for day in reader.rows([(agent, TODAY) for agent in AGENTS]))
            return spent

    with ThreadPoolExecutor(4) as pool:
        reading = pool.submit(read)
        working = [pool.submit(work, each, 20 * nth, 20 * nth + 20) for nth, each in enumerate(ledgers)]
        try:
            for task in working:
                task.result()
        finally:
            over.set()
        reading.result()

    found = audit(ledgers[0], NOWHERE, Settings(), TODAY)
    assert (found.differences, found.settlements) == ([], sum(len(batch(number)) for number in range(60)))
    for each in ledgers:
        each.close()


def test_nothing_of_ours_stays_in_a_session(server_url: str, tmp_path: Path) -> None:
    with closing(PgBouncer(tmp_path, server_url, sessions=1)) as pooler:
        ledger, reader = Ledger(pooler.url), LedgerReader(pooler.url)
        migrate(ledger)
        accounts.add(ledger, NOWHERE, dict.fromkeys(AGENTS, 10_000), "test")
        work(ledger, 0, 10)
        audit(ledger, NOWHERE, Settings(), TODAY)
        for _ in range(10):
            reader.rows([(agent, TODAY) for agent in AGENTS])
            reader.anchor_of(AGENTS[0])

        # While they still have their connections, another client gets the same session.
        with psycopg.connect(pooler.url, prepare_threshold=None, autocommit=True) as other:
            shared = other.execute(_SETTINGS).fetchall()
            left = [other.execute(query).fetchall() for query in _LEFT]
            session = other.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            ).fetchone()
        server = server_url.replace("+psycopg", "")
        with psycopg.connect(server, prepare_threshold=None, autocommit=True) as fresh:
            assert set(shared) == set(fresh.execute(_SETTINGS).fetchall())
        assert (left, session) == ([[]] * len(_LEFT), (1,))
        reader.close()
        ledger.close()


def test_no_lock_is_waited_for_long(pooler: PgBouncer) -> None:
    ledger, reader = Ledger(pooler.url), LedgerReader(pooler.url)
    for transaction, limit in ((ledger.writing, "5s"), (ledger.reading, "5s"), (reader._reading, "2s")):
        with transaction() as connection:
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == limit
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == (
                "read committed" if transaction == ledger.writing else "repeatable read"
            )
    reader.close()
    ledger.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [("", "unsupported startup parameter"), ("ignore_startup_parameters = options", "did not reach PostgreSQL")],
    ids=["refuses", "drops"],
)
def test_options_that_a_pooler_drops_are_refused(server_url: str, tmp_path: Path, settings: str, said: str) -> None:
    with closing(PgBouncer(tmp_path, server_url, settings=settings)) as pooler:
        url = f"{pooler.url}?options=-c%20search_path%3Dbilling"
        ledger, reader = Ledger(url), LedgerReader(url)
        with pytest.raises(sa.exc.SQLAlchemyError, match=said), ledger.writing():
            pass
        with pytest.raises(LedgerUnavailable, match=said):
            reader.anchor_of("agent")


def test_a_schema_may_be_named_where_there_is_no_pooler(server_url: str) -> None:
    plain = Ledger(server_url)
    with plain.writing() as connection:
        connection.exec_driver_sql("CREATE SCHEMA billing")
    url = f"{server_url}&options=-csearch_path%3Dbilling"
    ledger, reader = Ledger(url), LedgerReader(url)
    migrate(ledger)
    accounts.add(ledger, NOWHERE, {"agent": 5}, "test")

    assert [day.cap_micros for day in reader.rows([("agent", TODAY)])] == [5]
    with pytest.raises(LedgerUnavailable, match="the ledger is empty"):
        plain.check_tables()
    for each in (plain, ledger, reader):
        each.close()
