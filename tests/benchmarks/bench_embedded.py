"""One process with a SQLite file: what a call costs its caller, and what the file knows after kill -9. Beside peers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.figures import Figure, number
from tests.benchmarks.peers.contenders import Contender
from tests.benchmarks.peers.environments import ROOT, LeftOut, interpreter

CALLS = 1000
CONTENDERS = (
    Contender("daycap", "daycap_file"),
    Contender("tokencap, SQLite", "tokencap_file", ("tokencap==0.2.0",)),
    Contender("interlock-agentgov, SQLite", "agentgov_file", ("interlock-agentgov==1.0.1",)),
)


def figures() -> Iterator[Figure]:
    """The median of one caller's calls, one after the other, each reserved and finalized."""
    for contender in CONTENDERS:
        what = f"{contender.name}: reserve and finalize"
        try:
            yield _figure(what, contender)
        except LeftOut as error:
            yield Figure(what, 0.0, "us", f"left out: {error}")


def _figure(what: str, contender: Contender) -> Figure:
    python = interpreter(contender)
    script = ROOT / "tests" / "benchmarks" / "embedded" / f"{contender.adapter}.py"
    with tempfile.TemporaryDirectory() as name:

        def run(*words: str) -> str:
            env = {**os.environ, "PYTHONPATH": "" if contender.requirements else str(ROOT)}
            done = subprocess.run([python, script, *words], cwd=Path(name), env=env, capture_output=True, check=False)
            return done.stdout.decode()

        found = json.loads(run("spend", str(CALLS)))
        recorded = int(run("read"))
    p99 = statistics.quantiles(found["took_us"], n=100)[98]
    said = f"p99 {number(p99)} us; after kill -9 {recorded:,} micros are recorded of {found['spent']:,} finalized"
    return Figure(what, statistics.median(found["took_us"]), "us", said)
