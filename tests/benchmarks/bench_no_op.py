"""`python -m tests.benchmarks.bench_no_op`: what a worker's settings make a message cost that asks nothing."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tests.benchmarks.bench_settle import no_op, settle_singles
from tests.benchmarks.figures import interleaved, number
from tests.benchmarks.place import place

WORKERS = {
    "daycap's settings": (),
    "prefetch of 4": ("--prefetch-multiplier", "4"),
    "prefork pool of 2": ("-P", "prefork", "-c", "2"),
    "both": ("-P", "prefork", "-c", "2", "--prefetch-multiplier", "4"),
    "acknowledged before it runs": ("--", "task.acks_late=0"),
    "without events for Flower": ("--", "worker.send_task_events=0"),
}


def main() -> None:
    """The median of three rounds in turns, of each worker and of one that settles."""
    shown = Table("the worker", "messages/s", box=None)
    with place() as here:
        here.open_days()
        measures = [lambda options=options: no_op(here, *options) for options in WORKERS.values()]
        *rates, settling = interleaved(3, *measures, lambda: settle_singles(here))
    for name, rate in (*zip(WORKERS, rates, strict=True), ("daycap's settings, settling", settling)):
        shown.add_row(name, number(rate))
    Console().print(shown)


if __name__ == "__main__":
    main()
