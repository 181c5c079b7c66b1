"""daycap audit: check a day against promises P1, P2 and P3."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Group
from rich.text import Text

from daycap.cli.client import ask
from daycap.cli.output import json_option, money, show, table


@click.command()
@click.option("--day", help="A UTC day, YYYY-MM-DD; by default the counter's today.")
@json_option
def audit(day: str | None, as_json: bool) -> None:
    """Audit a day's ledger and counter. Lists each difference and exits with status 1 if there is one."""
    found = ask("daycap.audit", timeout_s=120, day=day)
    show(found, as_json, lambda: _render(found))
    sys.exit(bool(found["differences"]))


_PROMISES = ("P1, P2 and P3 hold", "P1 and P3 hold", "P1 holds")
"""The verdicts of an audit that compared everything, all but the leases, and neither leases nor settlements."""


def _render(found: dict[str, Any]) -> Group:
    summary = (
        f"{found['day']}: {found['agents']:,} agents, {found['settlements']:,} settlements, "
        f"{money(found['spent_micros'])} spent, {money(found['uncovered_micros'])} uncovered"
    )
    if found["pruned"]:
        summary += f"\nnot compared, because the day is long past: its {' and its '.join(found['pruned'])}"
    # A worker of an earlier release does not know budgets.
    if found.get("budgets"):
        summary += f"\n{found['budgets']:,} budget periods, each from its begin on"
    for what, count in sorted(found.get("budgets_pruned", {}).items()):
        summary += f"\nnot compared, because some are long past: the {what} of {count:,} budget periods"
    if not found["differences"]:
        return Group(summary, Text(f"{_PROMISES[len(found['pruned'])]}: no difference", style="green"))
    grid = table("promise", "agent or budget", "what", "expected>", "found>")
    for each in found["differences"]:
        grid.add_row(each["promise"], each["agent"], each["what"], str(each["expected"]), str(each["found"]))
    return Group(summary, grid, Text(f"{len(found['differences'])} differences", style="bold red"))
