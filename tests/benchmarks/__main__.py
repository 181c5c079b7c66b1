"""`make bench`: measure daycap against floors in the same run; `--only NAME` for some."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from tests.benchmarks import (
    bench_budgets,
    bench_embedded,
    bench_growth,
    bench_leases,
    bench_memory,
    bench_peers,
    bench_settle,
    bench_shared,
    bench_wallet,
)
from tests.benchmarks.figures import Figure, plot, table

BENCHES: dict[str, Callable[[], Iterator[Figure]]] = {
    "wallet": bench_wallet.figures,
    "budgets": bench_budgets.figures,
    "settle": bench_settle.figures,
    "growth": bench_growth.figures,
    "leases": bench_leases.figures,
    "memory": bench_memory.figures,
    "embedded": bench_embedded.figures,
    "shared": bench_shared.figures,
    "peers": bench_peers.figures,
}


@click.command()
@click.option("--only", type=click.Choice(list(BENCHES)), multiple=True, help="Only this one, or these.")
@click.option("--json", "path", type=Path, help="Write the figures there.")
@click.option("--plot", "picture", type=Path, help="Draw them there, as PNG.")
def main(only: tuple[str, ...], path: Path | None, picture: Path | None) -> None:
    """Show each figure as it is found."""
    console, found = Console(), list[Figure]()
    with Live(table(found), console=console, auto_refresh=False) as live:
        for name in only or BENCHES:
            console.print(f"measuring {name} ...", style="dim")
            for figure in BENCHES[name]():
                found.append(figure)
                live.update(table(found), refresh=True)
    if path:
        machine = {"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine()}
        path.write_text(
            json.dumps({"machine": machine, "figures": [each.as_json() for each in found]}, indent=2) + "\n"
        )
    if picture:
        plot(found, picture)


if __name__ == "__main__":
    main()
