"""What `/healthz` and `/readyz` say, and when."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from daycap.ledger.engine import Ledger
from tests.migrated import migrated_sqlite
from worker.health import Health, LedgerProbe


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_loop_without_progress_is_not_alive() -> None:
    clock = Clock()
    health = Health(clock)
    health.note("broker")
    clock.now_s += 59
    assert (health.alive(), health.ready()) == ("", "")
    clock.now_s += 2
    assert health.alive() == health.ready() == "the loop made no progress for 61 s\n"
    health.progressed()
    assert (health.alive(), health.ready()) == ("", "")


def test_every_problem_is_named_until_it_ends() -> None:
    clock = Clock()
    health = Health(clock)
    health.note("settling", "locked", lasts_s=30)
    assert health.ready() == "broker: not connected yet\nsettling: locked\n"
    assert health.alive() == ""
    health.note("broker")
    clock.now_s += 31
    assert health.ready() == ""


def test_a_silent_ledger_does_not_delay_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.health._ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ledger = Ledger(f"postgresql://daycap@127.0.0.1:{silent.getsockname()[1]}/daycap")
        probe, began_s = LedgerProbe(ledger), time.monotonic()
        assert probe() == probe() == "ledger: no answer within 0.2 s\n"
        assert time.monotonic() - began_s < 2
        ledger.close()


def test_a_ledger_that_does_not_fit_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite3"
    ledger = Ledger(f"sqlite:///{file}")
    probe = LedgerProbe(ledger)
    assert "alembic upgrade head" in probe()
    ledger.close()
    file.unlink()
    migrated_sqlite(file)
    assert probe() == ""
    ledger.close()
