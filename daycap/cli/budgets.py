"""daycap budget: caps besides the agents' own, of an agent or of a group, per hour, day, week, month, year or once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import click
from rich.table import Table

from daycap.cli.agents import by_option
from daycap.cli.client import ask
from daycap.cli.groups import reason_option
from daycap.cli.output import Usd, json_option, money, show, table, time
from daycap.cli.paging import find_all
from daycap.periods import END_MS
from daycap.protocol.plan import ENFORCE, WATCH

_Command = TypeVar("_Command", bound=Callable[..., Any])

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class Weekday(click.ParamType[int]):
    """A day of the week, by its English name or from 1, Monday, to 7, Sunday."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).lower()
        if text in _WEEKDAYS:
            return _WEEKDAYS.index(text) + 1
        if text in set("1234567"):
            return int(text)
        self.fail(f"{value!r} is neither a day such as sunday nor a number from 1 to 7", param, ctx)


class Label(click.ParamType[tuple[str, list[str]]]):
    """KEY=VALUE, or KEY=VALUE,VALUE."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[str]]:
        key, separator, values = str(value).partition("=")
        if not separator or not key or not all(values.split(",")):
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, values.split(",")


def _facts_options(required: bool) -> Callable[[_Command], _Command]:
    """The options of what a budget is."""
    default = " (default: day)" if required else ""
    options = [
        click.option("--agent", help="The agent whose calls count."),
        click.option("--group", help="The group whose members' calls count."),
        click.option("--cap", "cap_micros", type=Usd(), required=required, help="US dollars per period."),
        click.option("--period", help=f"hour, day, week, month, year or once{default}."),
        click.option("--zone", help="The time zone of the periods, such as Europe/Zurich (default: UTC)."),
        click.option("--hour", type=int, help="The hour at which a day, week, month or year begins."),
        click.option("--weekday", type=Weekday(), help="The day on which a week begins: sunday, or 7."),
        click.option("--monthday", type=int, help="The day on which a month begins."),
        click.option(
            "--label",
            "labels",
            type=Label(),
            multiple=True,
            help="Count only calls with this label, such as model=gpt-4o* or tool=search,browse; may be repeated.",
        ),
        click.option(
            "--carry-over", "carry_over_micros", type=Usd(), help="Add what a period leaves to the next, at most this."
        ),
        click.option("--mode", type=click.Choice([ENFORCE, WATCH]), help="watch: count, but refuse no call."),
        reason_option,
        by_option,
        json_option,
    ]

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group()
def budget() -> None:
    """Add, change and show budgets besides the agents' daily caps."""


@budget.command("add")
@click.argument("name")
@_facts_options(required=True)
def add(name: str, by: str, reason: str | None, as_json: bool, **options: Any) -> None:
    """Add budget NAME of an agent or a group."""
    show_budgets([ask("daycap.add_budget", name=name, facts=_facts(options), changed_by=by, reason=reason)], as_json)


@budget.command("set")
@click.argument("name")
@click.option("--all-calls", is_flag=True, help="Drop the labels: count all calls.")
@_facts_options(required=False)
def change(name: str, by: str, reason: str | None, as_json: bool, all_calls: bool, **options: Any) -> None:
    """Change budget NAME.

    A cap applies from the current period on. With another agent, group, period or other labels, the budget starts again
    with nothing spent.
    """
    facts = _facts(options)
    if all_calls:
        if "labels" in facts:
            raise click.UsageError("give either --label or --all-calls")
        facts["labels"] = {}
    if not facts:
        raise click.UsageError("nothing to change: give an option such as --cap")
    (old,) = ask("daycap.find_budgets", names=[name])
    new = ask("daycap.set_budget", name=name, facts=facts, changed_by=by, reason=reason)
    if new["budget"] != old["budget"] and not as_json:
        click.echo(f"{name} starts again with nothing spent: other calls or periods count now", err=True)
    show_budgets([new], as_json)


@budget.command("remove")
@click.argument("name")
@reason_option
@by_option
def remove(name: str, by: str, reason: str | None) -> None:
    """Remove budget NAME; what was spent stays on record."""
    ask("daycap.remove_budget", name=name, changed_by=by, reason=reason)


@budget.command("show")
@click.argument("name")
@json_option
def show_one(name: str, as_json: bool) -> None:
    """Show budget NAME and its current period."""
    show_budgets(find_all("daycap.find_budgets", "name", names=[name]), as_json)


@budget.command("list")
@click.option("--agent", help="Only those that apply to this agent, directly or through groups.")
@click.option("--group", help="Only those of this group.")
@json_option
def list_all(agent: str | None, group: str | None, as_json: bool) -> None:
    """Show every budget and its current period."""
    which = {key: name for key, name in (("agent", agent), ("group", group)) if name is not None}
    show_budgets(find_all("daycap.find_budgets", "name", **which), as_json)


@budget.command("history")
@click.argument("name")
@click.option("--of-group", is_flag=True, help="NAME is a group: show who joined and left.")
@json_option
def history(name: str, of_group: bool, as_json: bool) -> None:
    """Show who changed budget NAME, when, how and why."""
    found = ask("daycap.find_budget_changes", kind="group" if of_group else "budget", name=name)

    def render() -> Table:
        grid = table("at|", "by", "what", "reason")
        for each in found:
            grid.add_row(time(each["changed_at_ms"]), each["changed_by"], _difference(each), each["reason"] or "-")
        return grid

    show(found, as_json, render)


def _facts(options: dict[str, Any]) -> dict[str, Any]:
    """Return what the options say, as the ledger takes it."""
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    rule = {name: given.pop(name) for name in ("period", "zone", "hour", "weekday", "monthday") if name in given}
    if rule and "period" not in rule:
        raise click.UsageError(f"--{next(iter(rule))} needs --period: together they say when a period begins")
    labels: dict[str, list[str]] = {}
    for key, values in given.pop("labels", ()):
        labels.setdefault(key, []).extend(values)
    return given | ({"period": rule} if rule else {}) | ({"labels": labels} if labels else {})


def show_budgets(found: list[dict[str, Any]], as_json: bool) -> None:
    """Show budgets as they stand in the ledger."""

    def render() -> Table:
        watched = any(each["mode"] != ENFORCE for each in found)
        uncovered = any(each["uncovered_micros"] for each in found)
        optional = [*(["mode|"] if watched else []), *(["uncovered>"] if uncovered else [])]
        grid = table("budget", "of", *optional, "cap>", "spent>", "per", "ends|")
        for each in found:
            grid.add_row(
                each["name"],
                " ".join([scope_text(each), *labels_texts(each["labels"])]),
                *([each["mode"]] if watched else []),
                *([money(each["uncovered_micros"])] if uncovered else []),
                money(each["period_cap_micros"]),
                money(each["spent_micros"]),
                rule_text(each["period"]),
                _end(each),
            )
        return grid

    show(found, as_json, render)


def scope_text(facts: dict[str, Any]) -> str:
    """Return whose calls count: `agent agent-7` or `group research`."""
    return f"agent {facts['agent']}" if facts.get("agent") is not None else f"group {facts['group']}"


def labels_texts(labels: dict[str, list[str]]) -> list[str]:
    """Return a scope's labels as on the command line."""
    return [f"{key}={','.join(values)}" for key, values in labels.items()]


def rule_text(rule: dict[str, Any]) -> str:
    """Return the rule of the periods in words: `month, Europe/Zurich, from 04:00, from day 5`."""
    parts = [rule["period"], *([rule["zone"]] if "zone" in rule else [])]
    if "hour" in rule:
        parts.append(f"from {rule['hour']:02}:00")
    if "weekday" in rule:
        parts.append(f"from {_WEEKDAYS[rule['weekday'] - 1].capitalize()}")
    if "monthday" in rule:
        parts.append(f"from day {rule['monthday']}")
    return ", ".join(parts)


def _end(found: dict[str, Any]) -> str:
    """Return when the current period ends, in its time zone."""
    if found["end_ms"] >= END_MS:
        return "never"
    zone = found["period"].get("zone", "UTC")
    return datetime.fromtimestamp(found["end_ms"] / 1000, UTC if zone == "UTC" else ZoneInfo(zone)).strftime(
        "%Y-%m-%d %H:%M"
    )


def _difference(change: dict[str, Any]) -> str:
    old, new = change["old"], change["new"]
    if old is None or new is None:
        return ("added: " if old is None else "removed: ") + facts_text(old or new or {})
    return changes_text(old, new)


def facts_text(facts: dict[str, Any]) -> str:
    """Return the facts of a budget, or a group's members, in one line."""
    if "cap_micros" not in facts:
        return "; ".join(f"{kind} {', '.join(names)}" for kind, names in facts.items()) or "no members"
    mode = [facts["mode"]] if facts["mode"] != ENFORCE else []
    carried = facts.get("carry_over_micros")
    carry = [f"carry over up to {money(carried)}"] if carried else []
    cap, per = money(facts["cap_micros"]), rule_text(facts["period"])
    return ", ".join([f"{cap} per {per}", scope_text(facts), *labels_texts(facts["labels"]), *carry, *mode])


def changes_text(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return what differs between the facts of two budgets, or who left and who joined a group."""
    if "cap_micros" not in old:
        moves = [("left", old), ("joined", new)]
        return "; ".join(f"{facts_text(members)} {verb}" for verb, members in moves if members)
    each: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("of", scope_text),
        ("cap", lambda facts: money(facts["cap_micros"])),
        ("per", lambda facts: rule_text(facts["period"])),
        ("labels", lambda facts: " ".join(labels_texts(facts["labels"])) or "none"),
        ("mode", lambda facts: str(facts["mode"])),
        ("carry over", lambda facts: money(facts.get("carry_over_micros", 0))),
        ("raised", lambda facts: _raised_text(facts.get("raised"))),
    ]
    return "; ".join(f"{what} {text(old)} -> {text(new)}" for what, text in each if text(old) != text(new))


def _raised_text(raised: dict[str, Any] | None) -> str:
    return "no" if raised is None else f"by {money(raised['amount_micros'])} ({raised['kind']})"
