"""Which budgets an event counts in: those that it names, and those that its plan names."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_start_ms
from daycap.ledger.tables import plans
from daycap.protocol.labels import Labels
from daycap.protocol.plan import NO_PLAN, Plan, PlannedBudget, read_plan
from daycap.protocol.wire import FinalizeEvent, Share


class Counted(NamedTuple):
    """An event, and its share in each budget that it counts in besides its agent's own."""

    event: FinalizeEvent
    shares: tuple[Share, ...] = ()


def counted_in(connection: sa.Connection, events: Iterable[FinalizeEvent], plan_of: Mapping[str, int]) -> list[Counted]:
    """Return each event with its shares. `plan_of` is the plan in force of each agent.

    An event that does not say its plan is charged by the plan in force. A budget of its plan that it does not name is
    charged all the same, in the period that contains the event's time, within its day: nobody escapes a cap. What a
    call held nothing of is drawn on a lease of the ledger's own (`is_unheld`).
    """
    events = list(events)
    wanted = {_plan_of(event, plan_of) for event in events} - {0}
    if not wanted and not any(event.also for event in events):
        return [Counted(event) for event in events]
    known = {0: NO_PLAN, **load_plans(connection, wanted | {plan_of[event.agent] for event in events})}
    named: dict[_Named, tuple[tuple[Share, ...], list[PlannedBudget]]] = {}
    counted = []
    for event in events:
        kind = event.also, _plan_of(event, plan_of), event.labels
        if kind not in named:
            plan = known.get(kind[1]) or known.get(plan_of[event.agent], NO_PLAN)
            if plan.id != kind[1]:  # The ledger has no such plan.
                kind = event.also, plan.id, event.labels
            named[kind] = _named(event, plan)
        shares, others = named[kind]
        if others:
            shares = tuple(sorted([*shares, *_unheld(event, others)]))
        counted.append(Counted(event, shares))
    return counted


def _plan_of(event: FinalizeEvent, plan_of: Mapping[str, int]) -> int:
    return plan_of[event.agent] if event.plan is None else event.plan


_Named = tuple[tuple[Share, ...], int, Labels]
"""What events have in common that name the same budgets: `also`, plan and labels."""


def load_plans(connection: sa.Connection, ids: Iterable[int]) -> dict[int, Plan]:
    """Return those of the plans that the ledger has."""
    statement = sa.select(plans.c.plan_id, plans.c.rules).where(plans.c.plan_id.in_(ids))
    return {plan: _parsed(plan, rules) for plan, rules in connection.execute(statement)}


_parsed = functools.lru_cache(maxsize=1000)(read_plan)


def _named(event: FinalizeEvent, plan: Plan) -> tuple[tuple[Share, ...], list[PlannedBudget]]:
    """Return the shares that the event names, and the budgets of its plan that it does not name."""
    shares = [share if share.lease else _of_ledger(share) for share in sorted(event.also)]
    budgets = {share.budget for share in shares}
    return tuple(shares), [each for each in plan.of_call(event.labels) if each.budget not in budgets]


def _unheld(event: FinalizeEvent, planned: Iterable[PlannedBudget]) -> list[Share]:
    """Return the event's shares in budgets that it does not name."""
    start_ms = day_start_ms(event.day)
    at_ms = min(max(event.at_ms, start_ms), start_ms + DAY_MS - 1)
    return [_of_ledger(Share(each.budget, each.rule.at(at_ms).id)) for each in planned if each.rule.contains(at_ms)]


def _of_ledger(share: Share) -> Share:
    """Return the share with a lease of the ledger's own."""
    return share._replace(lease=f"{share.budget}/{share.period}", held_micros=None)


def is_unheld(lease: str) -> bool:
    """Return whether the call held nothing of the budget: no runner can have a lease with such an id."""
    return "/" in lease
