"""The migrations give the schema that the code works with, and can be undone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from daycap import LedgerUnavailable
from daycap.clock import day_of, wall_ms
from daycap.ledger import accounts
from daycap.ledger.audit import audit
from daycap.ledger.engine import Ledger, alembic_config, is_transient
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import open_days
from daycap.ledger.revisions import numbers
from daycap.ledger.settle import settle
from daycap.ledger.tables import metadata
from daycap.protocol.counter import LeaseTerms
from daycap.protocol.wire import FinalizeEvent
from daycap.settings import Settings
from tests.migrated import migrate
from tests.postgresql import LocalPostgreSQL

_ADD_ACCOUNT = (
    "INSERT INTO agent_accounts (agent_account_id, daily_cap_micros, status, created_at, updated_at)"
    " VALUES ('a', 100, 'active', 1, 1)"
)


def test_migrations_give_the_schema(ledger: Ledger) -> None:
    with ledger.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    ledger.check_tables()


def test_migrations_give_the_same_checks_and_keys(ledger: Ledger) -> None:
    # What Alembic does not compare: table by table, CHECKs, foreign keys and primary keys.
    found = sa.inspect(ledger.engine)
    for table in metadata.sorted_tables:
        assert {check["name"] for check in found.get_check_constraints(table.name)} == {
            constraint.name for constraint in table.constraints if isinstance(constraint, sa.CheckConstraint)
        }
        assert found.get_pk_constraint(table.name)["constrained_columns"] == [c.name for c in table.primary_key]
        assert {tuple(key["constrained_columns"]) for key in found.get_foreign_keys(table.name)} == {
            tuple(key.column_keys) for key in table.foreign_key_constraints
        }


def test_sqlite_tables_are_strict(ledger: Ledger) -> None:
    if ledger.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL is strict by itself")
    with ledger.reading() as connection:
        strict: dict[str, int] = dict(
            connection.exec_driver_sql("SELECT name, strict FROM pragma_table_list").fetchall()
        )
    assert {name: strict[name] for name in metadata.tables} == dict.fromkeys(metadata.tables, 1)


def test_migrations_can_be_undone(ledger: Ledger) -> None:
    migrate(ledger, "base")

    assert set(sa.inspect(ledger.engine).get_table_names()) <= {"alembic_version"}
    with pytest.raises(LedgerUnavailable, match="alembic upgrade head"):
        ledger.check_tables()
    migrate(ledger)
    ledger.check_tables()


def test_a_ledger_without_tables_says_what_to_do(empty: Ledger) -> None:
    with pytest.raises(LedgerUnavailable, match="alembic upgrade head"):
        empty.check_tables()


@pytest.mark.parametrize("amount", [-1, 2**53, "text"])
def test_the_ledger_itself_refuses_what_is_not_an_amount(ledger: Ledger, amount: object) -> None:
    statement = sa.text(_ADD_ACCOUNT.replace("100", ":amount"))
    with pytest.raises(sa.exc.DBAPIError), ledger.writing() as connection:
        connection.execute(statement, {"amount": amount})


@pytest.mark.parametrize("anchor", ["''", f"'{257 * 'a'}'"])
def test_the_ledger_itself_refuses_what_is_no_anchor(ledger: Ledger, anchor: str) -> None:
    with ledger.writing() as connection:
        connection.exec_driver_sql(_ADD_ACCOUNT)
    with pytest.raises(sa.exc.IntegrityError), ledger.writing() as connection:
        connection.exec_driver_sql(f"UPDATE agent_accounts SET identity_anchor = {anchor}")


def test_a_ledger_with_books_gets_anchors_and_loses_nothing(empty: Ledger) -> None:
    # Given a ledger of before, with an account that other rows refer to
    migrate(empty, "0001")
    with empty.writing() as connection:
        connection.exec_driver_sql(_ADD_ACCOUNT)
        connection.exec_driver_sql("INSERT INTO daily_agent_spending VALUES ('a', '2026-11-24', 100, 7, 0, 1, 1, 1)")

    migrate(empty)

    with empty.reading() as connection:
        assert connection.exec_driver_sql("SELECT * FROM agent_accounts").one() == ("a", 100, "active", 1, 1, None, 0)
        assert connection.exec_driver_sql("SELECT spent_micros FROM daily_agent_spending").scalar() == 7


@pytest.mark.parametrize("lease", ["x2.y3", "of-another-language-", "7"])
def test_a_settlements_lease_is_the_same_after_each_migration(empty: Ledger, lease: str) -> None:
    migrate(empty, "0002")
    with empty.writing() as connection:
        connection.exec_driver_sql(_ADD_ACCOUNT)
        connection.exec_driver_sql("INSERT INTO daily_agent_spending VALUES ('a', '2026-11-24', 100, 7, 0, 1, 1, 1)")
        row = f"('{lease}-40', 'a', '2026-11-24', '{lease}', 9, 7, 7, 1)"
        connection.exec_driver_sql(f"INSERT INTO settlements VALUES {row}")

    for revision in ("head", "0002", "head"):
        migrate(empty, revision)

        columns = "lease_id, agent_account_id, spending_date, held_micros, actual_micros, charged_micros, settled_at"
        with empty.reading() as connection:
            found = connection.exec_driver_sql(f"SELECT {columns} FROM settlements").one()
        assert found == (lease, "a", "2026-11-24", 9, 7, 7, 1), revision


def number(ahead: int) -> str:
    """The number of the newest migration, or of one that a later release adds."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    return f"{numbers(str(head))[0] + ahead:04}"


def set_revision(ledger: Ledger, revision: str) -> None:
    with ledger.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        (f"{number(-1)}", "alembic upgrade head"),
        (f"{number(1)}", "upgrade daycap on this host"),
        (f"{number(2)}_since_{number(1)}", "upgrade daycap on this host"),
        ("0f3e5a7c9b1d", "not a migration of daycap"),
    ],
)
def test_a_ledger_of_another_release_says_which_to_upgrade(ledger: Ledger, revision: str, said: str) -> None:
    set_revision(ledger, revision)

    with pytest.raises(LedgerUnavailable, match=said) as refused:
        ledger.check()
    assert ("alembic" in str(refused.value)) == ("alembic" in said)


def test_an_expanded_ledger_is_still_ours(ledger: Ledger) -> None:
    # Given a later release's migration that only adds, and says since when
    with ledger.writing() as connection:
        for change in (
            "ALTER TABLE settlements ADD COLUMN note TEXT",
            "ALTER TABLE daily_agent_spending ADD COLUMN held_micros BIGINT NOT NULL DEFAULT 0",
            "CREATE TABLE notes (note TEXT NOT NULL PRIMARY KEY)",
        ):
            connection.exec_driver_sql(change.replace("BIGINT", "INTEGER"))
    set_revision(ledger, f"{number(2)}_since_{number(0)}")

    ledger.check()
    nowhere = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))
    accounts.add(ledger, nowhere, {"agent": 100}, "test")
    now_ms = wall_ms()
    event = FinalizeEvent("a" * 32, 1, 1, "agent", day_of(now_ms), 10, 10, 1)
    for settled in (1, 0):
        assert settle(ledger, [event.to_wire()], open_days(Settings(), now_ms)).settled == settled
    assert audit(ledger, nowhere, Settings(), day_of(now_ms)).differences == []


def test_each_migration_says_for_which_releases_it_is() -> None:
    for script in ScriptDirectory.from_config(alembic_config()).walk_revisions():
        own, since = numbers(script.revision)
        assert since <= own
        assert own <= 3 or "_since_" in script.revision, f"name it {own:04}_since_NNNN: see docs/design.md, Upgrading"


@pytest.fixture
def postgresql_ledger(postgresql: LocalPostgreSQL) -> Iterator[Ledger]:
    ledger = Ledger(postgresql.new_database())
    migrate(ledger)
    yield ledger
    ledger.close()


def test_a_role_without_rights_is_told_which(postgresql_ledger: Ledger) -> None:
    with postgresql_ledger.writing() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS reader")
        connection.exec_driver_sql("CREATE ROLE reader LOGIN")
        connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    reader = Ledger(postgresql_ledger.engine.url.set(username="reader").render_as_string(hide_password=False))

    with pytest.raises(LedgerUnavailable, match=r"role reader may not write to .*; run: GRANT SELECT, INSERT"):
        reader.check()
    reader.close()
    with postgresql_ledger.writing() as connection:
        connection.exec_driver_sql("DROP OWNED BY reader")
        connection.exec_driver_sql("DROP ROLE reader")


def test_a_database_that_is_read_only_is_waited_for(postgresql_ledger: Ledger) -> None:
    # As providers make it when its disk is full.
    with postgresql_ledger.writing() as connection:
        name = connection.engine.url.database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    postgresql_ledger.close()

    postgresql_ledger.check_tables()
    with pytest.raises(sa.exc.InternalError, match="read-only transaction") as refused:
        postgresql_ledger.check()
    assert is_transient(refused.value)


def test_a_replica_is_refused() -> None:
    with tempfile.TemporaryDirectory(prefix="daycap-replica-", ignore_cleanup_errors=True) as directory:
        server = LocalPostgreSQL(Path(directory))
        ledger = Ledger(server.new_database())
        migrate(ledger)
        ledger.check()
        ledger.close()
        server.stop()
        (Path(directory) / "data" / "standby.signal").touch()
        server.start()

        with pytest.raises(LedgerUnavailable, match="replica"):
            ledger.check_tables()
        ledger.close()
        server.close()
