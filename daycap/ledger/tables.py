"""The ledger's tables. Amounts are micros, days are text `YYYY-MM-DD`, times are UTC milliseconds since 1970.

`migrations/` creates them; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from daycap.money import MAX_MICROS
from daycap.protocol.counter import ACTIVE, PAUSED
from daycap.protocol.plan import is_budget

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_STRICT: dict[str, Any] = {"sqlite_strict": True}
_CLUSTERED: dict[str, Any] = {**_STRICT, "sqlite_with_rowid": False}
"""Store the rows in the primary key's tree: for keys that are not sequential numbers."""


def _micros(name: str, *, nullable: bool = False) -> list[sa.schema.SchemaItem]:
    """Return a money column and the check that keeps its amounts exact."""
    return [
        sa.Column(name, Number, nullable=nullable),
        sa.CheckConstraint(f"{name} BETWEEN 0 AND {MAX_MICROS}", name=name),
    ]


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, Number, nullable=False)


agent_accounts = sa.Table(
    "agent_accounts",
    metadata,
    sa.Column("agent_account_id", sa.Text, primary_key=True),
    *_micros("daily_cap_micros"),
    sa.Column("status", sa.Text, nullable=False),
    _count("created_at"),
    _count("updated_at"),
    sa.Column("identity_anchor", sa.Text),
    sa.Column("plan_id", Number, nullable=False, default=0),
    sa.Index(None, "identity_anchor", unique=True),
    sa.CheckConstraint("length(identity_anchor) BETWEEN 1 AND 256", name="identity_anchor"),
    sa.CheckConstraint("length(agent_account_id) BETWEEN 1 AND 128", name="agent_account_id"),
    sa.CheckConstraint(f"status IN ('{ACTIVE}', '{PAUSED}')", name="status"),
    **_CLUSTERED,
)

"""`plan_id`: the plan in force, a row of `plans`; 0 if no budget applies to the agent but its own daily cap."""

cap_changes = sa.Table(
    "cap_changes",
    metadata,
    sa.Column("cap_change_id", Number, primary_key=True),
    sa.Column("agent_account_id", sa.Text, sa.ForeignKey("agent_accounts.agent_account_id"), nullable=False),
    *_micros("old_cap_micros", nullable=True),
    *_micros("new_cap_micros"),
    sa.Column("old_status", sa.Text),
    sa.Column("new_status", sa.Text, nullable=False),
    sa.Column("changed_by", sa.Text, nullable=False),
    _count("changed_at"),
    sa.Index(None, "agent_account_id"),
    **_STRICT,
)
"""Append-only: all changes of caps and statuses, who made them and when. The first row has no old values."""

identity_anchors = sa.Table(
    "identity_anchors",
    metadata,
    sa.Column("identity_anchor", sa.Text, primary_key=True),
    sa.Column("agent_account_id", sa.Text, sa.ForeignKey("agent_accounts.agent_account_id"), nullable=False),
    sa.CheckConstraint("length(identity_anchor) BETWEEN 1 AND 256", name="identity_anchor"),
    **_CLUSTERED,
)
"""Append-only: the owner of each anchor ever used. The key ensures that no other agent ever gets it."""

anchor_changes = sa.Table(
    "anchor_changes",
    metadata,
    sa.Column("anchor_change_id", Number, primary_key=True),
    sa.Column("agent_account_id", sa.Text, sa.ForeignKey("agent_accounts.agent_account_id"), nullable=False),
    sa.Column("old_anchor", sa.Text),
    sa.Column("new_anchor", sa.Text, nullable=False),
    sa.Column("changed_by", sa.Text, nullable=False),
    _count("changed_at"),
    sa.Index(None, "agent_account_id"),
    **_STRICT,
)
"""Append-only: all changes of identity anchors, who made them and when. The first row has no old anchor."""

daily_agent_spending = sa.Table(
    "daily_agent_spending",
    metadata,
    sa.Column("agent_account_id", sa.Text, sa.ForeignKey("agent_accounts.agent_account_id"), primary_key=True),
    sa.Column("spending_date", sa.Text, primary_key=True),
    *_micros("cap_micros"),
    *_micros("spent_micros"),
    *_micros("uncovered_micros"),
    _count("settled_count"),
    _count("seq"),
    _count("updated_at"),
    *_micros("drawn_micros"),
    _count("drawn_seq"),
    sa.CheckConstraint("length(spending_date) = 10", name="spending_date"),
    sa.Index(None, "spending_date", "agent_account_id"),
    **_CLUSTERED,
)

_DAY_KEY = ["daily_agent_spending.agent_account_id", "daily_agent_spending.spending_date"]

lease_totals = sa.Table(
    "lease_totals",
    metadata,
    sa.Column("lease_id", sa.Text, primary_key=True),
    sa.Column("agent_account_id", sa.Text, nullable=False),
    sa.Column("spending_date", sa.Text, nullable=False),
    *_micros("drawn_micros"),
    _count("events"),
    _count("last_event"),
    _count("changed_seq"),
    _count("folded"),
    sa.ForeignKeyConstraint(["agent_account_id", "spending_date"], _DAY_KEY),
    sa.Index(None, "spending_date", "agent_account_id", "changed_seq"),
    **_CLUSTERED,
)
"""`changed_seq`: the day's seq when the row last changed. `folded`: 1 if the counter has it only in its sum, else 0."""

drawn_micros: sa.ColumnElement[int] = sa.case(
    (daily_agent_spending.c.drawn_seq == daily_agent_spending.c.seq, daily_agent_spending.c.drawn_micros),
    else_=sa.select(sa.cast(sa.func.coalesce(sa.func.sum(lease_totals.c.drawn_micros), 0), Number))
    .where(
        lease_totals.c.agent_account_id == daily_agent_spending.c.agent_account_id,
        lease_totals.c.spending_date == daily_agent_spending.c.spending_date,
    )
    .correlate(daily_agent_spending)
    .scalar_subquery(),
).label("drawn_micros")
"""What all leases of a day have drawn. A release that does not know the column leaves it behind the row's seq."""


def with_seq(seq: Any) -> dict[str, Any]:
    """Return the values of an UPDATE that raises a day's seq to `seq`."""
    days = daily_agent_spending.c
    return {"seq": seq, "drawn_seq": sa.case((days.drawn_seq == days.seq, seq), else_=days.drawn_seq)}


def owners_by_period(periods: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group (owner, period) by period. Periods and owners are sorted: all workers take locks in this order."""
    owners_of: dict[str, list[str]] = {}
    for period, owner in sorted({(period, owner) for owner, period in periods}):
        owners_of.setdefault(period, []).append(owner)
    return owners_of


@dataclass(frozen=True, eq=False)
class Books:
    """The tables of one kind of owner, agents or budgets: a row for each of its periods, and the leases of those."""

    rows: sa.Table
    leases: sa.Table
    owner: str
    """The column of both tables that names the owner."""
    period: str
    """The column of both tables that names the period: an agent's day, or a budget's period."""
    drawn: sa.ColumnElement[int]
    """What all leases of a row's period have drawn."""

    def these(self, table: sa.Table, periods: Iterable[tuple[str, str]]) -> sa.ColumnElement[bool]:
        """Return the condition that a row of `table` belongs to one of these (owner, period).

        It names each period with its owners: SQLite would read the whole table for a list of pairs.
        """
        return sa.or_(
            sa.false(),
            *(
                sa.and_(table.c[self.period] == period, table.c[self.owner].in_(owners))
                for period, owners in owners_by_period(periods).items()
            ),
        )

    def with_seq(self, seq: Any) -> dict[str, Any]:
        """Return the values of an UPDATE that raises a row's seq to `seq`."""
        return with_seq(seq) if self.rows is daily_agent_spending else {"seq": seq}


AGENTS = Books(daily_agent_spending, lease_totals, "agent_account_id", "spending_date", drawn_micros)


def books_of(owner: str) -> Books:
    """Return the tables that the owner, an agent or a budget, is in."""
    return BUDGETS if is_budget(owner) else AGENTS


_LEASE = "substr(rtrim(reservation_id, '0123456789'), 1, length(rtrim(reservation_id, '0123456789')) - 1)"
"""The lease's id, extracted from the reservation's, which is the lease's id, a hyphen and a number."""

settlements = sa.Table(
    "settlements",
    metadata,
    sa.Column("reservation_id", sa.Text, primary_key=True),
    sa.Column("agent_account_id", sa.Text, nullable=False),
    sa.Column("spending_date", sa.Text, nullable=False),
    sa.Column("lease_id", sa.Text, sa.Computed(_LEASE), nullable=False),
    *_micros("held_micros"),
    *_micros("actual_micros"),
    *_micros("charged_micros"),
    _count("settled_at"),
    sa.Column("context_id", Number),
    sa.CheckConstraint("charged_micros <= actual_micros", name="charged"),
    sa.ForeignKeyConstraint(["agent_account_id", "spending_date"], _DAY_KEY),
    sa.Index(None, "spending_date", "agent_account_id"),
    **_CLUSTERED,
)
"""Append-only: all charged events. `context_id`: a row of `contexts`; NULL if only the agent's day was charged."""

groups = sa.Table(
    "groups",
    metadata,
    sa.Column("group_id", sa.Text, primary_key=True),
    _count("created_at"),
    sa.Column("removed_at", Number),
    sa.CheckConstraint("length(group_id) BETWEEN 1 AND 128", name="group_id"),
    **_CLUSTERED,
)
"""A removed group stays: removed budgets refer to it. It is there again when it is added again."""

group_members = sa.Table(
    "group_members",
    metadata,
    sa.Column("group_id", sa.Text, sa.ForeignKey("groups.group_id"), primary_key=True),
    sa.Column("member_kind", sa.Text, primary_key=True),
    sa.Column("member_id", sa.Text, primary_key=True),
    sa.CheckConstraint("member_kind IN ('agent', 'group')", name="member_kind"),
    sa.Index(None, "member_id", "member_kind"),
    **_CLUSTERED,
)
"""The agents and groups that belong to each group."""

OPENED_AHEAD = "removed_at IS NULL AND mode = 'enforce' AND (agent_account_id IS NOT NULL OR group_id IS NOT NULL)"
"""The condition of budgets whose periods are opened ahead: not runs, of which there are many and each has its own."""

budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("budget_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("agent_account_id", sa.Text, sa.ForeignKey("agent_accounts.agent_account_id")),
    sa.Column("group_id", sa.Text, sa.ForeignKey("groups.group_id")),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("period", sa.Text, nullable=False),
    sa.Column("mode", sa.Text, nullable=False),
    *_micros("cap_micros"),
    sa.Column("carry_over_micros", Number, nullable=False, default=0),
    sa.CheckConstraint(f"carry_over_micros BETWEEN 0 AND {MAX_MICROS}", name="carry_over_micros"),
    _count("created_at"),
    _count("updated_at"),
    sa.Column("removed_at", Number),
    sa.CheckConstraint("length(budget_id) BETWEEN 3 AND 160", name="budget_id"),
    sa.CheckConstraint("agent_account_id IS NULL OR group_id IS NULL", name="scope"),
    sa.CheckConstraint("mode IN ('enforce', 'watch')", name="mode"),
    sa.Index(None, "name"),
    sa.Index(None, "agent_account_id"),
    sa.Index(None, "group_id"),
    sa.Index(
        None,
        "period",
        "budget_id",
        sqlite_where=sa.text(OPENED_AHEAD),
        postgresql_where=sa.text(OPENED_AHEAD),
    ),
    **_CLUSTERED,
)
"""Caps besides each agent's own. A run belongs to no agent or group.

The id is `<name>/<n>`: what a change of name, scope or period makes is a new row.

`labels` and `period` are JSON: what the calls in scope are narrowed to, and the rule of the periods.
"""

budget_changes = sa.Table(
    "budget_changes",
    metadata,
    sa.Column("budget_change_id", Number, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("old", sa.Text),
    sa.Column("new", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("changed_by", sa.Text, nullable=False),
    _count("changed_at"),
    sa.CheckConstraint("kind IN ('budget', 'group')", name="kind"),
    sa.Index(None, "name"),
    **_STRICT,
)
"""Append-only: all changes of budgets and groups, as JSON before and after, who made them, when and why."""

plans = sa.Table(
    "plans",
    metadata,
    sa.Column("plan_id", Number, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("rules", sa.Text, nullable=False),
    sa.Index(None, "digest", unique=True),
    **_STRICT,
)
"""Append-only: each set of budgets that ever applied to an agent, as `daycap.protocol.plan` writes it."""

budget_periods = sa.Table(
    "budget_periods",
    metadata,
    sa.Column("budget_id", sa.Text, sa.ForeignKey("budgets.budget_id"), primary_key=True),
    sa.Column("period_id", sa.Text, primary_key=True),
    _count("start_ms"),
    _count("end_ms"),
    *_micros("cap_micros"),
    *_micros("spent_micros"),
    *_micros("uncovered_micros"),
    _count("settled_count"),
    _count("seq"),
    _count("updated_at"),
    *_micros("drawn_micros"),
    sa.CheckConstraint("length(period_id) BETWEEN 1 AND 32", name="period_id"),
    sa.Index(None, "end_ms", "budget_id", "period_id"),
    **_CLUSTERED,
)
"""`end_ms`: at most a day after the budget was removed (`budget_rows.ENDS_AFTER_MS`), so that none stays for ever."""

_PERIOD_KEY = ["budget_periods.budget_id", "budget_periods.period_id"]

budget_leases = sa.Table(
    "budget_leases",
    metadata,
    sa.Column("lease_id", sa.Text, primary_key=True),
    sa.Column("budget_id", sa.Text, nullable=False),
    sa.Column("period_id", sa.Text, nullable=False),
    *_micros("drawn_micros"),
    _count("changed_seq"),
    _count("folded"),
    _count("end_ms"),
    sa.ForeignKeyConstraint(["budget_id", "period_id"], _PERIOD_KEY),
    sa.Index(None, "budget_id", "period_id", "changed_seq"),
    sa.Index(None, "end_ms"),
    **_CLUSTERED,
)
"""Like `lease_totals`. Events are counted on the lease of the agent's own day alone. `end_ms`: the period's."""

cap_raises = sa.Table(
    "cap_raises",
    metadata,
    sa.Column("cap_raise_id", Number, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("period_id", sa.Text, nullable=False),
    *_micros("amount_micros"),
    *_micros("cap_micros"),
    sa.Column("until_ms", Number),
    sa.Column("reason", sa.Text),
    sa.Column("raised_by", sa.Text, nullable=False),
    _count("raised_at"),
    sa.Column("ended_by", sa.Text),
    sa.Column("ended_at", Number),
    sa.CheckConstraint("kind IN ('raise', 'reset', 'carry')", name="kind"),
    sa.Index(None, "owner", "period_id"),
    sa.Index(
        None,
        "until_ms",
        sqlite_where=sa.text("ended_at IS NULL AND until_ms IS NOT NULL"),
        postgresql_where=sa.text("ended_at IS NULL AND until_ms IS NOT NULL"),
    ),
    **_STRICT,
)
"""What was added to the cap of one period; see `daycap.ledger.caps`. `owner`: an agent or a budget's id.

`cap_micros`: the period's cap right after. `until_ms`: NULL for as long as the period lasts.
"""

BUDGETS = Books(budget_periods, budget_leases, "budget_id", "period_id", budget_periods.c.drawn_micros)

contexts = sa.Table(
    "contexts",
    metadata,
    sa.Column("context_id", Number, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("budgets", sa.Text, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("last_date", sa.Text, nullable=False),
    sa.Index(None, "digest", unique=True),
    sa.Index(None, "last_date"),
    **_STRICT,
)
"""The budget periods that an event counted in, and its labels, as JSON. Events share them.

`last_date`: the last day of a settlement that has it, so that it is kept as long as its settlements.
"""

shortfalls = sa.Table(
    "shortfalls",
    metadata,
    sa.Column("reservation_id", sa.Text, primary_key=True),
    sa.Column("budget_id", sa.Text, primary_key=True),
    sa.Column("period_id", sa.Text, primary_key=True),
    *_micros("uncovered_micros"),
    sa.Column("spending_date", sa.Text, nullable=False),
    sa.ForeignKeyConstraint(["budget_id", "period_id"], _PERIOD_KEY),
    sa.Index(None, "budget_id", "period_id"),
    sa.Index(None, "spending_date"),
    **_CLUSTERED,
)
"""Append-only: how much of a settlement's cost a budget period had no room for. Without a row, all was charged.

`spending_date`: the settlement's, so that it is kept as long.
"""

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("dead_letter_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    _count("first_seen_at"),
    _count("last_seen_at"),
    _count("times"),
    sa.Index(None, "last_seen_at"),
    **_CLUSTERED,
)
"""Payloads that could not be settled, as they arrived, with the reason. The id is a digest of kind and payload."""

APPEND_ONLY = {table.name for table in (cap_changes, identity_anchors, anchor_changes, budget_changes, plans)}
"""Tables whose rows are never changed or deleted."""
