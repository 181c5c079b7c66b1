"""Generate a settlement's lease_id from its reservation_id, which starts with it. On SQLite it now takes no space."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_LEASE = "substr(rtrim(reservation_id, '0123456789'), 1, length(rtrim(reservation_id, '0123456789')) - 1)"
_COLUMNS = "reservation_id, agent_account_id, spending_date, held_micros, actual_micros, charged_micros, settled_at"
_INDEX = "ix_settlements_spending_date_agent_account_id"


def upgrade() -> None:
    _change(f"lease_id TEXT NOT NULL GENERATED ALWAYS AS ({_LEASE})", _COLUMNS, _COLUMNS)


def downgrade() -> None:
    _change("lease_id TEXT NOT NULL", f"{_COLUMNS}, lease_id", f"{_COLUMNS}, {_LEASE}")


def _change(lease: str, columns: str, values: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        stored = " STORED" if "GENERATED" in lease else ""
        op.execute("ALTER TABLE settlements DROP COLUMN lease_id")
        if stored:
            op.execute(f"ALTER TABLE settlements ADD COLUMN {lease}{stored}")
        else:
            op.execute("ALTER TABLE settlements ADD COLUMN lease_id TEXT")
            op.execute(f"UPDATE settlements SET lease_id = {_LEASE}")  # noqa: S608
            op.execute("ALTER TABLE settlements ALTER COLUMN lease_id SET NOT NULL")
        return
    # SQLite cannot change a column to a generated one, so recreate the table. No foreign key refers to it.
    op.execute("ALTER TABLE settlements RENAME TO old_settlements")
    op.execute(f"DROP INDEX {_INDEX}")
    op.execute(
        "CREATE TABLE settlements ("
        " reservation_id TEXT NOT NULL,"
        " agent_account_id TEXT NOT NULL,"
        " spending_date TEXT NOT NULL,"
        f" {lease},"
        " held_micros INTEGER NOT NULL,"
        " actual_micros INTEGER NOT NULL,"
        " charged_micros INTEGER NOT NULL,"
        " settled_at INTEGER NOT NULL,"
        " CONSTRAINT ck_settlements_actual_micros CHECK (actual_micros BETWEEN 0 AND 9007199254740991),"
        " CONSTRAINT ck_settlements_charged CHECK (charged_micros <= actual_micros),"
        " CONSTRAINT ck_settlements_charged_micros CHECK (charged_micros BETWEEN 0 AND 9007199254740991),"
        " CONSTRAINT ck_settlements_held_micros CHECK (held_micros BETWEEN 0 AND 9007199254740991),"
        " CONSTRAINT fk_settlements_daily_agent_spending FOREIGN KEY (agent_account_id, spending_date)"
        " REFERENCES daily_agent_spending (agent_account_id, spending_date),"
        " CONSTRAINT pk_settlements PRIMARY KEY (reservation_id)"
        ") WITHOUT ROWID, STRICT"
    )
    op.execute(f"INSERT INTO settlements ({columns}) SELECT {values} FROM old_settlements")  # noqa: S608
    op.execute("DROP TABLE old_settlements")
    op.execute(f"CREATE INDEX {_INDEX} ON settlements (spending_date, agent_account_id)")
