"""The live picture of a replay: a table that fits the terminal, or a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.command_line.output import Bar, table
from worker.replay.plan import PlannedAgent
from worker.replay.watch import Tally, Watch

_LOOK_S = 0.25
_LINE_S = 2.0
_LINES_AROUND = 6
"""Of the picture: everything but titles and the agents' rows, and the terminal's last line."""
_COLUMNS_BESIDE_BAR = 70
_LONGEST_BAR = 80


def show_live(console: Console, watch: Watch, titles: list[str], look: Callable[[], bool]) -> None:
    """Call `look` a few times a second and show what it found, until it says False."""
    if not console.is_terminal:
        return _write_lines(console, watch, look)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while look():
            live.update(_picture(watch, titles, console.width, console.height), refresh=True)
            time.sleep(_LOOK_S)


def _write_lines(console: Console, watch: Watch, look: Callable[[], bool]) -> None:
    next_s = 0.0
    while look():
        if watch.elapsed_s >= next_s:
            next_s = watch.elapsed_s + _LINE_S
            console.print(f"{watch.elapsed_s:5.0f} s  {_sentence(watch)}", soft_wrap=True, highlight=False)
        time.sleep(_LOOK_S)


def _sentence(watch: Watch) -> str:
    calls_rate, settled_rate = watch.rates
    waiting = "?" if watch.waiting is None else f"{watch.waiting:,}"
    return (
        f"{watch.total.calls:,} of {watch.plan.calls:,} calls ({calls_rate:,.0f}/s), "
        f"{watch.settled:,} settled ({settled_rate:,.0f}/s), {waiting} messages wait"
        f"{watch.remark and '; '}{watch.remark}"
    )


def _picture(watch: Watch, titles: list[str], width: int, height: int) -> RenderableType:
    share = watch.total.calls / max(1, watch.plan.calls)
    progress = Table.grid(padding=(0, 1), expand=True)
    progress.add_column(ratio=1)
    progress.add_column(justify="right")
    progress.add_row(ProgressBar(total=1, completed=share), f"{share:4.0%} {watch.elapsed_s:4.0f} s")
    unsettled = watch.total.finalized - watch.settled
    state = "" if share < 1 or not unsettled else f"; {unsettled:,} still to settle"
    sentence = Text(_sentence(watch) + state, no_wrap=True, overflow="ellipsis")
    heading = [Text(title, no_wrap=True, overflow="ellipsis") for title in titles]
    rows = max(1, height - _LINES_AROUND - len(heading))
    return Group(*heading, progress, sentence, Text(), _agents(watch, width, rows))


def _agents(watch: Watch, width: int, rows: int) -> Table:
    """The busiest agents, as planned, so that no row ever jumps; then all of them in one."""
    bar_width = max(8, min(_LONGEST_BAR, width - _COLUMNS_BESIDE_BAR))
    made = table(
        "agent",
        "spent>",
        "cap>",
        "█ spent ▒ leased" if bar_width >= 16 else "█ spent",
        "calls>",
        "refused>",
        "unavailable>",
    )
    total_spent = total_leased = total_cap = 0
    for rank, planned in enumerate(watch.plan.agents):
        spent, leased = _spent_and_leased(watch, planned)
        total_spent, total_leased, total_cap = (
            total_spent + spent,
            total_leased + leased,
            total_cap + planned.cap_micros,
        )
        if rank < rows:
            tally = watch.tally[planned.agent]
            made.add_row(planned.agent, *_row(spent, leased, planned.cap_micros, bar_width, tally))
    count = len(watch.plan.agents)
    name = f"all {count}, {rows} shown" if count > rows else f"all {count}"
    made.add_row(name, *_row(total_spent, total_leased, total_cap, bar_width, watch.total), style="bold")
    return made


def _spent_and_leased(watch: Watch, planned: PlannedAgent) -> tuple[int, int]:
    reading = watch.readings.get(planned.agent)
    return (reading.spent_micros, reading.leased_micros) if reading else (0, 0)


def _row(spent: int, leased: int, cap: int, bar_width: int, tally: Tally) -> list[str | Text | Bar]:
    return [
        _short(spent),
        _short(cap),
        Bar(spent, leased, cap, bar_width),
        f"{tally.calls:,}",
        Text(f"{tally.refused:,}", style="yellow" if tally.refused else "dim"),
        Text(f"{tally.unavailable:,}", style="red" if tally.unavailable else "dim"),
    ]


def _short(amount_micros: int) -> str:
    """To look at, not to count with: rounded down to a hundredth of a cent."""
    return f"${amount_micros // 1_000_000:,}.{amount_micros % 1_000_000 // 100:04d}"
