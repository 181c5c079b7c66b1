"""Agents' identity anchors: the current one, the owner of each anchor ever used, and all changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # SQL that both databases accept. Alembic would recreate SQLite's table, to which foreign keys refer.
    op.execute(
        "ALTER TABLE agent_accounts ADD COLUMN identity_anchor TEXT"
        " CONSTRAINT ck_agent_accounts_identity_anchor CHECK (length(identity_anchor) BETWEEN 1 AND 256)"
    )
    op.create_index("ix_agent_accounts_identity_anchor", "agent_accounts", ["identity_anchor"], unique=True)
    op.create_table(
        "identity_anchors",
        sa.Column("identity_anchor", sa.Text(), nullable=False),
        sa.Column("agent_account_id", sa.Text(), nullable=False),
        sa.CheckConstraint("length(identity_anchor) BETWEEN 1 AND 256", name="identity_anchor"),
        sa.ForeignKeyConstraint(
            ["agent_account_id"], ["agent_accounts.agent_account_id"], name="fk_identity_anchors_agent_accounts"
        ),
        sa.PrimaryKeyConstraint("identity_anchor", name="pk_identity_anchors"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "anchor_changes",
        sa.Column("anchor_change_id", NUMBER, nullable=False),
        sa.Column("agent_account_id", sa.Text(), nullable=False),
        sa.Column("old_anchor", sa.Text(), nullable=True),
        sa.Column("new_anchor", sa.Text(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("changed_at", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_account_id"], ["agent_accounts.agent_account_id"], name="fk_anchor_changes_agent_accounts"
        ),
        sa.PrimaryKeyConstraint("anchor_change_id", name="pk_anchor_changes"),
        sqlite_strict=True,
    )
    op.create_index("ix_anchor_changes_agent_account_id", "anchor_changes", ["agent_account_id"])


def downgrade() -> None:
    op.drop_table("anchor_changes")
    op.drop_table("identity_anchors")
    op.drop_index("ix_agent_accounts_identity_anchor", "agent_accounts")
    op.drop_column("agent_accounts", "identity_anchor")
