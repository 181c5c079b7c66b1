"""What a check of `daycap doctor` found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

OK, WARN, FAIL = "ok", "warn", "fail"

_MOST_SHOWN = 5


class Finding(NamedTuple):
    """What one check found, and what to do about it."""

    part: str
    state: str
    found: str
    advice: str = ""


def plans(check: Callable[[str], Mapping[str, Any]]) -> Finding:
    """Return the finding about all agents' plans. `check` checks the next ones after an agent: see `PlanCheck`."""
    agents, wrong, checked = 0, list[str](), check("")
    while checked["after"] is not None:
        agents, wrong = agents + checked["agents"], wrong + checked["wrong"]
        checked = check(checked["after"])
    if not wrong:
        return Finding("plans", OK, f"those of {agents:,} agents are what budgets and groups give")
    shown = ", ".join(wrong[:_MOST_SHOWN]) + (", ..." if len(wrong) > _MOST_SHOWN else "")
    found = f"{len(wrong):,} of {agents:,} agents have another plan than budgets and groups give: {shown}"
    return Finding("plans", FAIL, found, "a worker's reconcile repairs them; if not, see its log")


def dead_letters(count: int) -> Finding:
    """Return the finding for this number of dead letters."""
    if count:
        advice = "daycap dead-letters list; fix the cause, then replay or drop them"
        return Finding("dead letters", WARN, f"{count:,} could not be settled", advice)
    return Finding("dead letters", OK, "none")
