"""A read-only view of the ledger for runners: the second tier of reads.

Needs SQLAlchemy (`pip install "daycap[ledger]"`), which is imported only if a ledger URL is set.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from daycap.errors import InvalidSetting, LedgerUnavailable, UnknownAgent
from daycap.ledger.postgresql import SCHEMES, postgresql_engine, reason
from daycap.process import whole
from daycap.protocol.counter import AgentDay, DaySnapshot

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_TIMEOUT_S = 2


class LedgerReader:
    """Reads the ledger at `url` on connections of its own. Raises `LedgerUnavailable`; never writes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: Engine | None = read_only_engine(url)
        self._inherited: list[Engine] = []
        # Import here, not in a reading thread: a child forked during the import would inherit its lock forever.
        from daycap.ledger.snapshots import read_changes, read_repairs, read_rows  # noqa: PLC0415  (it needs SQLAlchemy, an extra)
        from daycap.ledger.tables import agent_accounts  # noqa: PLC0415

        self._read_rows, self._read_changes, self._read_repairs = read_rows, read_changes, read_repairs
        self._accounts = agent_accounts.c

    def rows(self, agent_days: Sequence[AgentDay]) -> list[DaySnapshot]:
        """See `daycap.ledger.snapshots.read_rows`; one transaction."""
        with self._reading() as connection:
            return self._read_rows(connection, agent_days)

    def changes(self, since: Mapping[AgentDay, int]) -> list[DaySnapshot]:
        """See `daycap.ledger.snapshots.read_changes`; one transaction."""
        with self._reading() as connection:
            return self._read_changes(connection, since)

    def repairs(self, seen: Mapping[AgentDay, Container[str]]) -> list[DaySnapshot]:
        """See `daycap.ledger.snapshots.read_repairs`; one transaction."""
        with self._reading() as connection:
            return self._read_repairs(connection, seen)

    def anchor_of(self, agent: str) -> str | None:
        """Return the agent's identity anchor; None if it has none. Also raises `UnknownAgent`."""
        import sqlalchemy as sa  # noqa: PLC0415  (an extra)

        accounts = self._accounts
        statement = sa.select(accounts.identity_anchor).where(accounts.agent_account_id == agent)
        with self._reading() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            raise UnknownAgent(agent)
        anchor: str | None = row.identity_anchor
        return anchor

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  (an extra)

        if self._engine is None:
            with whole.lock:
                self._engine = read_only_engine(self._url)
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise LedgerUnavailable(f"the ledger did not answer: {reason(error)}") from error

    def forget(self) -> None:
        """Set the parent's connections aside in a forked child, neither closed nor garbage-collected.

        The next read creates a new engine. Fork hooks must be quick: Python loses the exception of a signal that
        arrives while they run.
        """
        if self._engine is not None:
            self._inherited.append(self._engine)
        self._engine = None

    def close(self) -> None:
        """Close the connections."""
        if self._engine is not None:
            self._engine.dispose()


def read_only_engine(url: str) -> Engine:
    """Return an engine that can neither change nor create the ledger at `url`. Raises `InvalidSetting`."""
    try:
        import sqlalchemy as sa  # noqa: PLC0415
    except ImportError as error:
        raise InvalidSetting('DAYCAP_LEDGER_URL needs SQLAlchemy: pip install "daycap[ledger]"') from error
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InvalidSetting("DAYCAP_LEDGER_URL is not a URL that SQLAlchemy reads") from error
    if parsed.get_backend_name() == "sqlite":
        path = Path(parsed.database or "").absolute()

        def connect() -> Any:
            # Read-only: a mistyped path must not create an empty ledger.
            file = f"file:{quote(str(path))}?mode=ro"
            return sqlite3.connect(file, uri=True, timeout=_TIMEOUT_S, check_same_thread=False, isolation_level=None)

        engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.QueuePool)
        # The driver begins no transaction for a SELECT, so each one would see a different state of the ledger.
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return engine
    if parsed.get_backend_name() in SCHEMES:
        return postgresql_engine(
            parsed,
            defaults={},
            # The URL cannot change these: neither a lost server nor a lock may delay a reserve.
            fixed={"connect_timeout": _TIMEOUT_S, "tcp_user_timeout": _TIMEOUT_S * 1000},
            timeouts_s={"lock_timeout": _TIMEOUT_S, "statement_timeout": _TIMEOUT_S},
            isolation_level="REPEATABLE READ",
            execution_options={"postgresql_readonly": True},
        )
    raise InvalidSetting("DAYCAP_LEDGER_URL must be sqlite:///... or postgresql://...")
