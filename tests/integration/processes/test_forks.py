"""A child that is forked at any moment of its parent's work can reserve and send."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.integration.processes.programs.children import CALLS, COST
from tests.integration.processes.session import run
from tests.processes import ROOT
from tests.spine import Spine

M = 1_000_000
RUNS = 20
SPENDERS = 4
"""Two threads of the parent, and two children."""


def test_fork_during_the_first_send(spine: Spine) -> None:
    agent = spine.add("agent-7", 5_000 * M)

    _, failed, said = run("forks", str(RUNS), "1", environment=spine.environment, timeout_s=110)

    assert (failed.strip(), said) == ("0", "")

    calls = RUNS * SPENDERS * CALLS
    assert spine.settled_once(agent) == (calls, calls * COST)


IMPORTS = """
import asyncio, sys
from tests.integration.processes.programs.children import FACES
wallet = FACES[sys.argv[1]].from_env()
before = set(sys.modules)
day = wallet._counter.now_ms()
if wallet._reader is not None:
    wallet._reader.rows([("agent-7", "2026-03-02")])
if sys.argv[1] == "loop":
    asyncio.run(wallet.spent("agent-7"))
    from daycap.protocol.counter import SyncRequest
    asyncio.run(wallet._in_loop.sync(SyncRequest("agent-7", "2026-03-02", "lease", 0, 0)))
print(sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("broker", ["redis", "amqp"])
@pytest.mark.parametrize("face", ["threads", "loop"])
def test_asking_imports_nothing(spine: Spine, face: str, broker: str) -> None:
    """Whoever asks counter or ledger holds no lock that a fork waits for: it must not be in an import then."""
    spine.add("agent-7", 5 * M)
    command, given = [sys.executable, "-c", IMPORTS, face], {**os.environ, **spine.environment}
    given["DAYCAP_BROKER_URL"] = f"{broker}://127.0.0.1:1"  # Which is not asked.

    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)

    assert (done.stdout.strip(), done.stderr) == ("[]", "")
