"""Budgets besides the agents' daily caps: groups, plans, periods and their leases, and what each event counted in."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005_since_0003"
down_revision = "0004_since_0003"
branch_labels = None
depends_on = None

_MAX_MICROS = 2**53 - 1
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    number = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(f"ALTER TABLE agent_accounts ADD COLUMN plan_id {number} NOT NULL DEFAULT 0")
    op.execute(f"ALTER TABLE settlements ADD COLUMN context_id {number}")
    _create(
        "groups",
        _text("group_id"),
        _count("created_at"),
        sa.Column("removed_at", _NUMBER),
        _length("groups", "group_id", 1, 128),
    )
    _create(
        "group_members",
        _text("group_id"),
        _text("member_kind"),
        _text("member_id"),
        _check("group_members", "member_kind", "member_kind IN ('agent', 'group')"),
        _refers("group_members", ["group_id"], "groups"),
        key=["group_id", "member_kind", "member_id"],
    )
    _index("group_members", "member_id", "member_kind")
    _create(
        "budgets",
        _text("budget_id"),
        _text("name"),
        _text("agent_account_id", nullable=True),
        _text("group_id", nullable=True),
        _text("labels"),
        _text("period"),
        _text("mode"),
        *_micros("budgets", "cap_micros"),
        *_micros("budgets", "carry_over_micros"),
        _count("created_at"),
        _count("updated_at"),
        sa.Column("removed_at", _NUMBER),
        _length("budgets", "budget_id", 3, 160),
        _check("budgets", "scope", "agent_account_id IS NULL OR group_id IS NULL"),
        _check("budgets", "mode", "mode IN ('enforce', 'watch')"),
        _refers("budgets", ["agent_account_id"], "agent_accounts"),
        _refers("budgets", ["group_id"], "groups"),
    )
    for column in ("name", "agent_account_id", "group_id"):
        _index("budgets", column)
    ahead = sa.text(
        "removed_at IS NULL AND mode = 'enforce' AND (agent_account_id IS NOT NULL OR group_id IS NOT NULL)"
    )
    _index("budgets", "period", "budget_id", sqlite_where=ahead, postgresql_where=ahead)
    _create(
        "budget_changes",
        _count("budget_change_id"),
        _text("kind"),
        _text("name"),
        _text("old", nullable=True),
        _text("new", nullable=True),
        _text("reason", nullable=True),
        _text("changed_by"),
        _count("changed_at"),
        _check("budget_changes", "kind", "kind IN ('budget', 'group')"),
        numbered=True,
    )
    _index("budget_changes", "name")
    _create("plans", _count("plan_id"), _text("digest"), _text("rules"), numbered=True)
    _index("plans", "digest", unique=True)
    _create(
        "budget_periods",
        _text("budget_id"),
        _text("period_id"),
        _count("start_ms"),
        _count("end_ms"),
        *_micros("budget_periods", "cap_micros"),
        *_micros("budget_periods", "spent_micros"),
        *_micros("budget_periods", "uncovered_micros"),
        _count("settled_count"),
        _count("seq"),
        _count("updated_at"),
        *_micros("budget_periods", "drawn_micros"),
        _length("budget_periods", "period_id", 1, 32),
        _refers("budget_periods", ["budget_id"], "budgets"),
        key=["budget_id", "period_id"],
    )
    _index("budget_periods", "end_ms", "budget_id", "period_id")
    _create(
        "budget_leases",
        _text("lease_id"),
        _text("budget_id"),
        _text("period_id"),
        *_micros("budget_leases", "drawn_micros"),
        _count("changed_seq"),
        _count("folded"),
        _count("end_ms"),
        _refers("budget_leases", ["budget_id", "period_id"], "budget_periods"),
    )
    _index("budget_leases", "end_ms")
    _index("budget_leases", "budget_id", "period_id", "changed_seq")
    _create(
        "contexts",
        _count("context_id"),
        _text("digest"),
        _text("budgets"),
        _text("labels"),
        _text("last_date"),
        numbered=True,
    )
    _index("contexts", "digest", unique=True)
    _index("contexts", "last_date")
    _create(
        "shortfalls",
        _text("reservation_id"),
        _text("budget_id"),
        _text("period_id"),
        *_micros("shortfalls", "uncovered_micros"),
        _text("spending_date"),
        _refers("shortfalls", ["budget_id", "period_id"], "budget_periods"),
        key=["reservation_id", "budget_id", "period_id"],
    )
    _index("shortfalls", "budget_id", "period_id")
    _index("shortfalls", "spending_date")
    _create(
        "cap_raises",
        _count("cap_raise_id"),
        _text("kind"),
        _text("owner"),
        _text("period_id"),
        *_micros("cap_raises", "amount_micros"),
        *_micros("cap_raises", "cap_micros"),
        sa.Column("until_ms", _NUMBER),
        _text("reason", nullable=True),
        _text("raised_by"),
        _count("raised_at"),
        _text("ended_by", nullable=True),
        sa.Column("ended_at", _NUMBER),
        _check("cap_raises", "kind", "kind IN ('raise', 'reset', 'carry')"),
        numbered=True,
    )
    _index("cap_raises", "owner", "period_id")
    to_end = sa.text("ended_at IS NULL AND until_ms IS NOT NULL")
    _index("cap_raises", "until_ms", sqlite_where=to_end, postgresql_where=to_end)


def downgrade() -> None:
    for table in (
        "cap_raises",
        "shortfalls",
        "contexts",
        "budget_leases",
        "budget_periods",
        "plans",
        "budget_changes",
        "budgets",
        "group_members",
        "groups",
    ):
        op.drop_table(table)
    op.drop_column("settlements", "context_id")
    op.drop_column("agent_accounts", "plan_id")


def _create(table: str, *items: sa.schema.SchemaItem, key: list[str] | None = None, numbered: bool = False) -> None:
    """Create a table. Its primary key is `key`, by default the first column: a sequence number, if `numbered`."""
    first = next(item.name for item in items if isinstance(item, sa.Column))
    op.create_table(
        table,
        *items,
        sa.PrimaryKeyConstraint(*(key or [first]), name=f"pk_{table}"),
        sqlite_strict=True,
        **({} if numbered else {"sqlite_with_rowid": False}),
    )


def _index(table: str, *columns: str, **options: Any) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns), **options)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, nullable=False)


def _micros(table: str, name: str) -> list[sa.schema.SchemaItem]:
    return [_count(name), _check(table, name, f"{name} BETWEEN 0 AND {_MAX_MICROS}")]


def _check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def _length(table: str, name: str, least: int, most: int) -> sa.CheckConstraint:
    return _check(table, name, f"length({name}) BETWEEN {least} AND {most}")


def _refers(table: str, columns: list[str], to: str) -> sa.ForeignKeyConstraint:
    keys = {"groups": ["group_id"], "agent_accounts": ["agent_account_id"], "budgets": ["budget_id"]}
    keys["budget_periods"] = ["budget_id", "period_id"]
    names = [f"{to}.{key}" for key in keys[to]]
    return sa.ForeignKeyConstraint(columns, names, name=f"fk_{table}_{to}")
