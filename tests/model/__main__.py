"""`python -m tests.model [NAME...] [--seconds N] [--mutants]`: explore configurations, or what each guard is for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from tests.model.configurations import BASE, MUTANTS
from tests.model.explore import Progress, Result, explore
from tests.model.protocol import Config


@click.command()
@click.argument("names", nargs=-1)
@click.option("--seconds", default=600.0, show_default=True, help="The most for each configuration.")
@click.option("--mutants", is_flag=True, help="Leave out one guard after the other.")
@click.option("--trace", is_flag=True, help="Show the shortest way to what a missing guard breaks.")
def main(names: Sequence[str], seconds: float, mutants: bool, trace: bool) -> None:
    """Explore what has one of NAMES in its name, or all. Ends with status 1 if a promise breaks that should hold, or
    if a missing guard is not noticed."""
    console = Console()
    wanted: list[tuple[Config, str]] = (
        [(mutant.config, mutant.breaks) for mutant in MUTANTS] if mutants else [(config, "") for config in BASE]
    )
    table = Table(box=None, pad_edge=False)
    for column in (
        "configuration" if not mutants else "without",
        "breaks",
        "states",
        "steps",
        "depth",
        "complete",
        "s",
    ):
        table.add_column(column, justify="left" if column in ("configuration", "without", "breaks") else "right")
    failed = False
    for config, breaks in wanted:
        if names and not any(name in config.name for name in names):
            continue
        result = _explore(console, config, seconds)
        as_it_should = result.broken.startswith(breaks) if breaks else not result.broken
        failed |= not as_it_should
        style = "" if as_it_should else "bold red"
        done = "yes" if result.complete else "" if result.broken else "no"
        numbers = (f"{result.states:,}", f"{result.steps:,}", str(result.depth), done, f"{result.seconds:.1f}")
        table.add_row(config.name, result.broken or "nothing", *numbers, style=style)
        if result.broken and (trace or not as_it_should):
            console.print(f"{config.name}: {result.broken}", *result.trace, sep="\n", markup=False, highlight=False)
    console.print(table)
    sys.exit(failed)


def _explore(console: Console, config: Config, seconds: float) -> Result:
    with console.status(config.name) as status:

        def show(now: Progress) -> None:
            rate = now.states / max(now.seconds, 0.001)
            status.update(
                f"{config.name}: {now.states:,} states, depth {now.depth}, {now.frontier:,} to go, {rate:,.0f} states/s"
            )

        return explore(config, most_seconds=seconds, progress=show)


if __name__ == "__main__":
    main()
