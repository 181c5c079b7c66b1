"""daycap group: groups of agents and of other groups, which share budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from rich.table import Table

from daycap.cli.agents import by_option
from daycap.cli.client import ask
from daycap.cli.output import json_option, show, table
from daycap.cli.paging import find_all

reason_option = click.option("--reason", help="Why the change is made; it is recorded.")
_groups_option = click.option("--group", "member_groups", multiple=True, help="A group as a member; may be repeated.")


def _with_members(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its group, the members that it is about, and who does it why."""
    for option in (json_option, by_option, reason_option, _groups_option, click.argument("agents", nargs=-1)):
        command = option(command)
    return click.argument("name")(command)


@click.group()
def group() -> None:
    """Add, change and show groups."""


@group.command("add")
@_with_members
def add(name: str, agents: tuple[str, ...], member_groups: tuple[str, ...], as_json: bool, **how: str) -> None:
    """Add group NAME, with AGENTS and other groups as its members."""
    _show([_ask("daycap.add_group", name, agents, member_groups, how)], as_json)


@group.command("join")
@_with_members
def join(name: str, agents: tuple[str, ...], member_groups: tuple[str, ...], as_json: bool, **how: str) -> None:
    """Let AGENTS and other groups join group NAME."""
    _show([_ask("daycap.join_group", name, agents, member_groups, how)], as_json)


@group.command("leave")
@_with_members
def leave(name: str, agents: tuple[str, ...], member_groups: tuple[str, ...], as_json: bool, **how: str) -> None:
    """Let AGENTS and other groups leave group NAME."""
    _show([_ask("daycap.leave_group", name, agents, member_groups, how)], as_json)


@group.command("remove")
@click.argument("name")
@reason_option
@by_option
def remove(name: str, by: str, reason: str | None) -> None:
    """Remove group NAME, which has neither members nor budgets."""
    ask("daycap.remove_group", group=name, changed_by=by, reason=reason)


@group.command("show")
@click.argument("name")
@json_option
def show_one(name: str, as_json: bool) -> None:
    """Show group NAME: its members and its budgets."""
    _show(find_all("daycap.find_groups", "group", names=[name]), as_json)


@group.command("list")
@json_option
def list_all(as_json: bool) -> None:
    """Show every group."""
    _show(find_all("daycap.find_groups", "group"), as_json)


def _ask(task: str, name: str, agents: tuple[str, ...], member_groups: tuple[str, ...], how: dict[str, str]) -> Any:
    members: dict[str, Any] = {"agents": list(agents), "member_groups": list(member_groups)}
    return ask(task, group=name, **members, changed_by=how["by"], reason=how["reason"])


def _show(found: list[dict[str, Any]], as_json: bool) -> None:
    def render() -> Table:
        grid = table("group", "agents", "groups", "budgets")
        for each in found:
            grid.add_row(each["group"], *(", ".join(each[kind]) or "-" for kind in ("agents", "groups", "budgets")))
        return grid

    show(found, as_json, render)
