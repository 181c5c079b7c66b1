"""The migrations give the schema that the code works with, and can be undone."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from daycap import LedgerUnavailable
from tests.migrated import migrate
from worker.ledger import Ledger
from worker.schema import metadata

_ADD_ACCOUNT = (
    "INSERT INTO agent_accounts (agent_account_id, daily_cap_micros, status, created_at, updated_at)"
    " VALUES ('a', 100, 'active', 1, 1)"
)


def test_migrations_give_the_schema(ledger: Ledger) -> None:
    with ledger.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    ledger.check_head()


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
        strict = dict(connection.exec_driver_sql("SELECT name, strict FROM pragma_table_list").fetchall())
    assert {name: strict[name] for name in metadata.tables} == dict.fromkeys(metadata.tables, 1)


def test_migrations_can_be_undone(ledger: Ledger) -> None:
    migrate(ledger, "base")

    assert set(sa.inspect(ledger.engine).get_table_names()) <= {"alembic_version"}
    with pytest.raises(LedgerUnavailable, match="alembic upgrade head"):
        ledger.check_head()
    migrate(ledger)
    ledger.check_head()


def test_a_ledger_without_tables_says_what_to_do(empty: Ledger) -> None:
    with pytest.raises(LedgerUnavailable, match="alembic upgrade head"):
        empty.check_head()


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
        assert connection.exec_driver_sql("SELECT * FROM agent_accounts").one() == ("a", 100, "active", 1, 1, None)
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
