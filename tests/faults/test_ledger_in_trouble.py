"""The ledger is busy, read-only, full or gone: events wait in the queue, none is dropped, and people are told."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from daycap.protocol.wire import CONTROL_QUEUE
from tests.faults.ledger import LockedLedger
from tests.faults.load import ACTUAL, spend
from tests.processes import run_daycap
from tests.spine import Spine

M = 1_000_000


@pytest.fixture
def ledger_directory(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own for the ledger."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted as root")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture
def own_settings(ledger_directory: Path, empty_ledger: Path) -> dict[str, str]:
    ledger = shutil.copy(empty_ledger, ledger_directory / "ledger.sqlite3")
    return {"DAYCAP_LEDGER_URL": f"sqlite:///{ledger}", "DAYCAP_RESEND_SECONDS": "60"}


@contextmanager
def locked(_spine: Spine, directory: Path) -> Iterator[None]:
    with LockedLedger(str(directory / "ledger.sqlite3")):
        yield


@contextmanager
def read_only(spine: Spine, directory: Path) -> Iterator[None]:
    """A file system that was mounted read-only, before the worker opened its ledger."""
    worker = spine.worker.container
    worker.kill()
    subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
    worker.start()
    worker.ready()
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(directory)], check=True)


@contextmanager
def full(_spine: Spine, directory: Path) -> Iterator[None]:
    filler, over = directory / "filler", threading.Event()

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while not over.wait(0.001):  # Whenever the ledger's log gets shorter, too.
                for size in (65_536, 1):
                    with suppress(OSError):
                        while file.write(bytes(size)):
                            pass

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        yield
    finally:
        over.set()
        filling.join()
        filler.unlink()


@contextmanager
def moved(_spine: Spine, directory: Path) -> Iterator[None]:
    """Someone has moved the ledger away under the worker, and moves it back."""
    files = list(directory.glob("ledger.*"))
    for file in files:
        file.rename(file.with_name(f"away-{file.name}"))
    yield
    for file in directory.glob("ledger.*"):
        file.unlink()
    for file in files:
        file.with_name(f"away-{file.name}").rename(file)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [(locked, "locked"), (read_only, "readonly"), (full, "(full|disk I/O error)"), (moved, "ledger is empty")],
)
def test_events_wait_until_the_ledger_takes_them(spine: Spine, ledger_directory: Path, trouble: Any, said: str) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    with trouble(spine, ledger_directory):
        spend(wallet, agent, 20)
        spine.wait_for(lambda: "not settled, retrying" in spine.worker.container.logs())

        # Then people are told in words what to do, and nothing is acknowledged
        doctor = run_daycap("doctor", environment=spine.environment, status=1)
        assert re.search(rf"ledger +fail +.*{said}", doctor)
        assert wallet.stats().unsettled == 20

    assert wallet.flush(timeout=20) == ()
    assert spine.settled_once(agent) == (20, 20 * ACTUAL)
    assert wallet.stats().resent == 0
    spine.beat()
    run_daycap("doctor", environment=spine.environment)


def test_admin_without_ledger_explains_itself(spine: Spine, ledger_directory: Path) -> None:
    agent = spine.add("agent-7", 5 * M)
    with full(spine, ledger_directory):
        for task, kwargs in (
            ("daycap.add_agents", {"caps": {f"other-{n}": M for n in range(1000)}, "changed_by": "test"}),
            ("daycap.check_ledger", {}),
        ):
            answer = spine.app.send_task(task, kwargs=kwargs, queue=CONTROL_QUEUE).get(20)
            assert answer["error"] == "LedgerUnavailable"
            assert re.search("full|disk I/O error", answer["message"])
    assert spine.ask("daycap.set_cap", agent=agent, cap_micros=M, changed_by="test")["cap_micros"] == M
    assert "Traceback" not in spine.worker.container.logs()


def test_a_worker_does_not_start_on_a_damaged_ledger_and_says_so(spine: Spine, ledger_directory: Path) -> None:
    agent, wallet, worker = spine.add("agent-7", 5 * M), spine.wallet(), spine.worker.container
    worker.kill()
    spend(wallet, agent, 1)
    ledger, copy = ledger_directory / "ledger.sqlite3", ledger_directory / "copy"
    with sqlite3.connect(ledger) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()  # The last to close it takes the write-ahead log back into the file.
    target.close()
    content = ledger.read_bytes()
    ledger.write_bytes(content[:4096] + bytes(len(content) - 4096))

    worker.start()
    assert worker.process.wait(20) == 1
    assert "daycap worker: the ledger" in worker.logs()
    assert "malformed" in worker.logs()
    copy.replace(ledger)
    worker.restart()

    assert wallet.flush(timeout=20) == ()
    assert spine.settled_once(agent) == (1, ACTUAL)


def test_a_worker_answers_ping_while_its_ledger_is_locked(spine: Spine, locked_ledger: LockedLedger) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    with locked_ledger:
        spend(wallet, agent, 1)
        spine.wait_for(lambda: "daycap.finalize[" in spine.worker.container.logs())
        for _ in range(3):
            assert spine.app.control.inspect(timeout=1).ping()
    assert wallet.flush(timeout=20) == ()


def test_a_worker_is_ended_by_remote_control(spine: Spine, locked_ledger: LockedLedger) -> None:
    with locked_ledger:
        spine.app.control.shutdown()
        assert spine.worker.container.process.wait(20) == 0
