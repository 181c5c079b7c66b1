"""Connects to PostgreSQL: checks the parameters in the ledger's URL, and works through a pooler.

A pooler in transaction mode (pgbouncer) runs each transaction on any free server session. So daycap uses nothing that
belongs to a session: no prepared statements, no `SET` that outlives its transaction, no start-up options of its own.
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
    """Return an engine for the ledger at `url`; `options` go to SQLAlchemy.

    `defaults` are libpq parameters that the URL may override, `fixed` those that it may not. `timeouts_s`
    (`lock_timeout`, `statement_timeout`) are set in each transaction and end with it. Raises `InvalidSetting` for an
    unknown parameter in the URL, or an invalid value.
    """
    import sqlalchemy as sa  # noqa: PLC0415  (an extra)

    given = _given(url)
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg", query={n: v for n, v in url.query.items() if n in ("host", "port")}),
        connect_args={_PREPARE: None, **defaults, **given, **fixed},
        pool_pre_ping=True,
        use_native_hstore=False,  # Saves a query about a type that the ledger does not use.
        **options,
    )
    limits = "SELECT " + ", ".join(f"set_config('{name}', '{s * 1000:g}ms', true)" for name, s in timeouts_s.items())

    def begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if driver.read_only is False:
            # SQLAlchemy leaves False after a read-only transaction. It would begin the next one READ WRITE, even if
            # the database's owner made the database read-only to save space.
            driver.read_only = None
        connection.exec_driver_sql(limits)

    sa.event.listen(engine, "begin", begin)
    if names := _OPTION.findall(str(given.get("options", ""))):
        sa.event.listen(engine, "connect", lambda connection, _: _check_options(connection, names))
    return engine


def _given(url: URL) -> dict[str, Any]:
    """Return the parameters in the URL's query, without hosts and ports, as psycopg accepts them."""
    try:
        from psycopg import conninfo, pq  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise InvalidSetting('a PostgreSQL ledger needs psycopg: pip install "daycap[ledger]"') from error
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    given: dict[str, Any] = {}
    for name, value in url.query.items():
        if name in ("host", "port"):
            continue
        # Psycopg accepts more names than libpq: `autocommit` would break every transaction.
        if name not in known and name != _PREPARE:
            raise InvalidSetting(f"DAYCAP_LEDGER_URL: PostgreSQL has no connection parameter {name}")
        if name in _REFUSED:
            raise InvalidSetting(f"DAYCAP_LEDGER_URL: {name} cannot be set; {_REFUSED[name]}")
        if not isinstance(value, str):
            raise InvalidSetting(f"DAYCAP_LEDGER_URL sets {name} more than once")
        given[name] = _typed(name, value)
    texts = {name: value for name, value in given.items() if isinstance(value, str) and name != "hostaddr"}
    tried = pq.PGconn.connect_start(conninfo.make_conninfo(**{**texts, "host": _NOWHERE}).encode())
    if _NOWHERE not in (message := tried.get_error_message()):
        raise InvalidSetting(f"DAYCAP_LEDGER_URL: {message.strip()}")
    return given


def _typed(name: str, value: str) -> str | int | None:
    if name == _PREPARE and value.lower() == "none":
        return None
    if name != _PREPARE and name not in _NUMBERS:
        return value
    if not (value.isascii() and value.isdigit() and len(value) < 8):
        unit = " of seconds" if name in _SECONDS else ""
        none = ", or none" if name == _PREPARE else ""
        raise InvalidSetting(f"DAYCAP_LEDGER_URL: {name} must be a whole number{unit}{none}, not {value!r:.40}")
    return int(value)


def _check_options(connection: Any, names: list[str]) -> None:
    """Reject a pooler that drops the URL's options: without its search_path a worker might use another ledger."""
    from sqlalchemy.exc import InvalidRequestError  # noqa: PLC0415  (an extra)

    statement = "SELECT name FROM pg_catalog.pg_settings WHERE source = 'client'"
    found = {row[0].lower() for row in connection.execute(statement)}
    connection.rollback()
    if lost := [name for name in names if name.lower().replace("-", "_") not in found]:
        raise InvalidRequestError(
            f"the options of DAYCAP_LEDGER_URL did not reach PostgreSQL ({', '.join(lost)}): a pooler dropped them; "
            "set them for the role instead: ALTER ROLE ... SET ..."
        )


def reason(error: BaseException) -> str:
    """Return the database's own message, without the statement and its parameters."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
