"""The demo's live display: a table that fits the terminal, or an occasional line without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from daycap.cli.output import Bar, table
from demo.watch import Tally, Watch

_LOOK_S = 0.25
_LINE_S = 5.0
_LEGEND = (
    "spent: booked in ledger   cap: most per day   leased: held by runners",
    "calls: made by runners   refused: over the cap   unavailable: no answer, retried",
    "fenced: counter is refilling   not open: counter lost it",
)
_LINES_AROUND = 6 + len(_LEGEND)
"""Lines of the display besides the titles and the agents' rows, with the terminal's last line."""
_MOST_LAST = 30
"""How many agents remain on the terminal at the end, however tall it is."""
_COLUMNS_BESIDE_BAR = 64
_MODEL_COLUMNS = 19
_WIDE = 110
"""The terminal width from which each agent's model is shown."""
_LONGEST_BAR = 80


def show_live(console: Console, watch: Watch, titles: list[str], look: Callable[[], bool]) -> None:
    """Call `look` a few times a second and show what it found, until it returns False."""
    if not console.is_terminal:
        return _write_lines(console, watch, look)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while look():
            rows = console.height - _LINES_AROUND - len(titles) - (2 if watch.remark else 1)
            live.update(_picture(watch, titles, console.width, max(1, rows)), refresh=True)
            time.sleep(_LOOK_S)


def show_last(console: Console, watch: Watch, titles: list[str]) -> None:
    """Leave the final display in the terminal."""
    if console.is_terminal:
        console.print(_picture(watch, titles, console.width, _MOST_LAST))


def _write_lines(console: Console, watch: Watch, look: Callable[[], bool]) -> None:
    next_s = 0.0
    while look():
        if watch.elapsed_s >= next_s:
            next_s = watch.elapsed_s + _LINE_S
            line = "; ".join(filter(None, (_sentence(watch), watch.remark)))
            console.print(f"{watch.elapsed_s:5.0f} s  {line}", soft_wrap=True, highlight=False)
        time.sleep(_LOOK_S)


def _sentence(watch: Watch) -> str:
    calls_rate, settled_rate = watch.rates
    waiting = "?" if watch.waiting is None else f"{watch.waiting:,}"
    return (
        f"{watch.total.calls:,} of {watch.plan.calls:,} calls ({calls_rate:,.0f}/s), "
        f"{watch.settled:,} settled ({settled_rate:,.0f}/s), {waiting} messages wait"
    )


def _picture(watch: Watch, titles: list[str], width: int, rows: int) -> RenderableType:
    share = watch.total.calls / max(1, watch.plan.calls)
    progress = Table.grid(padding=(0, 1), expand=True)
    progress.add_column(ratio=1)
    progress.add_column(justify="right")
    progress.add_row(ProgressBar(total=1, completed=share), f"{share:4.0%} {watch.elapsed_s:4.0f} s")
    unsettled = watch.total.finalized - watch.settled
    state = "" if share < 1 or not unsettled else f"; {unsettled:,} still to settle"
    heading = [_line(title) for title in titles]
    sentences = [_line(_sentence(watch) + state), *([_line(watch.remark)] if watch.remark else [])]
    legend = [_line(line, style="dim") for line in _LEGEND]
    return Group(*heading, progress, *sentences, Text(), _agents(watch, width, rows), Text(), *legend)


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _agents(watch: Watch, width: int, rows: int) -> Table:
    """Show the busiest agents by plan, so that rows never change places, and the month of the team that all are in."""
    wide = width >= _WIDE
    bar_width = max(8, min(_LONGEST_BAR, width - _COLUMNS_BESIDE_BAR - (_MODEL_COLUMNS if wide else 0)))
    grid = table(
        "agent|",
        *(["model|"] if wide else []),
        "spent>",
        "cap>",
        "█ spent ▒ leased" if bar_width >= 16 else "█ spent",
        "calls>",
        "refused>",
        "unavailable>",
    )
    for rank, planned in enumerate(watch.plan.agents):
        spent, reading = watch.spent_micros.get(planned.agent, 0), watch.readings.get(planned.agent)
        leased, cap = reading.leased_micros if reading else 0, planned.cap_micros
        if rank < rows:
            share = _trouble(watch, planned.agent) or Bar(spent, leased, cap, bar_width)
            name: list[str | Text] = [planned.agent, *([Text(planned.model, style="dim")] if wide else [])]
            grid.add_row(*name, *_row(spent, cap, share, watch.tally[planned.agent]))
    count = len(watch.plan.agents)
    all_name = f"team of {count}, {rows} shown" if count > rows else f"team of {count}"
    spent, cap = watch.team_spent_micros, sum(watch.plan.caps.values())
    share_of_all = Bar(spent, watch.team.leased_micros if watch.team else 0, cap, bar_width)
    grid.add_row(
        *([all_name, Text("this month", style="dim")] if wide else [all_name]),
        *_row(spent, cap, share_of_all, watch.total),
        style="bold",
    )
    return grid


def _trouble(watch: Watch, agent: str) -> Text | None:
    """Return the text that replaces the bar while the counter does not know what is leased."""
    if agent not in watch.readings:
        return None
    reading = watch.readings[agent]
    if reading is None:
        return Text("not open", style="red")
    return Text("fenced", style="yellow") if reading.fenced else None


def _row(spent: int, cap: int, share: Text | Bar, tally: Tally) -> list[str | Text | Bar]:
    return [
        _short(spent),
        _short(cap),
        share,
        f"{tally.calls:,}",
        Text(f"{tally.refused:,}", style="yellow" if tally.refused else "dim"),
        Text(f"{tally.unavailable:,}", style="red" if tally.unavailable else "dim"),
    ]


def _short(amount_micros: int) -> str:
    """Format an amount for display, rounded down to a cent."""
    return f"${amount_micros // 1_000_000:,}.{amount_micros % 1_000_000 // 10_000:02d}"
