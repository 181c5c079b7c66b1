"""The ledger, the durable source of truth: one engine, with writing and reading transactions."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg

from daycap.errors import InvalidSetting, LedgerUnavailable
from daycap.ledger.postgresql import SCHEMES, postgresql_engine, reason
from daycap.ledger.reader import read_only_engine
from daycap.ledger.revisions import check_revision, numbers
from daycap.ledger.tables import APPEND_ONLY, dead_letters, metadata

_PACKAGE = Path(__file__).resolve().parent
_MIGRATIONS = next(path for path in (_PACKAGE / "migrations", _PACKAGE.parents[1] / "migrations") if path.is_dir())
"""Inside the package in a wheel, beside it in a checkout."""
_BUSY_TIMEOUT_S = 5
_READING = {"daycap_reading": True}

_POSTGRESQL = {
    "application_name": "daycap",
    "connect_timeout": _BUSY_TIMEOUT_S,
    # Detect a server that vanishes; otherwise a worker waits for it for hours.
    "tcp_user_timeout": _BUSY_TIMEOUT_S * 2000,
    "keepalives_idle": _BUSY_TIMEOUT_S,
    "keepalives_interval": _BUSY_TIMEOUT_S,
    "keepalives_count": 2,
}
"""Defaults for libpq's parameters; the URL takes precedence."""


class Ledger:
    """The ledger at `url`, in SQLite or PostgreSQL. The worker owns it.

    Database errors are raised as SQLAlchemy's own; `is_transient` tells which of them may pass with time.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Begin a transaction that may write, and commit it on exit. On SQLite it holds the write lock throughout."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Begin a read-only transaction that sees one consistent state of the ledger and waits for no writer."""
        with self.engine.connect() as connection:
            options: Any = _READING
            if connection.dialect.name == "postgresql":
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            with connection.execution_options(**options).begin():
                yield connection

    def check_tables(self) -> None:
        """Raise `LedgerUnavailable` unless this release supports the ledger's schema and may write to its tables."""
        newest = str(ScriptDirectory.from_config(alembic_config()).get_current_head())
        with self.reading() as connection:
            check_revision(MigrationContext.configure(connection).get_current_revision(), newest)
            if connection.dialect.name == "postgresql":
                _check_rights(connection)

    def migrate(self) -> None:
        """Create or upgrade the tables for this release. Raises `LedgerUnavailable` if their schema is too new."""
        newest = ScriptDirectory.from_config(config := alembic_config()).get_current_head()
        with self.reading() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found is None or numbers(found) < numbers(str(newest)):
            with self.writing() as connection:  # Alembic checks again: another process may have migrated meanwhile.
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")
        self.check_tables()

    def check(self) -> None:
        """Check the tables and write to the disk. Raises the database's error if it is busy, full or read-only."""
        self.check_tables()
        # Insert and delete a row in one transaction: an UPDATE to the same value would write nothing.
        row = {"dead_letter_id": "check", "kind": "check", "reason": "", "payload": "", "times": 1}
        with self.writing() as connection:
            connection.execute(sa.insert(dead_letters), [{**row, "first_seen_at": 0, "last_seen_at": 0}])
            connection.execute(sa.delete(dead_letters).where(dead_letters.c.dead_letter_id == "check"))

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()


class ReadOnlyLedger(Ledger):
    """A ledger opened read-only: a mistyped path creates no file."""

    def __init__(self, url: str) -> None:
        self.engine = read_only_engine(url)


def alembic_config() -> Config:
    """Return Alembic's settings, independent of the working directory."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def insert(dialect: str, table: sa.Table) -> Any:
    """Return the database's own INSERT, which supports ON CONFLICT."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def in_byte_order(dialect: str, column: sa.Column[str]) -> sa.ColumnElement[str]:
    """Return `column` for an ORDER BY that sorts as Python does: a database's collation may sort ids differently.

    Every statement, worker and database locks rows in this order.
    """
    return column.collate("C") if dialect == "postgresql" else column


def given_columns(table: sa.TableClause) -> list[str]:
    """Return the names of the table's columns without the generated ones."""
    return [column.name for column in table.columns if column.computed is None]


def execute_many(connection: sa.Connection, statement: sa.Insert, rows: Sequence[tuple[object, ...]]) -> None:
    """Execute `statement` for each of `rows`, whose values are in the order of the table's `given_columns`.

    For settling: SQLAlchemy's usual dictionary per row takes longer than the database.
    """
    connection.exec_driver_sql(_text(statement, connection.dialect.name), rows)


@functools.lru_cache(maxsize=32)
def _text(statement: sa.Insert, dialect: str) -> str:
    """Return the statement for the driver, with positional parameters."""
    kind, style = (psycopg.dialect, "format") if dialect == "postgresql" else (sqlite.dialect, "qmark")
    return str(statement.compile(dialect=kind(paramstyle=style), column_keys=given_columns(statement.table)))


def is_transient(error: BaseException) -> bool:
    """Return whether the ledger was unavailable, busy or full, so that the same transaction may succeed later."""
    return isinstance(error, sa.exc.SQLAlchemyError | OSError) and not isinstance(
        error, sa.exc.IntegrityError | sa.exc.DataError
    )


def unavailable(error: BaseException) -> LedgerUnavailable:
    """Return the database's error without the statement and its parameters."""
    return LedgerUnavailable(f"the ledger operation failed: {reason(error)}")


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InvalidSetting("DAYCAP_LEDGER_URL is not a URL that SQLAlchemy reads") from error
    if parsed.get_backend_name() in SCHEMES:
        return postgresql_engine(
            parsed,
            defaults=_POSTGRESQL,
            fixed={},
            timeouts_s={"lock_timeout": _BUSY_TIMEOUT_S},
            isolation_level="READ COMMITTED",  # Whatever the database's default is.
        )
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise InvalidSetting("DAYCAP_LEDGER_URL must be sqlite:///path/to/file or postgresql://...")
    engine = sa.create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _check_rights(connection: sa.Connection) -> None:
    """Raise `LedgerUnavailable` now for what would otherwise fail at the first event, and be retried forever."""
    if connection.scalar(sa.select(sa.func.pg_is_in_recovery())):
        raise LedgerUnavailable("the ledger is a read-only replica; set DAYCAP_LEDGER_URL to its primary")
    for table in metadata.sorted_tables:
        rights = ("SELECT", "INSERT") if table.name in APPEND_ONLY else ("SELECT", "INSERT", "UPDATE")
        has = [sa.func.has_table_privilege(table.name, right) for right in rights]
        if not connection.scalar(sa.select(sa.and_(*has))):
            role = connection.scalar(sa.select(sa.func.current_user()))
            raise LedgerUnavailable(
                f"role {role} may not write to {table.name}; run: GRANT {', '.join(rights)} ON {table.name} TO {role}"
            )


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    record.info["file"] = _file(connection)
    connection.isolation_level = None  # _begin_sqlite begins transactions, not the driver.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # A commit is on the disk, not only in the kernel.
    connection.execute("PRAGMA foreign_keys = ON")


def _file(connection: sqlite3.Connection) -> tuple[int, int] | None:
    """Return the device and inode of the file at the connection's path now; None if there is no file."""
    (path,) = (row[2] for row in connection.execute("PRAGMA database_list") if row[1] == "main")
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _begin_sqlite(connection: sa.Connection) -> None:
    driver: Any = connection.connection
    if _file(driver.dbapi_connection) != driver.info["file"]:
        # A commit would go to a file that is no longer at this path.
        connection.invalidate()
        raise OSError("its file was replaced or removed while it was open")
    # IMMEDIATE takes the write lock at once, so that what a transaction reads stays true until it commits.
    reading = connection.get_execution_options().get("daycap_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
