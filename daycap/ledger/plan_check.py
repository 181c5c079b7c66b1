"""Checks that each agent has the plan that budgets and groups give it, and repairs it."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import sqlalchemy as sa

from daycap.errors import InvalidInput
from daycap.ledger.engine import Ledger
from daycap.ledger.plans import Planner, changing
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.tables import agent_accounts as accounts
from daycap.ledger.tables import budgets, plans
from daycap.protocol.plan import plan_text

logger = logging.getLogger("daycap.worker")

_AT_ONCE = 1000

_MOST_REPAIRED = 100
"""Agents whose plans are repaired in one transaction, in which nothing is settled on SQLite. The rest come again."""


class PlanCheck(NamedTuple):
    """How many agents were checked, those whose plan is wrong, and the last one, to go on after; None at the end."""

    agents: int
    wrong: list[str]
    after: str | None


def check_plans(ledger: Ledger, after: str = "") -> PlanCheck:
    """Check the plans of the next agents by id."""
    statement = sa.select(accounts.c.agent_account_id).order_by(accounts.c.agent_account_id).limit(_AT_ONCE)
    with ledger.reading() as connection:
        agents = list(connection.scalars(statement.where(accounts.c.agent_account_id > after)))
        return PlanCheck(len(agents), _wrong(connection, agents), agents[-1] if agents else None)


def repair_plans(ledger: Ledger, publisher: CounterPublisher, agents: list[str]) -> int:
    """Give the right plan to some of these agents that have another one, and publish it. Returns how many have."""
    with ledger.reading() as connection:
        # Most ledgers have no budgets, and nothing to compare.
        some = agents and connection.scalar(sa.select(budgets.c.budget_id).limit(1))
        wrong = _wrong(connection, agents) if some else []
    if not wrong:
        return 0
    logger.warning("reconcile: the plans of %d agents are not what budgets and groups give: %s", len(wrong), wrong[:5])
    try:
        with changing(ledger, publisher, "reconcile") as change:
            change.lock(agents=wrong[:_MOST_REPAIRED])
    except InvalidInput as error:
        logger.warning("reconcile: these plans stay as they are: %s", error)
    return len(wrong)


def _wrong(connection: sa.Connection, agents: list[str]) -> list[str]:
    text_of = functools.cache(plan_text)
    statement = (
        sa.select(accounts.c.agent_account_id, accounts.c.plan_id, plans.c.rules)
        .join_from(accounts, plans, accounts.c.plan_id == plans.c.plan_id, isouter=True)
        .where(accounts.c.agent_account_id.in_(agents))
    )
    has = {agent: text_of(frozenset()) if plan == 0 else rules for agent, plan, rules in connection.execute(statement)}
    planned = Planner(connection).plans(has.keys())
    return sorted(agent for agent, rules in has.items() if rules != text_of(planned[agent]))
