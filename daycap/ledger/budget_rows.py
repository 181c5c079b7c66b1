"""What the columns of a budget's row mean: its rule, its labels, and the bounds of its periods."""

from __future__ import annotations

import functools
import json

from daycap.clock import DAY_MS
from daycap.periods import PeriodRule
from daycap.protocol.counter import Span
from daycap.protocol.labels import Patterns, scope_patterns

ENDS_AFTER_MS = DAY_MS
"""How long after a budget's removal its periods end at the latest.

Until then calls count that were reserved by an older plan. Then a period that never ends leaves counter and ledger.
"""


MOST_APART_MS = DAY_MS
"""How far the bounds of a period may be from those that a runner computes, whose time zone data is another version."""


@functools.lru_cache(maxsize=1024)
def rule_of(text: str) -> PeriodRule:
    """Decode the rule of a budget's periods from its row."""
    return PeriodRule.from_json(json.loads(text))


@functools.lru_cache(maxsize=1024)
def patterns_of(text: str) -> Patterns:
    """Decode the labels of a budget's scope from its row."""
    return scope_patterns(json.loads(text))


def span_in(rule: str, period: str, removed_at: int | None) -> Span:
    """Return the bounds of a budget's period. Raises `InvalidInput` for an id that its rule does not give."""
    _, start_ms, end_ms = rule_of(rule).named(period)
    if removed_at is not None:
        end_ms = min(end_ms, max(start_ms, removed_at) + ENDS_AFTER_MS)
    return start_ms, end_ms
