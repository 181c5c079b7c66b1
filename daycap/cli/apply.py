"""daycap apply: make groups and budgets what a file says."""

from __future__ import annotations

import sys
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from daycap.cli.agents import by_option
from daycap.cli.budgets import changes_text, facts_text
from daycap.cli.client import ask
from daycap.cli.groups import reason_option
from daycap.cli.output import json_option, show
from daycap.errors import InvalidAmount
from daycap.money import usd

_RULE = ("period", "zone", "hour", "weekday", "monthday")
_BUDGET = ("agent", "group", "cap", *_RULE, "labels", "mode", "carry_over")
_SIGNS = {"add": "+", "change": "~", "remove": "-"}


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before changing.")
@click.option("--prune", is_flag=True, help="Remove groups and budgets that are not in FILE.")
@reason_option
@by_option
@json_option
def apply(file: Path, dry_run: bool, yes: bool, prune: bool, reason: str | None, by: str, as_json: bool) -> None:
    """Make groups and budgets what FILE says: all of it, or nothing if anything is wrong.

    Shows the changes first and asks. Groups and budgets that are not in FILE stay, unless --prune is given.
    """
    groups, budgets = read(file)
    wanted: dict[str, Any] = {"groups_wanted": groups, "budgets_wanted": budgets, "prune": prune}
    wanted |= {"changed_by": by, "reason": reason}
    found = ask("daycap.apply_budgets", **wanted, dry_run=True)
    if not as_json:
        _show_steps(found)
    if found["steps"] and not dry_run:
        if not yes:
            _confirm()
        found = ask("daycap.apply_budgets", **wanted, shown=found["digest"])
        if not as_json:
            click.echo("Done.")
    if as_json:
        show(found, as_json, str)


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the file's groups and budgets as the ledger takes them. A mistake ends the command and names its key."""
    try:
        content = tomllib.loads(file.read_text("utf-8"), parse_float=Decimal)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file}: not TOML: {error}") from error
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from error
    try:
        _table(content, "", ("groups", "budgets"))
        return (
            {name: _group(each, f"groups.{name}") for name, each in _table(content, "groups").items()},
            {name: _budget(each, f"budgets.{name}") for name, each in _table(content, "budgets").items()},
        )
    except ValueError as error:
        raise click.ClickException(f"{file}: {error}") from error


def _table(of: Any, path: str, known: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the table: `of` itself if `known` says which keys it may have, else that of key `path`, if it is there."""
    found = of if known else of.get(path, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a table")
    if known and (unknown := [key for key in found if key not in known]):
        raise ValueError(f"{'.'.join(filter(None, (path, unknown[0])))}: unknown key; known are {', '.join(known)}")
    return found


def _group(given: Any, path: str) -> dict[str, Any]:
    return {kind: _texts(names, f"{path}.{kind}") for kind, names in _table(given, path, ("agents", "groups")).items()}


def _budget(given: Any, path: str) -> dict[str, Any]:
    table = _table(given, path, _BUDGET)
    if "cap" not in table:
        raise ValueError(f"{path}.cap: missing")
    rule = {key: table[key] for key in _RULE if key in table}
    if rule and "period" not in rule:
        raise ValueError(f"{path}.{next(iter(rule))}: needs {path}.period")
    for key in ("agent", "group", "mode", "period", "zone"):
        if not isinstance(table.get(key, ""), str):
            raise ValueError(f"{path}.{key}: not a text")
    for key in ("hour", "weekday", "monthday"):
        if type(table.get(key, 0)) is not int:
            raise ValueError(f"{path}.{key}: not a whole number")
    facts: dict[str, Any] = {key: table[key] for key in ("agent", "group", "mode") if key in table}
    labels = table.get("labels", {})
    if not isinstance(labels, dict):
        raise ValueError(f"{path}.labels: not a table")
    return {
        **facts,
        "cap_micros": _cap(table["cap"], f"{path}.cap"),
        **({"carry_over_micros": _cap(table["carry_over"], f"{path}.carry_over")} if "carry_over" in table else {}),
        **({"period": rule} if rule else {}),
        **({"labels": {key: _texts(each, f"{path}.labels.{key}") for key, each in labels.items()}} if labels else {}),
    }


def _cap(given: Any, path: str) -> int:
    try:
        if isinstance(given, bool) or not isinstance(given, int | Decimal | str):
            raise InvalidAmount("not an amount of US dollars")
        return usd(given)
    except InvalidAmount as error:
        raise ValueError(f"{path}: {error}") from error


def _texts(given: Any, path: str) -> list[str]:
    values = [given] if isinstance(given, str) else given
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise ValueError(f"{path}: not a list of texts")
    return values


def _show_steps(found: dict[str, Any]) -> None:
    for step in found["steps"]:
        old, new = step["old"], step["new"]
        what = facts_text(old or new or {}) if old is None or new is None else changes_text(old, new)
        click.echo(f"{_SIGNS[step['action']]} {step['kind']} {step['name']}: {what}")
        if step["restarts"]:
            click.echo("    it starts again with nothing spent: other calls or periods count")
    if found["left"]:
        click.echo(f"not in the file, and kept (--prune removes them): {', '.join(found['left'])}")
    counts = [f"{sum(step['action'] == action for step in found['steps'])} to {action}" for action in _SIGNS]
    click.echo(", ".join(counts) if found["steps"] else "Nothing to change.")


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def _confirm() -> None:
    if not _has_terminal():
        raise click.ClickException("nothing was changed: there is no terminal to ask on; give --yes")
    click.confirm("Make these changes?", abort=True)
