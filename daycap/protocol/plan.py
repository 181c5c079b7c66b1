"""The plan of an agent: the budgets that its calls count in besides its own daily cap."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from daycap.errors import InvalidInput
from daycap.formats import shown
from daycap.periods import PeriodRule
from daycap.protocol.labels import Labels, Patterns, covers, scope_patterns

MOST_BUDGETS = 16
"""How many budgets a call may count in, the agent's own included."""

ENFORCE, WATCH = "enforce", "watch"
"""A budget's mode: it refuses calls that do not fit, or it only counts them."""

_BUDGET = re.compile(r"[A-Za-z0-9._:@-]{1,128}/[1-9][0-9]{0,9}", re.ASCII)


def budget_id(value: object) -> str:
    """Return `value` if it is the id of a budget: its name, a slash and a number. Raises `InvalidInput`.

    A name is what an agent's id may be. No agent's id has a slash, so the two are never confused. A budget gets a new
    number when its scope or its period changes.
    """
    if not isinstance(value, str) or not _BUDGET.fullmatch(value):
        raise InvalidInput(f"not the id of a budget (name/number): {shown(value, 180)}")
    return value


def is_budget(owner: str) -> bool:
    """Return whether `owner` is a budget's id; otherwise it is an agent's."""
    return "/" in owner


class PlannedBudget(NamedTuple):
    """One budget of a plan."""

    budget: str
    rule: PeriodRule
    patterns: Patterns = ()
    mode: str = ENFORCE


class Plan(NamedTuple):
    """The budgets of an agent, sorted by id. `id` is the ledger's number of exactly these budgets; 0 if there are none.

    A plan never changes: with other budgets it is another plan.
    """

    id: int
    budgets: tuple[PlannedBudget, ...] = ()

    def of_call(self, labels: Labels) -> list[PlannedBudget]:
        """Return the budgets that a call with these labels counts in."""
        mapping = dict(labels)
        return [each for each in self.budgets if covers(each.patterns, mapping)]


NO_PLAN = Plan(0)


def plan_text(budgets: Iterable[PlannedBudget]) -> str:
    """Encode budgets as a plan's text. Equal sets of budgets give equal texts."""
    return json.dumps(
        [
            {
                "budget": each.budget,
                "period": each.rule.to_json(),
                **({"labels": {key: list(values) for key, values in each.patterns}} if each.patterns else {}),
                **({"mode": each.mode} if each.mode != ENFORCE else {}),
            }
            for each in sorted(budgets)
        ],
        separators=(",", ":"),
        sort_keys=True,
    )


def read_plan(plan_id: int, text: str) -> Plan:
    """Decode the text of plan `plan_id`. Raises `InvalidInput` for a text that a newer release wrote."""
    try:
        return Plan(plan_id, tuple(_read_budget(each) for each in json.loads(text)))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(f"plan {plan_id} is not one that this release reads: {error}") from error


def _read_budget(entry: Mapping[str, object]) -> PlannedBudget:
    mode = entry.get("mode", ENFORCE)
    if mode not in (ENFORCE, WATCH):
        raise InvalidInput(f"mode is {ENFORCE} or {WATCH}, not {shown(mode, 40)}")
    return PlannedBudget(
        budget_id(entry["budget"]),
        PeriodRule.from_json(entry["period"]),
        scope_patterns(entry.get("labels", {})),
        str(mode),
    )
