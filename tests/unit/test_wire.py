"""What travels, as people are shown it."""

from __future__ import annotations

import pytest

from daycap.money import MAX_MICROS
from daycap.protocol.wire import shown_costs


def spent(agent: object, actual: object) -> dict[str, object]:
    return {"agent": agent, "actual": actual}


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        ([spent("agent-7", 12_000)], "agent-7 $0.012"),
        ([spent("a", 1_000), spent("b", 9_000_000), spent("a", 2_000)], "b $9.00; a $0.003"),
        ([spent(f"agent-{n}", n) for n in range(1, 6)], "agent-5 $0.000005; agent-4 $0.000004; +3"),
        ([spent("a" * 128, MAX_MICROS)], "a" * 40 + " $9,007,199,254.740991"),
        ([0, None, spent(1, 1), spent("a", "1"), spent("a", -1), spent("a", True), {}], ""),
        ("no list", ""),
        (5, ""),
    ],
)
def test_costs_are_shown_by_agent(events: object, shown: str) -> None:
    assert shown_costs(events) == shown
