"""`python -m tests.simulation [--seeds N] [--first SEED] [--scenario NAME]`: run many seeds, on every processor.

A seed that breaks a promise is printed with the last of its steps; the same command with `--first SEED --seeds 1`
takes the same steps again.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.seeds import SCENARIOS, BrokenPromise, Seeds

_AT_ONCE = 20


def run_some(scenario: str, first: int, count: int) -> tuple[int, int, list[str]]:
    """How many seeds were run, how many steps they took, what they broke."""
    steps, broken = 0, []
    with Seeds() as seeds:
        for seed in range(first, first + count):
            try:
                steps += len(seeds.run(scenario, seed).trace)
            except BrokenPromise as error:
                broken.append(str(error))
    return count, steps, broken


@click.command()
@click.option("--seeds", default=10_000, show_default=True, help="How many, shared by the scenarios.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--scenario", type=click.Choice(list(SCENARIOS)), help="Only this one.")
@click.option("--processes", default=os.cpu_count() or 1, show_default=True)
def main(seeds: int, first: int, scenario: str | None, processes: int) -> None:
    """Run seeds; ends with status 1 if one broke a promise."""
    scenarios = [scenario] if scenario else list(SCENARIOS)
    each = -(-seeds // len(scenarios))
    jobs = [
        (name, start, min(_AT_ONCE, first + each - start))
        for start in range(first, first + each, _AT_ONCE)
        for name in scenarios
    ]
    console = Console()
    began, steps, done, broken = time.monotonic(), 0, 0, []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProcessPoolExecutor(processes) as pool, Progress(*columns, console=console) as progress:
        task = progress.add_task("seeds", total=each * len(scenarios))
        waiting = iter(jobs)
        running = {pool.submit(run_some, *job) for job in islice(waiting, processes * 2)}
        while running:
            finished = next(as_completed(running))
            running.remove(finished)
            running |= {pool.submit(run_some, *job) for job in islice(waiting, 1)}
            count, more, found = finished.result()
            done, steps = done + count, steps + more
            broken += found
            progress.update(task, completed=done, description=f"seeds, {len(broken)} broke a promise,")
    for text in broken:
        console.print(text, style="red", markup=False, highlight=False)
    seconds = time.monotonic() - began
    console.print(f"{done:,} seeds, {steps:,} steps, {len(broken)} broke a promise, {seconds:,.0f} s")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
