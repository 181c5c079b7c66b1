"""Reading the ledger: what the counter is warmed from and the second tier of reading. Never writes.

Needs SQLAlchemy (`pip install "daycap[ledger]"`), which is only imported when a ledger URL is given.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from daycap.errors import InvalidSetting, LedgerUnavailable, UnknownAgent
from daycap.ledger.postgresql import SCHEMES, postgresql_engine, reason
from daycap.protocol.counter import UNKNOWN, DaySnapshot, LeaseTotals

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Engine, FromClause

_TIMEOUT_S = 2

_SOME = 300
"""Agent-days a statement: two parameters each, below every database's limit."""


def one_of(table: FromClause, agent_days: Iterable[tuple[str, str]]) -> ColumnElement[bool]:
    """The condition that a row of `table` belongs to one of these (agent, day).

    A day and its agents, not pairs: SQLite reads a whole table for a list of pairs.
    """
    import sqlalchemy as sa  # noqa: PLC0415  (an extra)

    agents_of: dict[str, list[str]] = {}
    for agent, day in agent_days:
        agents_of.setdefault(day, []).append(agent)
    return sa.or_(
        sa.false(),
        *(
            sa.and_(table.c.spending_date == day, table.c.agent_account_id.in_(agents))
            for day, agents in agents_of.items()
        ),
    )


def read_snapshots(connection: Connection, agent_days: Iterable[tuple[str, str]]) -> list[DaySnapshot]:
    """What the ledger knows of each (agent, day), in the order asked, as the connection's transaction sees it.

    A day that has no row yet has the agent's daily cap and nothing spent; an agent without an account has
    status `unknown`.
    """
    import sqlalchemy as sa  # noqa: PLC0415  (an extra)

    accounts = sa.table("agent_accounts", *map(sa.column, ("agent_account_id", "daily_cap_micros", "status")))
    days = sa.table(
        "daily_agent_spending",
        *map(sa.column, ("agent_account_id", "spending_date", "seq", "cap_micros", "spent_micros")),
    )
    leases = sa.table(
        "lease_totals",
        *map(sa.column, ("agent_account_id", "spending_date", "lease_id", "drawn_micros", "events", "last_event")),
    )
    wanted = list(agent_days)
    snapshots: list[DaySnapshot] = []
    for start in range(0, len(wanted), _SOME):
        some = wanted[start : start + _SOME]
        account_of = {
            row.agent_account_id: row
            for row in connection.execute(
                sa.select(accounts).where(accounts.c.agent_account_id.in_({agent for agent, _ in some}))
            )
        }
        day_of = {
            (row.agent_account_id, row.spending_date): row
            for row in connection.execute(sa.select(days).where(one_of(days, some)))
        }
        leases_of: dict[tuple[str, str], list[LeaseTotals]] = {}
        for row in connection.execute(sa.select(leases).where(one_of(leases, some))):
            totals = LeaseTotals(row.lease_id, row.drawn_micros, row.events, row.last_event)
            leases_of.setdefault((row.agent_account_id, row.spending_date), []).append(totals)
        for agent, day in some:
            account, of_day = account_of.get(agent), day_of.get((agent, day))
            if account is None:
                snapshots.append(DaySnapshot(agent, day, 0, UNKNOWN, 0, 0))
                continue
            snapshots.append(
                DaySnapshot(
                    agent,
                    day,
                    of_day.seq if of_day else 0,
                    account.status,
                    of_day.cap_micros if of_day else account.daily_cap_micros,
                    of_day.spent_micros if of_day else 0,
                    tuple(leases_of.get((agent, day), ())),
                )
            )
    return snapshots


class LedgerReader:
    """A reader's own door to the ledger at `url`. Raises `LedgerUnavailable`, never changes anything."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine = read_only_engine(url)

    def snapshots(self, agent_days: Sequence[tuple[str, str]]) -> list[DaySnapshot]:
        """See `read_snapshots`; one transaction."""
        with self._reading() as connection:
            return read_snapshots(connection, agent_days)

    def anchor_of(self, agent: str) -> str | None:
        """The agent's identity anchor; None where it has none. Raises `UnknownAgent` too."""
        import sqlalchemy as sa  # noqa: PLC0415  (an extra)

        accounts = sa.table("agent_accounts", *map(sa.column, ("agent_account_id", "identity_anchor")))
        with self._reading() as connection:
            row = connection.execute(sa.select(accounts).where(accounts.c.agent_account_id == agent)).one_or_none()
        if row is None:
            raise UnknownAgent(agent)
        anchor: str | None = row.identity_anchor
        return anchor

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  (an extra)

        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise LedgerUnavailable(f"the ledger did not answer: {reason(error)}") from error

    def forget(self) -> None:
        """In a forked child: let go of the parent's connections without closing them."""
        self._engine.dispose(close=False)
        self._engine = read_only_engine(self._url)  # A thread of the parent may have held a lock of the other's.

    def close(self) -> None:
        """Let go of connections."""
        self._engine.dispose()


def read_only_engine(url: str) -> Engine:
    """An engine for the ledger at `url` that cannot change it, or make one. Raises `InvalidSetting`."""
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
            # Opened for reading only: a mistyped path must not make an empty ledger.
            file = f"file:{quote(str(path))}?mode=ro"
            return sqlite3.connect(file, uri=True, timeout=_TIMEOUT_S, check_same_thread=False, isolation_level=None)

        engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.QueuePool)
        # The driver itself begins no transaction for a SELECT, and each would see another state of the ledger.
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return engine
    if parsed.get_backend_name() in SCHEMES:
        return postgresql_engine(
            parsed,
            defaults={},
            # Whatever the URL says: neither a lost server nor a lock must hold a reserve up.
            fixed={"connect_timeout": _TIMEOUT_S, "tcp_user_timeout": _TIMEOUT_S * 1000},
            timeouts_s={"lock_timeout": _TIMEOUT_S, "statement_timeout": _TIMEOUT_S},
            isolation_level="REPEATABLE READ",
            execution_options={"postgresql_readonly": True},
        )
    raise InvalidSetting("DAYCAP_LEDGER_URL must be sqlite:///... or postgresql://...")
