"""A wallet with a SQLite file of its own is killed at random moments: what was finalized is in the file, each once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from daycap import Settings, Wallet
from daycap.ledger.audit import audit
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from tests.in_loop import FACES
from tests.processes import ROOT

KILLS = 20


@pytest.mark.parametrize("face", FACES)
def test_finalized_costs_survive_kill_9(face: str, tmp_path: Path) -> None:
    settings = Settings(ledger_url=f"sqlite:///{tmp_path / 'spend.db'}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.embedded_spender", face, str(KILLS)],
        cwd=ROOT,
        env={**os.environ, "DAYCAP_LEDGER_URL": settings.ledger_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    finalized = {reservation: int(actual) for reservation, actual in lines}
    assert len(finalized) > KILLS

    with Wallet.from_settings(settings) as wallet:
        wallet.add_agent("agent-7", 1_000_000_000)
        spent = wallet.spent("agent-7").micros

    with closing(sqlite3.connect(tmp_path / "spend.db")) as connection:
        rows = connection.execute("SELECT reservation_id, charged_micros FROM settlements").fetchall()
    settled = dict(rows)
    assert {reservation: settled.get(reservation) for reservation in finalized} == finalized
    assert len(rows) - len(finalized) <= KILLS, "one at most was finalized before its spender could say so"
    assert spent == sum(settled.values())
    assert list((tmp_path / "spend.db-outbox").iterdir()) == []
    with closing(Ledger(settings.ledger_url)) as ledger:
        assert audit(ledger, CounterPublisher(None, settings.terms), settings).differences == []
