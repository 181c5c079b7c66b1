"""The runner of mutants itself: it makes what it says, and sees what a test notices and what none does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import mutants
from tests.mutation.trial import ROOT
from tests.spine import wait_for


def changes(file: str, source: str) -> set[str]:
    content = source.encode()
    return {mutant.of(content).decode() for mutant in mutants(file, content)}


def test_python_mutants_change_one_thing() -> None:
    source = 'def f(a: "int | None"):\n    "Says."\n    logger.info("a %d", 1)\n    return a < 1 or not min(a, b) + b\n'
    before, _ = source.rsplit("    ", 1)
    assert changes("some.py", source) == {
        before + "    " + new + "\n"
        for new in (
            "return None",
            "return (a < 1 and (not min(a, b) + b))",
            "return a <= 1 or not min(a, b) + b",
            "return a < 2 or not min(a, b) + b",
            "return a < 1 or min(a, b) + b",
            "return a < 1 or not min(a, b) - b",
            "return a < 1 or not max(a, b) + b",
        )
    }


def test_lua_mutants_change_one_thing() -> None:
    source = "-- a > 1 and b\nlocal a = math.max(b - 1, 0)\nif not a then\n  x = b\nend\n"
    assert changes("some.lua", source) == {
        source.replace(old, new)
        for old, new in (
            ("math.max", "math.min"),
            ("b - 1", "b + 1"),
            ("b - 1", "b - 2"),
            (", 0)", ", 1)"),
            ("not a", "a"),
            ("x = b", ""),
        )
    }


@pytest.mark.timeout(300)
def test_survivors_of_a_small_file_are_named() -> None:
    """A process of its own: the runner forks, and has loaded nothing of the project before."""
    command = [sys.executable, "-m", "tests.mutation", "--file", "daycap/counters/scripts/read.lua", "--every", "15"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    *_, summary = done.stdout.splitlines()
    assert summary.startswith("daycap/counters/scripts/read.lua: 2 mutants, "), done.stdout + done.stderr
    assert ", 0 killed" not in summary
    assert (", 0 survived" in summary) == (done.returncode == 0)


@pytest.mark.timeout(120)
def test_sigterm_ends_trials_and_removes_trees(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.mutation", "--file", "daycap/counters/scripts/read.lua", "--processes", "1"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}) as runner:
        wait_for(lambda: list(tmp_path.glob("daycap-mutants-*/0/output")), 60)  # A trial has begun.
        runner.terminate()
        assert runner.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
