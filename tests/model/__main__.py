"""`python -m tests.model [--large] [--mutants] [--only TEXT]`: explore configurations, on every processor.

A configuration that is large takes gigabytes and an hour; stop it with --minutes or --states, and the table says that
it was not explored completely.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, MutableMapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import Manager
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.model import configurations as one_budget
from tests.model.budgets import configurations as several
from tests.model.budgets.state import Config as SeveralBudgets
from tests.model.explore import ONE_BUDGET, Progress, Result, explore

Board = MutableMapping[str, Progress]


def run(config: Any, promise: str, states: int, minutes: float, board: Board) -> Result:
    """Explore one configuration, and write on the board how far it is."""
    last = 0.0

    def tell(progress: Progress) -> None:
        nonlocal last
        if progress.seconds - last >= 0.5:
            board[config.name], last = progress, progress.seconds

    rules = several.RULES if isinstance(config, SeveralBudgets) else ONE_BUDGET
    return explore(config, promise, rules, most_states=states, most_seconds=minutes * 60, progress=tell)


def running(board: Board, done: Iterable[str]) -> Table:
    """What is being explored now."""
    table = Table(box=None)
    table.add_column("exploring")
    for column in ("states", "depth", "states/s", "frontier", "seconds"):
        table.add_column(column, justify="right")
    for name, at in sorted(set(dict(board).items())):
        if name not in done:
            speed = at.states / max(at.seconds, 0.001)
            table.add_row(name, *(f"{n:,.0f}" for n in (at.states, at.depth, speed, at.frontier, at.seconds)))
    return table


def found(results: list[Result], expected: dict[str, str]) -> Table:
    """What was explored, and what it says."""
    table = Table()
    table.add_column("configuration", overflow="fold")
    for column in ("states", "steps", "depth", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("")
    for each in results:
        says = each.broken or ("all seen, nothing broken" if each.complete else "in part, nothing broken")
        style = (
            ""
            if each.broken.startswith(expected[each.config]) and bool(each.broken) == bool(expected[each.config])
            else "red"
        )
        numbers = (f"{each.states:,}", f"{each.steps:,}", str(each.depth), f"{each.seconds:,.1f}")
        table.add_row(each.config, *numbers, says, style=style)
    return table


@click.command()
@click.option("--large", is_flag=True, help="The large configurations instead of the small ones.")
@click.option("--mutants", is_flag=True, help="Leave out guards: how each breaks a promise, step by step.")
@click.option("--only", default="", metavar="TEXT", help="Only configurations whose name contains it.")
@click.option("--states", default=10**9, help="Stop each after so many states.")
@click.option("--minutes", default=10.0**6, help="Stop each after so long.")
@click.option("--processes", default=os.cpu_count() or 1, show_default=True)
def main(large: bool, mutants: bool, only: str, states: int, minutes: float, processes: int) -> None:
    """Explore; ends with status 1 if a promise is broken that should not be, or one is not that should."""
    jobs: list[tuple[Any, str]] = []
    for of in (one_budget, several):
        jobs += [(m.config, m.breaks) for m in of.MUTANTS] if mutants else []
        jobs += [(config, "") for config in (of.LARGE if large else of.SMALL)] if not mutants else []
    jobs = [(config, promise) for config, promise in jobs if only in config.name]
    console = Console()
    results: list[Any] = []
    with Manager() as manager, ProcessPoolExecutor(processes) as pool:
        board: Board = manager.dict()
        waiting: dict[Future[Result], str] = {
            pool.submit(run, config, promise, states, minutes, board): config.name for config, promise in jobs
        }
        with Live(console=console, transient=True, refresh_per_second=4) as live:
            while len(results) < len(jobs):
                results = [future.result() for future in waiting if future.done()]
                live.update(running(board, {each.config for each in results}))
                time.sleep(0.25)
    for each in results:
        if each.trace:
            console.print(f"\n{each.config}: {each.broken}", style="bold", markup=False, highlight=False)
            console.print("\n".join(each.trace), markup=False, highlight=False)
    expected = {config.name: promise for config, promise in jobs}
    console.print(found(results, expected))
    sys.exit(any(bool(each.broken) != bool(expected[each.config]) for each in results))


if __name__ == "__main__":
    main()
