"""Which budgets an event counts in: those that it names, and those that its plan names."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_start_ms
from daycap.ledger.tables import plans
from daycap.protocol.plan import NO_PLAN, Plan, read_plan
from daycap.protocol.wire import FinalizeEvent, Share


class Counted(NamedTuple):
    """An event, and its share in each budget that it counts in besides its agent's own."""

    event: FinalizeEvent
    shares: tuple[Share, ...] = ()


def counted_in(connection: sa.Connection, events: Iterable[FinalizeEvent], plan_of: Mapping[str, int]) -> list[Counted]:
    """Return each event with its shares. `plan_of` is the plan in force of each agent.

    An event without a plan is charged by the plan in force. A budget of the plan that the event does not name is
    charged all the same, in the period that contains the event's time, within its day: nobody escapes a cap. What a
    call held nothing of is drawn on a lease of the ledger's own (`is_unheld`).
    """
    events = list(events)
    wanted = {event.plan or plan_of[event.agent] for event in events} - {0}
    if not wanted and not any(event.also for event in events):
        return [Counted(event) for event in events]
    known = load_plans(connection, wanted | {plan_of[event.agent] for event in events})
    return [_counted(event, known.get(event.plan) or known.get(plan_of[event.agent], NO_PLAN)) for event in events]


def load_plans(connection: sa.Connection, ids: Iterable[int]) -> dict[int, Plan]:
    """Return those of the plans that the ledger has."""
    statement = sa.select(plans.c.plan_id, plans.c.rules).where(plans.c.plan_id.in_(ids))
    return {plan: _parsed(plan, rules) for plan, rules in connection.execute(statement)}


_parsed = functools.lru_cache(maxsize=1000)(read_plan)


def _counted(event: FinalizeEvent, plan: Plan) -> Counted:
    named = {share.budget: share for share in event.also}
    at_ms = _within_day(event)
    planned = {each.budget: each for each in plan.of_call(event.labels) if each.rule.contains(at_ms)}
    shares = []
    for budget in sorted({*named, *planned}):
        share = named.get(budget) or Share(budget, planned[budget].rule.at(at_ms).id)
        shares.append(share if share.lease else share._replace(lease=f"{budget}/{share.period}", held_micros=None))
    return Counted(event, tuple(shares))


def is_unheld(lease: str) -> bool:
    """Return whether the call held nothing of the budget: no runner can have a lease with such an id."""
    return "/" in lease


def _within_day(event: FinalizeEvent) -> int:
    """Return the event's time, within its day."""
    start_ms = day_start_ms(event.day)
    return min(max(event.at_ms, start_ms), start_ms + DAY_MS - 1)
