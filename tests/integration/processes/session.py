"""Programs of users, each in a session of its own, of which nothing is left when the test ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from tests.processes import ROOT

PROGRAMS = "tests.integration.processes.programs"
PATIENT = {"DAYCAP_REDIS_TIMEOUT_SECONDS": "2", "PYTHONWARNINGS": "ignore"}
"""Many processes start at once here, and from Python 3.12 on os.fork warns of threads."""


def run(program: str, *words: str, environment: Mapping[str, str], timeout_s: float = 60) -> tuple[int, str, str]:
    """The status of a program of `programs/`, what it wrote, and what it said as errors and in logs."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"{PROGRAMS}.{program}", *words],
        cwd=ROOT,
        env={**os.environ, **PATIENT, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        written, said = process.communicate(timeout=timeout_s)
        return process.returncode, written, said
    finally:
        end_session(process)


def end_session(process: subprocess.Popen[str]) -> None:
    """Kill it and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
