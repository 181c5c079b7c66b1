"""What a check of `daycap doctor` found."""

from __future__ import annotations

from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "fail"


class Finding(NamedTuple):
    """What one check found, and what to do about it."""

    part: str
    state: str
    found: str
    advice: str = ""


def dead_letters(count: int) -> Finding:
    """Return the finding for this number of dead letters."""
    if count:
        advice = "daycap dead-letters list; fix the cause, then replay or drop them"
        return Finding("dead letters", WARN, f"{count:,} could not be settled", advice)
    return Finding("dead letters", OK, "none")
