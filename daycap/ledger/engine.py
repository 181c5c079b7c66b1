"""The ledger: the durable truth. One engine, transactions that write and transactions that read."""

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
"""In a wheel they lie inside the package, in a checkout beside it."""
_BUSY_TIMEOUT_S = 5
_READING = {"daycap_reading": True}

_POSTGRESQL = {
    "application_name": "daycap",
    "connect_timeout": _BUSY_TIMEOUT_S,
    # A server that is lost without a word is noticed; else a worker would wait for it for hours.
    "tcp_user_timeout": _BUSY_TIMEOUT_S * 2000,
    "keepalives_idle": _BUSY_TIMEOUT_S,
    "keepalives_interval": _BUSY_TIMEOUT_S,
    "keepalives_count": 2,
}
"""libpq's parameters, each unless the URL sets it."""


class Ledger:
    """The ledger at `url`: SQLite, or PostgreSQL by the same code. Owned by the worker.

    Errors of the database come out as SQLAlchemy's own; `is_transient` tells which of them time may heal.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that may write, committed on leaving. On SQLite it holds the write lock throughout."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction that sees a single state of the ledger and waits for no writer."""
        with self.engine.connect() as connection:
            options: Any = _READING
            if connection.dialect.name == "postgresql":
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            with connection.execution_options(**options).begin():
                yield connection

    def check_tables(self) -> None:
        """Raise `LedgerUnavailable` unless this release works with the ledger's tables, and may write to them."""
        newest = str(ScriptDirectory.from_config(alembic_config()).get_current_head())
        with self.reading() as connection:
            check_revision(MigrationContext.configure(connection).get_current_revision(), newest)
            if connection.dialect.name == "postgresql":
                _check_rights(connection)

    def migrate(self) -> None:
        """Make the tables, or bring them up to this release. Raises `LedgerUnavailable` if they are too new for it."""
        newest = ScriptDirectory.from_config(config := alembic_config()).get_current_head()
        with self.reading() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found is None or numbers(found) < numbers(str(newest)):
            with self.writing() as connection:  # Alembic looks again: another process may have done it meanwhile.
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")
        self.check_tables()

    def check(self) -> None:
        """The same, and write to the disk. Raises the database's error if it is busy, full or read-only."""
        self.check_tables()
        # A row that comes and goes in one transaction: an UPDATE to the same value would write nothing.
        row = {"dead_letter_id": "check", "kind": "check", "reason": "", "payload": "", "times": 1}
        with self.writing() as connection:
            connection.execute(sa.insert(dead_letters), [{**row, "first_seen_at": 0, "last_seen_at": 0}])
            connection.execute(sa.delete(dead_letters).where(dead_letters.c.dead_letter_id == "check"))

    def close(self) -> None:
        """Let go of connections."""
        self.engine.dispose()


class ReadOnlyLedger(Ledger):
    """A ledger to look at: a mistyped path makes no file, and nothing can be written."""

    def __init__(self, url: str) -> None:
        self.engine = read_only_engine(url)


def alembic_config() -> Config:
    """Alembic's settings, wherever the command is run."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def insert(dialect: str, table: sa.Table) -> Any:
    """An INSERT of the database's own dialect: the kind that knows ON CONFLICT."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def in_byte_order(dialect: str, column: sa.Column[str]) -> sa.ColumnElement[str]:
    """`column`, to order by as Python sorts: a database's own language sorts mixed-case ids in another order.

    Rows are locked in this order, whichever statement, worker or database locks them.
    """
    return column.collate("C") if dialect == "postgresql" else column


def given_columns(table: sa.TableClause) -> list[str]:
    """The columns that a row gives, in the table's order: those that the database makes itself are left out."""
    return [column.name for column in table.columns if column.computed is None]


def execute_many(connection: sa.Connection, statement: sa.Insert, rows: Sequence[tuple[object, ...]]) -> None:
    """Execute for each of `rows`, in the order of the table's `given_columns`.

    Made for settling: SQLAlchemy's own way, over a dictionary for each row, takes longer than the database.
    """
    connection.exec_driver_sql(_text(statement, connection.dialect.name), rows)


@functools.lru_cache(maxsize=32)
def _text(statement: sa.Insert, dialect: str) -> str:
    """The statement as the driver takes it, with places instead of names."""
    kind, style = (psycopg.dialect, "format") if dialect == "postgresql" else (sqlite.dialect, "qmark")
    return str(statement.compile(dialect=kind(paramstyle=style), column_keys=given_columns(statement.table)))


def is_transient(error: BaseException) -> bool:
    """Whether the ledger was away, busy or full: the same transaction may succeed later, unchanged."""
    return isinstance(error, sa.exc.SQLAlchemyError | OSError) and not isinstance(
        error, sa.exc.IntegrityError | sa.exc.DataError
    )


def unavailable(error: BaseException) -> LedgerUnavailable:
    """The database's error in words, without the statement and its parameters."""
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
            isolation_level="READ COMMITTED",  # Also where a database's default is another.
        )
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise InvalidSetting("DAYCAP_LEDGER_URL must be sqlite:///path/to/file or postgresql://...")
    engine = sa.create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _check_rights(connection: sa.Connection) -> None:
    """What would otherwise be found out when the first event is settled, and be tried again without end."""
    if connection.scalar(sa.select(sa.func.pg_is_in_recovery())):
        raise LedgerUnavailable(
            "the ledger is a replica, which nobody can write to; set DAYCAP_LEDGER_URL to its primary"
        )
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
    connection.isolation_level = None  # The driver begins no transactions of its own; _begin_sqlite does.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # A commit is on the disk, not only with the kernel.
    connection.execute("PRAGMA foreign_keys = ON")


def _file(connection: sqlite3.Connection) -> tuple[int, int] | None:
    """Which file is at the connection's path now; None if there is none."""
    (path,) = (row[2] for row in connection.execute("PRAGMA database_list") if row[1] == "main")
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _begin_sqlite(connection: sa.Connection) -> None:
    driver: Any = connection.connection
    if _file(driver.dbapi_connection) != driver.info["file"]:
        # What would be committed now is in a file that nobody will ever see.
        connection.invalidate()
        raise OSError("its file was replaced or removed while it was open")
    # IMMEDIATE takes the write lock at once: what is read in a transaction stays true until it commits.
    reading = connection.get_execution_options().get("daycap_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
