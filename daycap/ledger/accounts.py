"""Agents' accounts: add them, change caps and status, find them. Every change is recorded in `cap_changes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.errors import AgentExists, InvalidInput, UnknownAgent
from daycap.identity import identity_anchor
from daycap.ledger import caps
from daycap.ledger.anchors import record_anchor
from daycap.ledger.engine import Ledger, insert
from daycap.ledger.opening import open_days
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.snapshots import read_rows
from daycap.ledger.tables import AGENTS, agent_accounts, cap_changes, daily_agent_spending, with_seq
from daycap.money import micros
from daycap.protocol.counter import ACTIVE, KEPT_DAYS, PAUSED
from daycap.protocol.wire import agent_id

_MOST_AT_ONCE = 1000


class Account(NamedTuple):
    """An agent's account and its figures of today. Amounts are micros."""

    agent: str
    status: str
    daily_cap_micros: int
    day: str
    cap_micros: int
    spent_micros: int
    uncovered_micros: int
    settled_count: int
    identity_anchor: str | None


def add(
    ledger: Ledger,
    publisher: CounterPublisher,
    caps: Mapping[str, int],
    changed_by: str,
    anchors: Mapping[str, str] | None = None,
) -> int:
    """Add agents with their daily caps and optional identity anchors, and open today for them.

    Adds all or none. Raises `AgentExists`, `AnchorTaken`, `InvalidInput` and `InvalidAmount`.
    """
    caps = {agent_id(agent): micros(cap) for agent, cap in caps.items()}
    anchors = {agent: identity_anchor(anchor) for agent, anchor in (anchors or {}).items()}
    if unknown := sorted(anchors.keys() - caps.keys()):
        raise InvalidInput(f"identity anchor for an agent that is not being added: {unknown[0]!r:.160}")
    now_ms = publisher.authoritative_ms()
    with ledger.writing() as connection:
        rows = [
            {
                "agent_account_id": agent,
                "daily_cap_micros": caps[agent],
                "status": ACTIVE,
                "created_at": now_ms,
                "updated_at": now_ms,
            }
            for agent in sorted(caps)
        ]
        statement = insert(connection.dialect.name, agent_accounts).on_conflict_do_nothing()
        added = {
            agent
            for row in rows
            for agent in connection.scalars(statement.returning(agent_accounts.c.agent_account_id), [row])
        }
        if existing := sorted(set(caps) - added):
            raise AgentExists(f"{', '.join(existing[:5])}: {AgentExists.__doc__}")
        connection.execute(
            sa.insert(cap_changes),
            [_change(agent, None, None, caps[agent], ACTIVE, changed_by, now_ms) for agent in sorted(caps)],
        )
        for agent, anchor in sorted(anchors.items(), key=lambda each: each[1]):  # A fixed order prevents deadlocks.
            record_anchor(connection, agent, None, anchor, changed_by, now_ms)
    today = day_of(now_ms)
    return open_days(ledger, publisher, [(agent, today) for agent in caps])


def set_cap(ledger: Ledger, publisher: CounterPublisher, agent: str, cap_micros: int, changed_by: str) -> Account:
    """Change the agent's daily cap from today on. Past days keep their cap, and raises last. Raises `UnknownAgent`."""
    return _alter(ledger, publisher, agent, {"daily_cap_micros": micros(cap_micros)}, changed_by)


def set_status(ledger: Ledger, publisher: CounterPublisher, agent: str, status: str, changed_by: str) -> Account:
    """Pause or resume the agent. Raises `UnknownAgent`."""
    if status not in (ACTIVE, PAUSED):
        raise InvalidInput(f"status must be {ACTIVE} or {PAUSED}, not {status!r:.40}")
    return _alter(ledger, publisher, agent, {"status": status}, changed_by)


def changed_since(ledger: Ledger, change: int) -> tuple[int, set[str]]:
    """Return the number of the last change, and the agents whose cap or status changed after number `change`."""
    columns = cap_changes.c
    statement = sa.select(columns.cap_change_id, columns.agent_account_id).where(columns.cap_change_id > change)
    with ledger.reading() as connection:
        changes = connection.execute(statement).all()
    return max((number for number, _ in changes), default=change), {agent for _, agent in changes}


def _alter(ledger: Ledger, publisher: CounterPublisher, agent: str, values: dict[str, Any], changed_by: str) -> Account:
    agent = agent_id(agent)
    now_ms = publisher.authoritative_ms()  # Also for the record: an audit looks up the changes of a day.
    accounts, days = agent_accounts.c, daily_agent_spending.c
    with ledger.writing() as connection:
        is_agent = accounts.agent_account_id == agent
        old = connection.execute(sa.select(agent_accounts).where(is_agent).with_for_update()).one_or_none()
        if old is None:
            raise UnknownAgent(agent)
        connection.execute(sa.update(agent_accounts).where(is_agent).values(**values, updated_at=now_ms))
        cap, status = values.get("daily_cap_micros", old.daily_cap_micros), values.get("status", old.status)
        change = _change(agent, old.daily_cap_micros, old.status, cap, status, changed_by, now_ms)
        connection.execute(sa.insert(cap_changes), [change])
        # Every change raises the rows' seq, so that no older publish can undo it in the counter.
        changed = {**with_seq(days.seq + 1), "updated_at": now_ms}
        first = day_of(now_ms - KEPT_DAYS * DAY_MS)  # A status applies to every day that the counter keeps.
        if "daily_cap_micros" in values:
            changed["cap_micros"], first = caps.period_cap(AGENTS, cap), day_of(now_ms)
        is_affected = sa.and_(days.agent_account_id == agent, days.spending_date >= first)
        # Lock in order first: an UPDATE locks rows in the order in which it finds them.
        in_order = sa.select(days.spending_date).where(is_affected).order_by(days.spending_date).with_for_update()
        affected = list(connection.scalars(in_order))
        connection.execute(sa.update(daily_agent_spending).where(is_affected).values(**changed))
        snapshots = read_rows(connection, [(agent, day) for day in affected])
    publisher.publish(ledger, [each._replace(base_seq=each.seq - 1) for each in snapshots])
    return find(ledger, publisher, [agent])[0]


def record_raise(connection: sa.Connection, agent: str, changed_by: str, now_ms: int) -> None:
    """Record that a day's cap was changed while the daily cap stays what it is: wallets listen to `cap_changes`."""
    account = connection.execute(sa.select(agent_accounts).where(agent_accounts.c.agent_account_id == agent)).one()
    same = (account.daily_cap_micros, account.status)
    connection.execute(sa.insert(cap_changes), [_change(agent, *same, *same, changed_by, now_ms)])


def _change(
    agent: str,
    old_cap: int | None,
    old_status: str | None,
    new_cap: int,
    new_status: str,
    changed_by: str,
    now_ms: int,
) -> dict[str, Any]:
    return {
        "agent_account_id": agent,
        "old_cap_micros": old_cap,
        "new_cap_micros": new_cap,
        "old_status": old_status,
        "new_status": new_status,
        "changed_by": changed_by[:200],
        "changed_at": now_ms,
    }


def find(
    ledger: Ledger,
    publisher: CounterPublisher,
    agents: list[str] | None = None,
    after: str = "",
    limit: int = _MOST_AT_ONCE,
) -> list[Account]:
    """Return accounts with today's figures, by id: those named, or the next `limit` ids after `after`.

    Raises `UnknownAgent` for a name without an account.
    """
    if not 1 <= limit <= _MOST_AT_ONCE:
        raise InvalidInput(f"limit must be from 1 to {_MOST_AT_ONCE}")
    today = day_of(publisher.authoritative_ms())
    accounts, days = agent_accounts.c, daily_agent_spending.c
    statement = (
        sa.select(agent_accounts, daily_agent_spending)
        .join_from(
            agent_accounts,
            daily_agent_spending,
            sa.and_(days.agent_account_id == accounts.agent_account_id, days.spending_date == today),
            isouter=True,
        )
        .order_by(accounts.agent_account_id)
        .limit(limit)
    )
    if agents is None:
        statement = statement.where(accounts.agent_account_id > after)
    else:
        statement = statement.where(accounts.agent_account_id.in_(agents))
    with ledger.reading() as connection:
        found = [_account(row._mapping, today) for row in connection.execute(statement)]
    for agent in agents or ():
        if agent not in {account.agent for account in found}:
            raise UnknownAgent(agent)
    return found


def _account(row: Any, today: str) -> Account:
    days = daily_agent_spending.c
    cap = row[days.cap_micros]
    return Account(
        row[agent_accounts.c.agent_account_id],
        row[agent_accounts.c.status],
        row[agent_accounts.c.daily_cap_micros],
        today,
        row[agent_accounts.c.daily_cap_micros] if cap is None else cap,
        row[days.spent_micros] or 0,
        row[days.uncovered_micros] or 0,
        row[days.settled_count] or 0,
        row[agent_accounts.c.identity_anchor],
    )
