"""The outbox keeps events over the death of the process that made them, and over a full disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daycap import InvalidSetting, OutboxFull, Settings, Wallet
from daycap.delivery.outbox import SEGMENT_BYTES, Outbox
from daycap.protocol.counter import LeaseKey
from daycap.protocol.wire import FinalizeEvent
from tests.unit.conftest import DAY, ROOM, Opened, made


@pytest.fixture
def left_behind(directory: Path) -> list[FinalizeEvent]:
    """What a process wrote before it was killed: three events."""
    events = [made(number) for number in (1, 2, 3)]
    done = subprocess.run([sys.executable, "-c", _WRITE_AND_DIE, directory], check=False)
    assert done.returncode == -signal.SIGKILL
    return events


_WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from daycap.delivery.outbox import Outbox
from tests.unit.conftest import made
outbox = Outbox(Path(sys.argv[1]), 1 << 24)
for number in (1, 2, 3):
    outbox.append(made(number))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_events_of_a_killed_process_are_adopted_once(
    directory: Path, left_behind: list[FinalizeEvent], opened: Opened
) -> None:
    outbox, other = opened(), opened()

    (adopted,) = outbox.adopt()

    assert adopted.events == left_behind
    assert other.adopt() == []
    adopted.close()
    (again,) = other.adopt()
    assert again.events == left_behind, "what the adopter did not see settled is left to the next one"
    again.close()


def test_adopted_events_go_when_they_are_settled(
    directory: Path, left_behind: list[FinalizeEvent], opened: Opened
) -> None:
    outbox = opened()
    (adopted,) = outbox.adopt()
    lease = LeaseKey("agent-7", DAY, "a" * 26)

    adopted.settled(lease, 2)
    assert adopted.events == left_behind[2:]
    adopted.settled(lease, 3)
    adopted.close()

    assert adopted.events == []
    assert outbox.adopt() == []
    assert list(directory.iterdir()) == []


def test_partial_line_is_no_event(directory: Path, opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    dead = directory / "1-dead"
    dead.mkdir(parents=True)
    (dead / "lock").touch()
    (dead / "00000000.events").write_bytes(b'not an event\nnor this\n{"v": 1, "reserv' + bytes(100))

    outbox = opened()
    (adopted,) = outbox.adopt()
    assert adopted.events == []
    adopted.close()

    assert outbox.adopt() == []
    assert (dead / "00000000.events").is_file()
    assert [record.getMessage()[:8] for record in caplog.records] == ["2 lines "]


def test_settled_process_leaves_no_file(directory: Path, opened: Opened) -> None:
    outbox, other = opened(), opened()
    outbox.append(made(1))
    assert other.adopt() == outbox.adopt() == []

    outbox.settled(made(1))
    outbox.close()

    assert list(directory.iterdir()) == []


def test_files_go_when_their_events_are_settled(directory: Path, opened: Opened) -> None:
    outbox = opened()
    events = [made(number) for number in range(1, 5_001)]
    for event in events:
        outbox.append(event)
    assert len(list(directory.glob("*/*.events"))) > 3

    for event in events:
        outbox.settled(event)

    assert len(list(directory.glob("*/*.events"))) == 1


def test_a_full_outbox_loses_nothing_and_says_so(directory: Path, opened: Opened) -> None:
    """P7: at the limit no more is reserved; what was held is still written."""
    outbox = opened(SEGMENT_BYTES)
    outbox.append(made(1))

    assert outbox.full
    outbox.append(made(2))
    outbox.close()
    (adopted,) = opened().adopt()
    assert [event.number for event in adopted.events] == [1, 2]
    adopted.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_full_disk_keeps_events_in_memory(directory: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened) -> None:
    outbox = opened()
    directory.rmdir()  # Nothing can be made in a directory that is not there.
    outbox.append(made(1))
    outbox.append(made(2))
    assert (outbox.full, outbox.failures) == (True, 2)

    directory.mkdir()
    outbox.retry()

    assert not outbox.full
    outbox.close()
    (adopted,) = opened().adopt()
    assert [event.number for event in adopted.events] == [1, 2]
    adopted.close()


def test_directory_that_was_removed_is_made_again(directory: Path, opened: Opened) -> None:
    outbox = opened()
    outbox.append(made(1))
    shutil.rmtree(directory)
    events = [made(number) for number in range(2, 2_000)]
    for event in events:
        outbox.append(event)
    assert outbox.full

    directory.mkdir()
    outbox.retry()

    assert not outbox.full
    outbox.close()
    (adopted,) = opened().adopt()
    assert adopted.events[-1] == events[-1]
    adopted.close()


def test_relative_directory_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    outbox = Outbox(Path("outbox"), ROOM)
    monkeypatch.chdir("elsewhere")

    outbox.append(made(1))

    assert not outbox.full
    assert list(tmp_path.glob("outbox/*/*.events"))
    outbox.settled(made(1))
    outbox.close()


def test_a_forked_child_leaves_its_parents_outbox_alone(directory: Path, opened: Opened) -> None:
    outbox = opened()
    outbox.append(made(1))
    if (child := os.fork()) == 0:
        outbox.forget()
        outbox.append(made(1, "b" * 26))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

    outbox.append(made(2))
    (of_the_child,) = outbox.adopt()
    assert [event.lease for event in of_the_child.events] == ["b" * 26]
    assert opened().adopt() == [], "the parent still has the lock"
    of_the_child.close()


def test_reserve_says_that_the_outbox_is_full(directory: Path) -> None:
    settings = Settings(outbox=str(directory), outbox_megabytes=0, broker_url="redis://127.0.0.1:1/0")
    wallet = Wallet.from_settings(settings, caps={"agent-7": 1_000_000})
    held = wallet.reserve("agent-7", 1_000)
    held.finalize(1_000)

    with pytest.raises(OutboxFull, match="outbox"):
        wallet.reserve("agent-7", 1_000)
    assert wallet.close(timeout=0) == (held.id,)


def test_an_outbox_needs_a_broker_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="DAYCAP_BROKER_URL"):
        Wallet.from_settings(Settings(outbox=str(tmp_path)), caps={"a": 1})
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSetting, match="DAYCAP_OUTBOX"):
        Outbox(tmp_path / "file" / "outbox", ROOM)
