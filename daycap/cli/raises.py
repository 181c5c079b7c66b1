"""daycap cap and daycap budget: raise, reset, raises, cancel. A raise adds to one period's cap and ends by itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, time
from typing import Any, TypeVar

import click
from rich.table import Table

from daycap.cli.client import ask
from daycap.cli.groups import reason_option
from daycap.cli.output import Usd, json_option, money, show, table
from daycap.process import me

_Command = TypeVar("_Command", bound=Callable[..., Any])

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Instant(click.ParamType[int]):
    """A time of today, such as 18:00, or an ISO date and time; in the local time zone unless it says another."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        now = datetime.now().astimezone()
        try:
            if "-" in value or "T" in value:
                at = datetime.fromisoformat(value).astimezone()
            else:
                at = datetime.combine(now.date(), time.fromisoformat(value)).astimezone()
        except (ValueError, OverflowError, OSError):
            self.fail(
                f"{value!r} is neither a time of today such as 18:00 nor one such as 2026-11-30T18:00", param, ctx
            )
        if at <= now:
            self.fail(f"{value} is over; give a time to come, such as 2026-11-30T18:00", param, ctx)
        return round(at.timestamp() * 1000)


class Duration(click.ParamType[int]):
    """A number of seconds, minutes, hours or days: 90s, 30m, 2h, 1d. In milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", value, re.ASCII)
        if found is None:
            self.fail(f"{value!r} is not a duration such as 30m, 2h or 1d", param, ctx)
        return int(found[1]) * _UNITS_MS[found[2]]


who_option = click.option("--who", default=me, show_default="you", help="Who makes the change; it is recorded.")


def _raise_options(command: _Command) -> _Command:
    for option in (
        json_option,
        who_option,
        reason_option,
        click.option("--for", "for_ms", type=Duration(), help="How long: 30m, 2h or 1d."),
        click.option(
            "--until", "until_ms", type=Instant(), help="18:00, or a date and time (default: the period's end)."
        ),
        click.option("--by", "by_micros", type=Usd(), required=True, help="US dollars to add."),
    ):
        command = option(command)
    return command


def _reset_options(command: _Command) -> _Command:
    for option in (json_option, who_option, reason_option):
        command = option(command)
    return command


def _list_options(command: _Command) -> _Command:
    for option in (json_option, click.option("--all", "ended", is_flag=True, help="Also those that are over.")):
        command = option(command)
    return command


@click.command("raise")
@click.argument("name")
@_raise_options
def raise_cap(name: str, **options: Any) -> None:
    """Raise today's cap of agent NAME, until a time or the end of the day (UTC)."""
    _raise(options, agent=name)


@click.command("raise")
@click.argument("name")
@_raise_options
def raise_budget(name: str, **options: Any) -> None:
    """Raise the cap of budget NAME, until a time or the end of its current period."""
    _raise(options, budget=name)


def _raise(options: dict[str, Any], **of: str) -> None:
    if options["until_ms"] is not None and options["for_ms"] is not None:
        raise click.UsageError("give either --until or --for")
    _change("daycap.raise_cap", options, of)


@click.command("reset")
@click.argument("name")
@_reset_options
def reset_cap(name: str, **options: Any) -> None:
    """Give agent NAME its whole cap again: what it has spent today no longer counts."""
    _change("daycap.reset_cap", options, {"agent": name})


@click.command("reset")
@click.argument("name")
@_reset_options
def reset_budget(name: str, **options: Any) -> None:
    """Give budget NAME its whole cap again: what was spent in the current period no longer counts."""
    _change("daycap.reset_cap", options, {"budget": name})


def _change(task: str, options: dict[str, Any], of: dict[str, Any]) -> None:
    as_json, who = options.pop("as_json"), options.pop("who")
    _show([ask(task, changed_by=who, **options, **of)], as_json)


@click.command("raises")
@click.argument("name", required=False)
@_list_options
def list_of_agents(name: str | None, ended: bool, as_json: bool) -> None:
    """Show what raises caps now, of agents and budgets, or only of agent NAME."""
    _show(ask("daycap.find_raises", agent=name, ended=ended), as_json)


@click.command("raises")
@click.argument("name")
@_list_options
def list_of_budget(name: str, ended: bool, as_json: bool) -> None:
    """Show what raises the cap of budget NAME now."""
    _show(ask("daycap.find_raises", budget=name, ended=ended), as_json)


@click.command("cancel")
@click.argument("number", type=int)
@_reset_options
def cancel(number: int, **options: Any) -> None:
    """End raise NUMBER now, or take a reset back; of an agent or of a budget. `daycap cap raises` shows the numbers."""
    _change("daycap.cancel_raise", options | {"number": number}, {})


def add_commands(cap: click.Group, budget: click.Group) -> None:
    """Add the commands to those of caps and budgets."""
    for group, commands in (
        (cap, (raise_cap, reset_cap, list_of_agents, cancel)),
        (budget, (raise_budget, reset_budget, list_of_budget)),
    ):
        for command in commands:
            group.add_command(command)


def _show(found: list[dict[str, Any]], as_json: bool) -> None:
    def render() -> Table:
        grid = table("raise>", "of", "what|", "until|", "by", "reason")
        for each in found:
            grid.add_row(
                str(each["id"]),
                f"agent {each['agent']}" if each["budget"] is None else f"budget {each['budget']}",
                f"{each['kind']} +{money(each['amount_micros'])}",
                _until(each),
                each["raised_by"],
                each["reason"] or "-",
            )
        return grid

    show(found, as_json, render)


def _until(raised: dict[str, Any]) -> str:
    """Return when a raise ends or ended, in the local time zone."""
    at_ms = raised["ended_at_ms"] or raised["until_ms"]
    if at_ms is None:
        return "the period's end"
    at = datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M")
    return f"ended {at}" if raised["ended_at_ms"] else at
