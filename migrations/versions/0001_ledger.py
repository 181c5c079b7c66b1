"""The ledger's first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "agent_accounts",
        sa.Column("agent_account_id", sa.Text(), nullable=False),
        sa.Column("daily_cap_micros", NUMBER, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.Column("updated_at", NUMBER, nullable=False),
        sa.CheckConstraint("status IN ('active', 'paused')", name="status"),
        sa.CheckConstraint("daily_cap_micros BETWEEN 0 AND 9007199254740991", name="daily_cap_micros"),
        sa.CheckConstraint("length(agent_account_id) BETWEEN 1 AND 128", name="agent_account_id"),
        sa.PrimaryKeyConstraint("agent_account_id", name="pk_agent_accounts"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "dead_letters",
        sa.Column("dead_letter_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("first_seen_at", NUMBER, nullable=False),
        sa.Column("last_seen_at", NUMBER, nullable=False),
        sa.Column("times", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("dead_letter_id", name="pk_dead_letters"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_dead_letters_last_seen_at", "dead_letters", ["last_seen_at"])
    op.create_table(
        "cap_changes",
        sa.Column("cap_change_id", NUMBER, nullable=False),
        sa.Column("agent_account_id", sa.Text(), nullable=False),
        sa.Column("old_cap_micros", NUMBER, nullable=True),
        sa.Column("new_cap_micros", NUMBER, nullable=False),
        sa.Column("old_status", sa.Text(), nullable=True),
        sa.Column("new_status", sa.Text(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("changed_at", NUMBER, nullable=False),
        sa.CheckConstraint("new_cap_micros BETWEEN 0 AND 9007199254740991", name="new_cap_micros"),
        sa.CheckConstraint("old_cap_micros BETWEEN 0 AND 9007199254740991", name="old_cap_micros"),
        sa.ForeignKeyConstraint(
            ["agent_account_id"], ["agent_accounts.agent_account_id"], name="fk_cap_changes_agent_accounts"
        ),
        sa.PrimaryKeyConstraint("cap_change_id", name="pk_cap_changes"),
        sqlite_strict=True,
    )
    op.create_index("ix_cap_changes_agent_account_id", "cap_changes", ["agent_account_id"])
    op.create_table(
        "daily_agent_spending",
        sa.Column("agent_account_id", sa.Text(), nullable=False),
        sa.Column("spending_date", sa.Text(), nullable=False),
        sa.Column("cap_micros", NUMBER, nullable=False),
        sa.Column("spent_micros", NUMBER, nullable=False),
        sa.Column("uncovered_micros", NUMBER, nullable=False),
        sa.Column("settled_count", NUMBER, nullable=False),
        sa.Column("seq", NUMBER, nullable=False),
        sa.Column("updated_at", NUMBER, nullable=False),
        sa.CheckConstraint("cap_micros BETWEEN 0 AND 9007199254740991", name="cap_micros"),
        sa.CheckConstraint("length(spending_date) = 10", name="spending_date"),
        sa.CheckConstraint("spent_micros BETWEEN 0 AND 9007199254740991", name="spent_micros"),
        sa.CheckConstraint("uncovered_micros BETWEEN 0 AND 9007199254740991", name="uncovered_micros"),
        sa.ForeignKeyConstraint(
            ["agent_account_id"], ["agent_accounts.agent_account_id"], name="fk_daily_agent_spending_agent_accounts"
        ),
        sa.PrimaryKeyConstraint("agent_account_id", "spending_date", name="pk_daily_agent_spending"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_daily_agent_spending_spending_date_agent_account_id",
        "daily_agent_spending",
        ["spending_date", "agent_account_id"],
    )
    op.create_table(
        "lease_totals",
        sa.Column("lease_id", sa.Text(), nullable=False),
        sa.Column("agent_account_id", sa.Text(), nullable=False),
        sa.Column("spending_date", sa.Text(), nullable=False),
        sa.Column("drawn_micros", NUMBER, nullable=False),
        sa.Column("events", NUMBER, nullable=False),
        sa.Column("last_event", NUMBER, nullable=False),
        sa.CheckConstraint("drawn_micros BETWEEN 0 AND 9007199254740991", name="drawn_micros"),
        sa.ForeignKeyConstraint(
            ["agent_account_id", "spending_date"],
            ["daily_agent_spending.agent_account_id", "daily_agent_spending.spending_date"],
            name="fk_lease_totals_daily_agent_spending",
        ),
        sa.PrimaryKeyConstraint("lease_id", name="pk_lease_totals"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_lease_totals_spending_date_agent_account_id", "lease_totals", ["spending_date", "agent_account_id"]
    )
    op.create_table(
        "settlements",
        sa.Column("reservation_id", sa.Text(), nullable=False),
        sa.Column("agent_account_id", sa.Text(), nullable=False),
        sa.Column("spending_date", sa.Text(), nullable=False),
        sa.Column("lease_id", sa.Text(), nullable=False),
        sa.Column("held_micros", NUMBER, nullable=False),
        sa.Column("actual_micros", NUMBER, nullable=False),
        sa.Column("charged_micros", NUMBER, nullable=False),
        sa.Column("settled_at", NUMBER, nullable=False),
        sa.CheckConstraint("actual_micros BETWEEN 0 AND 9007199254740991", name="actual_micros"),
        sa.CheckConstraint("charged_micros <= actual_micros", name="charged"),
        sa.CheckConstraint("charged_micros BETWEEN 0 AND 9007199254740991", name="charged_micros"),
        sa.CheckConstraint("held_micros BETWEEN 0 AND 9007199254740991", name="held_micros"),
        sa.ForeignKeyConstraint(
            ["agent_account_id", "spending_date"],
            ["daily_agent_spending.agent_account_id", "daily_agent_spending.spending_date"],
            name="fk_settlements_daily_agent_spending",
        ),
        sa.PrimaryKeyConstraint("reservation_id", name="pk_settlements"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_settlements_spending_date_agent_account_id", "settlements", ["spending_date", "agent_account_id"]
    )


def downgrade() -> None:
    op.drop_table("settlements")
    op.drop_table("lease_totals")
    op.drop_table("daily_agent_spending")
    op.drop_table("cap_changes")
    op.drop_table("dead_letters")
    op.drop_table("agent_accounts")
