"""The runner dies, with calls under way and with events that nobody has settled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT
from tests.spine import Spine

M = 1_000_000

_SPEND_AND_DIE = """
import os, signal, sys, time
from daycap import Wallet
wallet = Wallet.from_env()
for _ in range(40):
    wallet.reserve("agent-7", 1_000).finalize(700)
while sys.argv[1] == "sent" and wallet.stats().waiting:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_runner(environment: dict[str, str], when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SPEND_AND_DIE, when], cwd=ROOT, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_next_runner_settles_the_killed_ones_outbox(spine: Spine, tmp_path: Path) -> None:
    """P7: the broker was away when the runner was killed, so its events were nowhere but in the outbox."""
    agent, outbox = spine.add("agent-7", 5 * M), tmp_path / "outbox"
    without_broker = {"DAYCAP_BROKER_URL": "redis://127.0.0.1:1/0", "DAYCAP_OUTBOX": str(outbox)}
    killed_runner({**spine.environment, **without_broker}, "finalized")
    assert spine.day_row(agent)["settled_count"] == 0

    wallet = spine.wallet(outbox=str(outbox))

    assert wallet.flush(timeout=30) == ()
    row = spine.day_row(agent)
    assert (row["settled_count"], row["spent_micros"]) == (40, 40 * 700)
    assert list(outbox.iterdir()) == []


def test_events_that_were_settled_and_are_sent_again_change_nothing(spine: Spine, tmp_path: Path) -> None:
    """P2: whoever adopts an outbox cannot know what the dead process's events became."""
    agent, outbox = spine.add("agent-7", 5 * M), tmp_path / "outbox"
    killed_runner({**spine.environment, "DAYCAP_OUTBOX": str(outbox)}, "sent")
    spine.wait_for(lambda: spine.day_row(agent)["settled_count"] == 40)

    assert spine.wallet(outbox=str(outbox)).flush(timeout=30) == ()

    row = spine.day_row(agent)
    assert (row["settled_count"], row["spent_micros"]) == (40, 40 * 700)
