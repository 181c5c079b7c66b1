"""Open agents' days and budgets' periods: on request, or for all shortly before they begin."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.ledger import days, walks
from daycap.ledger.budget_rows import rule_of
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import Place, Slice
from daycap.ledger.snapshots import read_rows, read_snapshots
from daycap.ledger.tables import OPENED_AHEAD, budgets, daily_agent_spending
from daycap.ledger.tables import agent_accounts as accounts
from daycap.periods import PeriodRule
from daycap.protocol.counter import ACTIVE, AgentDay
from daycap.protocol.plan import budget_id, is_budget
from daycap.protocol.runs import is_run, read_run
from daycap.protocol.wire import agent_id

logger = logging.getLogger("daycap.worker")

_AGENTS_AT_ONCE = 1000

_BUDGETS_AT_ONCE = 1000


def open_days(ledger: Ledger, publisher: CounterPublisher, agent_days: Iterable[AgentDay]) -> int:
    """Open the days that are not open yet, in one transaction, and publish all. Returns how many were new.

    Only the call that inserts a day's row may open the counter without a fence, because no lease of that day can exist
    yet. If another call's publish arrives first and raises a fence, this call's publish removes it.
    """
    wanted = sorted(set(agent_days))
    opened_at_ms = publisher.now_ms()
    now_ms = publisher.last_heard_ms() if opened_at_ms is None else opened_at_ms
    with ledger.writing() as connection:
        inserted = days.insert_missing(connection, wanted, now_ms)
    # In a reading transaction: the rows are not locked, and several statements must see one state of them.
    with ledger.reading() as connection:
        new = read_snapshots(connection, [where for where in wanted if where in inserted])
        known = read_rows(connection, [where for where in wanted if where not in inserted])
    publisher.publish(ledger, new, opened_at_ms=opened_at_ms)
    publisher.publish(ledger, known)
    return len(inserted)


def open_on_request(ledger: Ledger, publisher: CounterPublisher, agent: str, day: str) -> int:
    """Open a day for a runner whose counter answered NOT_OPEN. Only yesterday, today and tomorrow can be opened.

    Or a period of a budget, which must have a part in those days. An agent without an account, or a budget that does
    not exist, is published as unknown, so that the runner does not wait. Raises `InvalidInput`.
    """
    now_ms = publisher.authoritative_ms()
    if is_budget(agent):
        return _open_period(ledger, publisher, budget_id(agent), day, now_ms)
    agent_id(agent)
    if day not in {day_of(now_ms + offset_ms) for offset_ms in (-DAY_MS, 0, DAY_MS)}:
        logger.warning("not opening %s for agent %s: it is not yesterday, today or tomorrow", day, agent)
        return 0
    return open_days(ledger, publisher, [(agent, day)])


def _open_period(ledger: Ledger, publisher: CounterPublisher, budget: str, period: str, now_ms: int) -> int:
    if is_run(budget):
        rule: PeriodRule | None = read_run(budget).rule
    else:
        with ledger.reading() as connection:
            text = connection.scalar(sa.select(budgets.c.period).where(budgets.c.budget_id == budget))
        rule = None if text is None else rule_of(text)
    if rule is not None:
        _, start_ms, end_ms = rule.named(period)
        if not start_ms - DAY_MS <= now_ms < end_ms + DAY_MS:
            logger.warning("not opening %s of budget %s: it is too far from now", period, budget)
            return 0
    return open_days(ledger, publisher, [(budget, period)])


def rollover(ledger: Ledger, publisher: CounterPublisher, ahead_ms: int, place: Place) -> Slice:
    """Open what lasts now, and what begins within `ahead_ms`, for every active agent and budget in force. One step.

    Counts what it `opened`. Goes through agents' days, then through the periods of budgets, rule by rule. Safe to run
    late, twice at once, or again from the beginning: it opens only what is missing.
    """
    now_ms = publisher.authoritative_ms()
    on = {day_of(now_ms), day_of(now_ms + ahead_ms)}
    missing = walks.walk(on, place, lambda day, last: _agents_without(ledger, day, last))
    if missing:
        return Slice({"opened": open_days(ledger, publisher, missing)}, walks.place_after(missing))
    with ledger.reading() as connection:
        rule, ids = _next_budgets(connection, *(place[1] if place and place[0] == walks.BUDGETS else ("", "")))
        # They have the same periods, which are computed once for all.
        periods = _periods(rule_of(rule), now_ms, ahead_ms) if ids else []
        missing = [(budget, period) for period in periods for budget in ids]
        missing = sorted(set(missing) - days.present(connection, missing))
    if not ids:
        return Slice({"opened": 0}, None)
    opened = open_days(ledger, publisher, missing) if missing else 0
    return Slice({"opened": opened}, [walks.BUDGETS, [rule, ids[-1]]])


def _agents_without(ledger: Ledger, day: str, after: str) -> list[str]:
    """Return the next active agents, by id, without a row for `day`."""
    spending = daily_agent_spending
    has_row = sa.exists().where(
        spending.c.agent_account_id == accounts.c.agent_account_id, spending.c.spending_date == day
    )
    statement = (
        sa.select(accounts.c.agent_account_id)
        .where(accounts.c.status == ACTIVE, accounts.c.agent_account_id > after, ~has_row)
        .order_by(accounts.c.agent_account_id)
        .limit(_AGENTS_AT_ONCE)
    )
    with ledger.reading() as connection:
        return list(connection.scalars(statement))


def _next_budgets(connection: sa.Connection, rule: str, after: str) -> tuple[str, list[str]]:
    """Return the next budgets in force, by rule and id: their rule and their ids, none at the end."""
    columns, in_force = budgets.c, sa.text(OPENED_AHEAD)
    while True:
        these = sa.and_(in_force, columns.period == rule, columns.budget_id > after)
        statement = sa.select(columns.budget_id).where(these).order_by(columns.budget_id).limit(_BUDGETS_AT_ONCE)
        if ids := list(connection.scalars(statement)):
            return rule, ids
        next_rule = connection.scalar(sa.select(sa.func.min(columns.period)).where(in_force, columns.period > rule))
        if next_rule is None:
            return rule, []
        rule, after = next_rule, ""


def _periods(rule: PeriodRule, now_ms: int, ahead_ms: int) -> list[str]:
    """Return the period that contains now, and the one after it if that begins within `ahead_ms`."""
    if not rule.contains(now_ms):
        return []
    now = rule.at(now_ms)
    follows = now.end_ms <= now_ms + ahead_ms and rule.contains(now.end_ms)
    return [now.id, rule.at(now.end_ms).id] if follows else [now.id]
