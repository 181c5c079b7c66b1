"""What the command line shows, in a narrow and in a wide terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from daycap.cli.agents import _status_table
from daycap.cli.output import Bar, table

CAP = 5_000_000


def shown(what: RenderableType, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(what)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    return lines


def account(agent: str, spent: int, leased: int = 0) -> dict[str, Any]:
    return {
        "agent": agent,
        "status": "active",
        "cap_micros": CAP,
        "spent_micros": spent,
        "leased_micros": leased,
        "remaining_micros": CAP - spent - leased,
        "counter": "open",
    }


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize(("spent", "leased"), [(0, 0), (3_900_000, 0), (2_000_000, 500_000), (CAP - 1, 0), (CAP, 0)])
def test_bars_show_the_share_of_the_cap(width: int, spent: int, leased: int) -> None:
    (line,) = [line for line in shown(_status_table([account("agent-7", spent, leased)]), width) if "$" in line]
    solid, light, free = (line.count(cell) for cell in "█▒░")
    cells = solid + light + free
    assert 6 <= cells <= 24
    assert 0 <= spent / CAP - solid / cells < 1 / cells
    assert abs(leased / CAP - light / cells) < 1 / cells
    assert (free == 0) == (spent == CAP)


@pytest.mark.parametrize("width", [6, 7, 24, 80])
def test_a_bar_is_never_cut(width: int) -> None:
    (line,) = shown(Bar(78, 0, 100), width)
    assert (line.count("█"), len(line)) == (min(width, 24) * 78 // 100, min(width, 24))


def test_without_a_cap_there_is_no_bar() -> None:
    assert shown(Bar(0, 0, 0), 80) == ["-" * 24]


@pytest.mark.parametrize("width", [80, 160])
def test_names_are_folded_and_not_cut(width: int) -> None:
    names = [f"agent-{'of-production-' * 5}{number}" for number in (1, 2)]
    lines = shown(_status_table([account(name, 1) for name in names]), width)
    whole = "".join(line[: lines[0].index("status")].strip() for line in lines[1:])
    assert all(name in whole for name in names)


def test_a_number_that_is_cut_looks_so() -> None:
    made = table("amount>", "amount>")
    made.add_row("$1,234.567890", "$1,234.567890")
    assert all("…" in word for word in shown(made, 20)[1].split())
