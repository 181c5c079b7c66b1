"""The names of the tests stay short enough to be read in a report."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

TESTS = Path(__file__).resolve().parent.parent


def test_names_average_under_45_characters() -> None:
    names = [name for file in TESTS.rglob("test_*.py") for name in re.findall(r"\bdef (test_\w+)", file.read_text())]
    assert len(names) > 1000
    assert mean(map(len, names)) < 45, sorted(names, key=len)[-10:]
