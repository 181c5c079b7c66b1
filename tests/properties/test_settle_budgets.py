"""P3 for budgets: what a period has spent follows from what was settled, whatever arrives in whichever batches."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from daycap.ledger import accounts, budgets, groups
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import OpenDays
from daycap.ledger.settle import settle
from daycap.protocol.counter import LeaseTerms
from daycap.protocol.wire import FinalizeEvent, Share
from tests.budget_rows import drawn, figures, recomputed
from tests.migrated import quiet_ledger

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
PROFILE = settings(max_examples=500 if THOROUGH else 12, derandomize=not THOROUGH, database=None, deadline=None)
NOWHERE = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))
DAYS = ("2026-11-24", "2026-11-25")
PERIODS = [("day/1", DAYS[0]), ("day/1", DAYS[1]), ("month/1", "2026-11"), ("watch/1", "once"), ("no/1", "once")]


def share(where: tuple[str, str], held: int | None, leased: bool) -> Share:
    budget, period = where
    return Share(budget, period, f"of-{budget[:-2]}-{period}", held) if leased else Share(budget, period)


SHARES = st.builds(share, st.sampled_from(PERIODS), st.none() | st.integers(0, 40), st.booleans())


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    agent, day, number = draw(st.sampled_from("ab")), draw(st.sampled_from(DAYS)), draw(st.integers(1, 12))
    amounts = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    also = draw(st.lists(SHARES, max_size=3, unique_by=lambda share: share.budget))
    labels = draw(st.sampled_from([(), (("tool", "x"),)]))
    plan = draw(st.integers(0, 2))
    return FinalizeEvent(f"{agent}-{day}", number, number, agent, day, *amounts, 1, tuple(also), plan, labels).to_wire()


@PROFILE
@given(st.lists(st.lists(events(), min_size=1, max_size=8), max_size=8), st.lists(st.integers(0, 120), max_size=3))
def test_spent_is_proven(batches: list[list[dict[str, Any]]], caps: list[int]) -> None:
    with quiet_ledger() as (_, ledger):
        accounts.add(ledger, NOWHERE, {"a": 1000, "b": 50}, "test")
        groups.add(ledger, NOWHERE, "team", ["a", "b"], [], "test")
        for name, facts in {
            "day": {"agent": "a", "cap_micros": 60},
            "month": {"group": "team", "cap_micros": 100, "period": {"period": "month"}},
            "watch": {"group": "team", "cap_micros": 30, "period": {"period": "once"}, "mode": "watch"},
        }.items():
            budgets.add(ledger, NOWHERE, name, facts, "test")
        most = 100
        for nth, batch in enumerate(batches):
            outcome = settle(ledger, batch, OpenDays(*DAYS))
            assert outcome.settled + outcome.duplicates + len(outcome.dead_letters) == len(batch)
            assert figures(ledger) == recomputed(ledger)
            if nth < len(caps):
                budgets.alter(ledger, NOWHERE, "month", {"cap_micros": caps[nth]}, "test")
                most = max(most, caps[nth])
        found, out = figures(ledger), drawn(ledger)
        cap_of = {"day/1": 60, "month/1": most, "watch/1": 30}
        assert all(each.spent <= cap_of[budget] for (budget, _), each in found.items())
        assert all(out.get(where, 0) <= each.spent + each.uncovered for where, each in found.items())
