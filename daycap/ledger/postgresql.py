"""Connecting to PostgreSQL: what the ledger's URL may set, and connections that work through a pooler.

A pooler in transaction mode (pgbouncer) runs each transaction on whichever server session is free. So nothing may
belong to a session: no prepared statements, no `SET` that outlives its transaction, no start-up options of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from daycap.errors import InvalidSetting

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

SCHEMES = ("postgresql", "postgres")

_SECONDS = ("connect_timeout", "keepalives_idle", "keepalives_interval")
_NUMBERS = (*_SECONDS, "keepalives", "keepalives_count", "tcp_user_timeout")
_PREPARE = "prepare_threshold"
_REFUSED = {
    "client_encoding": "it is always UTF8",
    "replication": "the ledger needs an ordinary connection",
}
_OPTION = re.compile(r"(?:-c\s*|--)([A-Za-z_][A-Za-z0-9_.-]*)=")
_NOWHERE = "/nowhere/daycap"
"""A directory that does not exist: libpq checks its parameters before it looks for a server there."""


def postgresql_engine(
    url: URL, *, defaults: Mapping[str, Any], fixed: Mapping[str, Any], timeouts_s: Mapping[str, float], **options: Any
) -> Engine:
    """An engine for the ledger at `url`; `options` are SQLAlchemy's.

    `defaults` are libpq's parameters unless the URL sets them, `fixed` those that it cannot change. `timeouts_s`
    (`lock_timeout`, `statement_timeout`) hold in each transaction and end with it. Raises `InvalidSetting` for a
    parameter in the URL that is unknown, or whose value is not one of its kind.
    """
    import sqlalchemy as sa  # noqa: PLC0415  (an extra)

    given = _given(url)
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg", query={n: v for n, v in url.query.items() if n in ("host", "port")}),
        connect_args={_PREPARE: None, **defaults, **given, **fixed},
        pool_pre_ping=True,
        use_native_hstore=False,  # Saves a question to the server about a type that the ledger does not use.
        **options,
    )
    limits = "SELECT " + ", ".join(f"set_config('{name}', '{s * 1000:g}ms', true)" for name, s in timeouts_s.items())

    def begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if driver.read_only is False:
            # What SQLAlchemy leaves after a read-only transaction. It means READ WRITE, also where the database's
            # owner made that read-only for want of space.
            driver.read_only = None
        connection.exec_driver_sql(limits)

    sa.event.listen(engine, "begin", begin)
    if names := _OPTION.findall(str(given.get("options", ""))):
        sa.event.listen(engine, "connect", lambda connection, _: _check_options(connection, names))
    return engine


def _given(url: URL) -> dict[str, Any]:
    """What the URL's query sets besides hosts and ports, as psycopg takes it."""
    try:
        from psycopg import conninfo, pq  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise InvalidSetting('a PostgreSQL ledger needs psycopg: pip install "daycap[ledger]"') from error
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    given: dict[str, Any] = {}
    for name, value in url.query.items():
        if name in ("host", "port"):
            continue
        # Psycopg takes more names than libpq: `autocommit` would take every transaction apart.
        if name not in known and name != _PREPARE:
            raise InvalidSetting(f"DAYCAP_LEDGER_URL: PostgreSQL has no connection parameter {name}")
        if name in _REFUSED:
            raise InvalidSetting(f"DAYCAP_LEDGER_URL: {name} cannot be set; {_REFUSED[name]}")
        if not isinstance(value, str):
            raise InvalidSetting(f"DAYCAP_LEDGER_URL sets {name} more than once")
        given[name] = _typed(name, value)
    texts = {name: value for name, value in given.items() if isinstance(value, str) and name != "hostaddr"}
    tried = pq.PGconn.connect_start(conninfo.make_conninfo(**{**texts, "host": _NOWHERE}).encode())
    if _NOWHERE not in (said := tried.get_error_message()):
        raise InvalidSetting(f"DAYCAP_LEDGER_URL: {said.strip()}")
    return given


def _typed(name: str, value: str) -> str | int | None:
    if name == _PREPARE and value.lower() == "none":
        return None
    if name != _PREPARE and name not in _NUMBERS:
        return value
    if not (value.isascii() and value.isdigit() and len(value) < 8):
        unit = " of seconds" if name in _SECONDS else ""
        none = ", or none" if name == _PREPARE else ""
        raise InvalidSetting(f"DAYCAP_LEDGER_URL: {name} is a whole number{unit}{none}, not {value!r:.40}")
    return int(value)


def _check_options(connection: Any, names: list[str]) -> None:
    """Refuse a pooler that drops the URL's options: without its search_path a worker may find another ledger."""
    from sqlalchemy.exc import InvalidRequestError  # noqa: PLC0415  (an extra)

    said = "SELECT name FROM pg_catalog.pg_settings WHERE source = 'client'"
    found = {row[0].lower() for row in connection.execute(said)}
    connection.rollback()
    if lost := [name for name in names if name.lower().replace("-", "_") not in found]:
        raise InvalidRequestError(
            f"the options of DAYCAP_LEDGER_URL did not reach PostgreSQL ({', '.join(lost)}): a pooler drops them; "
            "set them for the role instead: ALTER ROLE ... SET ..."
        )


def reason(error: BaseException) -> str:
    """The database's error in its own words, without the statement and its parameters."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
