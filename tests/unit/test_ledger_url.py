"""What the URL of a PostgreSQL ledger may set, for the worker and for a runner; nothing connects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from daycap.errors import InvalidSetting
from daycap.ledger.engine import Ledger
from daycap.ledger.reader import LedgerReader

Face = Callable[[str], Any]


@pytest.fixture(params=[Ledger, LedgerReader])
def face(request: pytest.FixtureRequest) -> Face:
    made: Face = request.param
    return made


def connects_with(opened: Any) -> dict[str, Any]:
    """The arguments that psycopg would get."""
    engine: sa.Engine = opened.engine if isinstance(opened, Ledger) else opened._engine
    found: dict[str, Any] = {}

    @sa.event.listens_for(engine, "do_connect")
    def _(_dialect: object, _record: object, _args: object, params: dict[str, Any]) -> None:
        found.update(params)
        raise ConnectionError("seen enough")

    with pytest.raises(ConnectionError, match="seen enough"):
        engine.connect()
    return found


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("autocommit=true", "no connection parameter autocommit"),
        ("row_factory=x", "no connection parameter row_factory"),
        ("sslmod=require", "no connection parameter sslmod"),
        ("plugin=x", "no connection parameter plugin"),
        ("prepare_threshold=often", "prepare_threshold must be a whole number, or none, not 'often'"),
        ("prepare_threshold=-1", "prepare_threshold must be a whole number"),
        ("connect_timeout=5s", "connect_timeout must be a whole number of seconds, not '5s'"),
        ("keepalives=yes", "keepalives must be a whole number"),
        ("connect_timeout=1&connect_timeout=2", "connect_timeout more than once"),
        ("sslmode=on", 'invalid sslmode value: "on"'),
        ("target_session_attrs=master", "invalid target_session_attrs value"),
        ("sslrootcert=system&sslmode=require", "weak sslmode"),
        ("service=nowhere", "service"),
        ("replication=database", "replication cannot be set"),
        ("client_encoding=latin1", "client_encoding cannot be set; it is always UTF8"),
    ],
)
def test_a_wrong_parameter_is_refused(face: Face, query: str, said: str) -> None:
    with pytest.raises(InvalidSetting, match=said) as refused:
        face(f"postgresql://daycap:hunter2@127.0.0.1/daycap?{query}")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p%40@h:6432/d", {"host": "h", "port": 6432, "user": "u", "password": "p@", "dbname": "d"}),
        ("postgres://u@h/d", {"host": "h", "prepare_threshold": None}),
        ("postgresql+asyncpg://u@h/d", {"host": "h", "prepare_threshold": None}),
        ("postgresql://u@h/d?prepare_threshold=7", {"prepare_threshold": 7}),
        ("postgresql://u@h/d?prepare_threshold=none", {"prepare_threshold": None}),
        ("postgresql:///d?host=/run/pg", {"host": "/run/pg", "dbname": "d"}),
        ("postgresql://u@/d?host=a:1&host=b:2", {"host": "a,b", "port": "1,2"}),
        ("postgresql://u@/d?host=a,b&port=1,2", {"host": "a,b", "port": "1,2"}),
        (
            "postgresql://u@h/d?sslmode=verify-full&sslrootcert=/ca.pem&target_session_attrs=read-write",
            {"sslmode": "verify-full", "sslrootcert": "/ca.pem", "target_session_attrs": "read-write"},
        ),
        ("postgresql://u@h/d?options=-csearch_path%3Dbilling", {"options": "-csearch_path=billing"}),
        ("postgresql://u@h/d?application_name=mine", {"application_name": "mine"}),
    ],
)
def test_a_url_says_how_to_connect(face: Face, url: str, expected: dict[str, Any]) -> None:
    given = connects_with(face(url))

    assert {name: given.get(name) for name in expected} == expected
    assert "options" in expected or "options" not in given


def test_a_runner_keeps_its_own_limits() -> None:
    url = "postgresql://u@h/d?connect_timeout=60&tcp_user_timeout=90000"

    assert [connects_with(Ledger(url))[name] for name in ("connect_timeout", "tcp_user_timeout")] == [60, 90_000]
    assert [connects_with(LedgerReader(url))[name] for name in ("connect_timeout", "tcp_user_timeout")] == [2, 2_000]


def test_a_url_that_cannot_be_read_is_refused(face: Face) -> None:
    for url in ("postgresql://u@a:1,b:2/d", "postgresql", "mysql://u@h/d"):
        with pytest.raises(InvalidSetting, match="DAYCAP_LEDGER_URL"):
            face(url)
