"""Tasks that the command line sends about budgets and groups."""

from __future__ import annotations

from daycap.ledger.administration import JSON, answer
from tasks.arguments import checked
from tasks.aside import aside
from tasks.control import administration, once
from worker.celery import app

Facts = dict[str, str | int | dict[str, str | int] | dict[str, list[str]]]
"""What `daycap.ledger.definitions.defined` takes."""


@app.task(name="daycap.add_budget", ignore_result=False)
@once
@checked
def add_budget(name: str, facts: Facts, changed_by: str, reason: str | None = None) -> JSON:
    """Add a budget."""
    return answer(administration().add_budget, name, facts, changed_by, reason)


@app.task(name="daycap.set_budget", ignore_result=False)
@once
@checked
def set_budget(name: str, facts: Facts, changed_by: str, reason: str | None = None) -> JSON:
    """Change a budget's cap, mode, labels, periods or scope."""
    return answer(administration().set_budget, name, facts, changed_by, reason)


@app.task(name="daycap.remove_budget", ignore_result=False)
@once
@checked
def remove_budget(name: str, changed_by: str, reason: str | None = None) -> JSON:
    """Remove a budget."""
    return answer(administration().remove_budget, name, changed_by, reason)


@app.task(name="daycap.find_budgets", ignore_result=False)
@aside
@checked
def find_budgets(
    names: list[str] | None = None,
    after: str = "",
    limit: int = 1000,
    agent: str | None = None,
    group: str | None = None,
) -> JSON:
    """Return budgets with the figures of their current period: those named, or the next `limit` by name."""
    return answer(administration().find_budgets, names, after, limit, agent, group)


@app.task(name="daycap.add_group", ignore_result=False)
@once
@checked
def add_group(
    group: str, agents: list[str], member_groups: list[str], changed_by: str, reason: str | None = None
) -> JSON:
    """Add a group with its members."""
    return answer(administration().add_group, group, agents, member_groups, changed_by, reason)


@app.task(name="daycap.join_group", ignore_result=False)
@once
@checked
def join_group(
    group: str, agents: list[str], member_groups: list[str], changed_by: str, reason: str | None = None
) -> JSON:
    """Add members to a group."""
    return answer(administration().join_group, group, agents, member_groups, changed_by, reason)


@app.task(name="daycap.leave_group", ignore_result=False)
@once
@checked
def leave_group(
    group: str, agents: list[str], member_groups: list[str], changed_by: str, reason: str | None = None
) -> JSON:
    """Remove members from a group."""
    return answer(administration().leave_group, group, agents, member_groups, changed_by, reason)


@app.task(name="daycap.remove_group", ignore_result=False)
@once
@checked
def remove_group(group: str, changed_by: str, reason: str | None = None) -> JSON:
    """Remove a group."""
    return answer(administration().remove_group, group, changed_by, reason)


@app.task(name="daycap.find_groups", ignore_result=False)
@aside
@checked
def find_groups(names: list[str] | None = None, after: str = "", limit: int = 1000) -> JSON:
    """Return groups with their members and budgets: those named, or the next `limit` by name."""
    return answer(administration().find_groups, names, after, limit)


@app.task(name="daycap.find_budget_changes", ignore_result=False)
@aside
@checked
def find_budget_changes(kind: str, name: str, limit: int = 1000) -> JSON:
    """Return the last changes of a budget or group, oldest first."""
    return answer(administration().find_budget_changes, kind, name, limit)


@app.task(name="daycap.check_plans", ignore_result=False)
@aside
@checked
def check_plans(after: str = "") -> JSON:
    """Compare the plans of the next agents after this one with what budgets and groups give them."""
    return answer(administration().check_plans, after)


@app.task(name="daycap.apply_budgets", ignore_result=False)
@once
@checked
def apply_budgets(
    groups_wanted: dict[str, dict[str, list[str]]],
    budgets_wanted: dict[str, Facts],
    changed_by: str,
    reason: str | None = None,
    prune: bool = False,
    dry_run: bool = False,
    shown: str | None = None,
) -> JSON:
    """Make groups and budgets what a file says, in one transaction; `dry_run` only returns what would change."""
    return answer(
        administration().apply_budgets, groups_wanted, budgets_wanted, changed_by, reason, prune, dry_run, shown
    )
