"""Runs: budgets of one task, which agents and processes share. A run's id says all that there is to know about it."""

from __future__ import annotations

import base64
import re
from typing import NamedTuple

from daycap.errors import InvalidInput
from daycap.formats import shown
from daycap.money import MAX_MICROS
from daycap.periods import END_MS, PeriodRule

ONCE = "once"
"""The id of a run's only period."""

LONGEST_MS = 366 * 86_400_000
"""How long a run may last."""

_RUN = re.compile(r"run\.[a-z2-7]{16}\.([0-9]{1,16})\.([0-9]{1,15})/1", re.ASCII)


class Run(NamedTuple):
    """A run: its cap, and when it ends on the counter's clock, in milliseconds since 1970."""

    id: str
    cap_micros: int
    end_ms: int

    @property
    def rule(self) -> PeriodRule:
        """The rule of its only period."""
        return PeriodRule(ONCE, until_ms=self.end_ms)


def new_run(cap_micros: int, end_ms: int, random: bytes) -> Run:
    """Create a run. `random` are 10 bytes, never used before.

    Its id, which is also the id of its budget, says cap and end: whoever has it, and the worker that first hears of it,
    need nothing else. With another cap it is another run.
    """
    name = base64.b32encode(random).decode("ascii").lower()
    return Run(f"run.{name}.{cap_micros}.{end_ms}/1", cap_micros, end_ms)


def is_run(owner: str) -> bool:
    """Return whether `owner` is a run's id."""
    return _parsed(owner) is not None


def read_run(run_id: object) -> Run:
    """Return the run with this id. Raises `InvalidInput`."""
    run = _parsed(run_id) if isinstance(run_id, str) else None
    if run is None:
        raise InvalidInput(f"not the id of a run: {shown(run_id, 80)}")
    return run


def _parsed(run_id: str) -> Run | None:
    found = _RUN.fullmatch(run_id)
    if found is None:
        return None
    run = Run(run_id, int(found[1]), int(found[2]))
    return run if run.cap_micros <= MAX_MICROS and 0 < run.end_ms < END_MS else None
