"""Output of the commands: tables for people, JSON for programs, with the same facts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from daycap.errors import InvalidAmount
from daycap.money import format_usd, usd

console = Console()

_SHORTEST_BAR = 6

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
    """Print `data` as JSON, or the result of `render`."""
    if as_json:
        click.echo(json.dumps(data, indent=2))
    else:
        console.print(render(), soft_wrap=False)


def table(*columns: str) -> Table:
    """A table. Columns of money and numbers (">" at the end) are on the right; these and those with "|" never wrap."""
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        whole = column.endswith((">", "|"))
        grid.add_column(
            column.rstrip(">|"),
            justify="right" if column.endswith(">") else "left",
            no_wrap=whole,
            # A number that is cut must look so. A name is not cut: its end may be all that tells it from another.
            overflow="ellipsis" if whole else "fold",
        )
    return grid


def money(micros: int | None) -> str:
    """Format micros as dollars; None as a dash."""
    return "-" if micros is None else format_usd(micros)


def time(at_ms: int) -> str:
    """Format milliseconds since 1970 as date and time, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True, slots=True)
class Bar:
    """Spent (solid) and leased (light) against the cap, as wide as there is room: never cut off, and full at the cap.

    Amounts are micros.
    """

    spent: int
    leased: int
    cap: int
    most: int = 24

    def cells(self, width: int) -> Text:
        """The bar, `width` characters long."""
        if self.cap <= 0:
            return Text("-" * width, style="dim")
        solid = min(width, width * self.spent // self.cap)
        light = min(width - solid, -(-width * self.leased // self.cap))
        style = "red" if self.spent >= self.cap else "yellow" if self.spent * 10 >= self.cap * 8 else "green"
        return Text.assemble(("█" * solid, style), ("▒" * light, style), ("░" * (width - solid - light), "dim"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.cells(min(self.most, options.max_width))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_SHORTEST_BAR, options.max_width), min(self.most, options.max_width))
