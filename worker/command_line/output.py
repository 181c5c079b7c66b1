"""How the commands show things: tables for people, JSON for programs, the same facts in both."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from daycap.errors import InvalidAmount
from daycap.money import format_usd, usd

console = Console()

json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON instead of a table.")


class Usd(click.ParamType[int]):
    """An amount of US dollars on the command line, as micros."""

    name = "usd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return usd(str(value).removeprefix("$"))
        except InvalidAmount as error:
            self.fail(str(error), param, ctx)


def show(data: Any, as_json: bool, render: Callable[[], Any]) -> None:
    """Print `data` as JSON, or what `render` makes of it."""
    if as_json:
        click.echo(json.dumps(data, indent=2))
    else:
        console.print(render(), soft_wrap=False)


def table(*columns: str) -> Table:
    """A table whose columns of money and numbers (those that end in ">") are on the right."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        right = column.endswith(">")
        made.add_column(column.removesuffix(">"), justify="right" if right else "left", no_wrap=right)
    return made


def money(micros: int | None) -> str:
    """Micros as dollars, or a dash where there is nothing to say."""
    return "-" if micros is None else format_usd(micros)


def time(at_ms: int) -> str:
    """Milliseconds since 1970 as a date and a time of day, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def bar(spent: int, leased: int, cap: int, width: int = 24) -> Text:
    """Spent (solid) and leased (light) against the cap."""
    if cap <= 0:
        return Text("-" * width, style="dim")
    solid = min(width, round(width * spent / cap))
    light = min(width - solid, -(-width * leased // cap) if leased else 0)
    style = "red" if spent >= cap else "yellow" if spent * 10 >= cap * 8 else "green"
    return Text.assemble(("█" * solid, style), ("▒" * light, style), ("░" * (width - solid - light), "dim"))
