"""Agents' identity anchors: set once, then rotated by an operator. Every change is recorded in `anchor_changes`."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from daycap.errors import AgentRefused, InvalidInput, UnknownAgent
from daycap.identity import identity_anchor
from daycap.ledger.engine import Ledger, insert
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.tables import agent_accounts, anchor_changes, identity_anchors
from daycap.protocol.wire import agent_id


class AnchorSet(AgentRefused):
    """it already has another identity anchor; to change it: daycap agent anchor NAME ANCHOR --rotate"""


class AnchorTaken(AgentRefused):
    """the identity anchor belongs or belonged to another agent, and anchors are never reused"""


class AnchorChange(NamedTuple):
    """A change of an agent's identity anchor. The first has no old anchor. The time is the counter's, in UTC."""

    agent: str
    old_anchor: str | None
    new_anchor: str
    changed_by: str
    changed_at_ms: int


def set_anchor(
    ledger: Ledger, publisher: CounterPublisher, agent: str, anchor: str, changed_by: str, rotate: bool = False
) -> list[AnchorChange]:
    """Set the agent's identity anchor, or replace it if `rotate`. Returns the agent's `history`.

    Does nothing if the agent has this anchor already. Raises `AnchorSet` if it has another one and `rotate` is False,
    `AnchorTaken`, `UnknownAgent`, and `InvalidInput` for an invalid anchor, for a rotation of an agent without one,
    and for an empty `changed_by`.
    """
    agent, anchor = agent_id(agent), identity_anchor(anchor)
    now_ms = publisher.authoritative_ms()
    statement = sa.select(agent_accounts.c.identity_anchor).where(agent_accounts.c.agent_account_id == agent)
    with ledger.writing() as connection:
        account = connection.execute(statement.with_for_update()).one_or_none()
        if account is None:
            raise UnknownAgent(agent)
        old = account.identity_anchor
        if old != anchor:
            if old is not None and not rotate:
                raise AnchorSet(agent)
            if old is None and rotate:
                raise InvalidInput(f"agent {agent} has no identity anchor to rotate")
            record_anchor(connection, agent, old, anchor, changed_by, now_ms)
    return history(ledger, agent)


def record_anchor(
    connection: sa.Connection, agent: str, old_anchor: str | None, new_anchor: str, changed_by: str, now_ms: int
) -> None:
    """Write the change and its record, in the caller's transaction. Raises `AnchorTaken` and `InvalidInput`."""
    if not changed_by.strip():
        raise InvalidInput("say who changes the identity anchor: changed_by is empty")
    claim = insert(connection.dialect.name, identity_anchors).on_conflict_do_nothing()
    connection.execute(claim, {"identity_anchor": new_anchor, "agent_account_id": agent})
    owner = sa.select(identity_anchors.c.agent_account_id).where(identity_anchors.c.identity_anchor == new_anchor)
    if connection.scalar(owner) != agent:
        raise AnchorTaken(agent)
    connection.execute(
        sa.update(agent_accounts)
        .where(agent_accounts.c.agent_account_id == agent)
        .values(identity_anchor=new_anchor, updated_at=now_ms)
    )
    change = {"old_anchor": old_anchor, "new_anchor": new_anchor, "changed_by": changed_by[:200], "changed_at": now_ms}
    connection.execute(sa.insert(anchor_changes), {"agent_account_id": agent, **change})


def history(ledger: Ledger, agent: str) -> list[AnchorChange]:
    """Return all changes of the agent's identity anchor, oldest first. Raises `UnknownAgent`."""
    agent = agent_id(agent)
    of_changes = anchor_changes.c
    statement = (
        sa.select(
            agent_accounts.c.agent_account_id,
            of_changes.old_anchor,
            of_changes.new_anchor,
            of_changes.changed_by,
            of_changes.changed_at,
        )
        .join_from(agent_accounts, anchor_changes, isouter=True)
        .where(agent_accounts.c.agent_account_id == agent)
        .order_by(of_changes.anchor_change_id)
    )
    with ledger.reading() as connection:
        rows = connection.execute(statement).all()
    if not rows:
        raise UnknownAgent(agent)
    return [AnchorChange(*row) for row in rows if row.new_anchor is not None]
