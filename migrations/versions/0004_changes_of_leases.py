"""What changed since a publish: each day's sum of what its leases drew, and the seq of each lease's last change.

A release that does not know these columns leaves their defaults: `drawn_seq` then differs from `seq`, and the sum is
computed from the leases.
"""

from __future__ import annotations

from alembic import op

revision = "0004_since_0003"
down_revision = "0003"
branch_labels = None
depends_on = None

_OLD_INDEX = "ix_lease_totals_spending_date_agent_account_id"
_INDEX = f"{_OLD_INDEX}_changed_seq"


def upgrade() -> None:
    # In words that both databases know: Alembic would have SQLite make the tables anew, from under their foreign keys.
    number = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(
        f"ALTER TABLE daily_agent_spending ADD COLUMN drawn_micros {number} NOT NULL DEFAULT 0"
        " CONSTRAINT ck_daily_agent_spending_drawn_micros CHECK (drawn_micros BETWEEN 0 AND 9007199254740991)"
    )
    op.execute(f"ALTER TABLE daily_agent_spending ADD COLUMN drawn_seq {number} NOT NULL DEFAULT 0")
    op.execute(f"ALTER TABLE lease_totals ADD COLUMN changed_seq {number} NOT NULL DEFAULT 0")
    op.execute(f"ALTER TABLE lease_totals ADD COLUMN folded {number} NOT NULL DEFAULT 0")
    op.drop_index(_OLD_INDEX, "lease_totals")
    op.create_index(_INDEX, "lease_totals", ["spending_date", "agent_account_id", "changed_seq"])


def downgrade() -> None:
    op.drop_index(_INDEX, "lease_totals")
    op.create_index(_OLD_INDEX, "lease_totals", ["spending_date", "agent_account_id"])
    op.drop_column("lease_totals", "folded")
    op.drop_column("lease_totals", "changed_seq")
    op.drop_column("daily_agent_spending", "drawn_seq")
    op.drop_column("daily_agent_spending", "drawn_micros")
