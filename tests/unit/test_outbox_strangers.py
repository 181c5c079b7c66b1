"""What in an outbox's directory is none of ours, or another user's, stays as it is and keeps nobody from starting."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daycap import InvalidSetting
from daycap.delivery.outbox import SEGMENT_BYTES, Outbox
from tests.in_memory import Deployment
from tests.unit.conftest import ROOM, Opened, made

ROOT = os.geteuid() == 0
ONE, OTHER = 60_001, 60_002
"""Users that nobody is."""


def leave(directory: Path, number: int = 1) -> None:
    """What a process leaves that ends with an event which is not settled."""
    outbox = Outbox(directory, ROOM)
    outbox.append(made(number))
    outbox.close()


def bind(path: Path) -> None:
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{short}/socket")  # Its path may have some hundred characters only.
        Path(short, "socket").rename(path)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 * SEGMENT_BYTES)


FILES: dict[str, Callable[[Path], Any]] = {
    "directory": Path.mkdir,
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
    "socket": bind,
    "huge": sparse,
    **({} if ROOT else {"unreadable": lambda path: path.touch(mode=0)}),
}
LINES = {
    "nested": b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "long number": b'{"v": ' + b"9" * 5_000 + b"}\n",
    "no text": b"\xff\xfe\n",
}


def adopted_once(opened: Opened, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The one event that there is is adopted and settled; what was logged, however often it is looked for."""
    outbox = opened()
    with caplog.at_level(logging.ERROR, "daycap"):
        (adopted,) = outbox.adopt()
        assert adopted.events == [made(1)]
        adopted.settled(adopted.leases[0], 1)
        adopted.close()
        for _ in range(2):
            assert outbox.adopt() == []
    return [record.getMessage() for record in caplog.records]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("what", FILES)
def test_strange_files_are_left_alone(
    directory: Path, opened: Opened, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    leave(directory)
    (dead,) = directory.iterdir()
    strange = dead / "00000007.events"
    FILES[what](strange)

    (said,) = adopted_once(opened, caplog)

    assert str(strange) in said
    assert [path.name for path in sorted(dead.iterdir())] == ["00000007.events", "lock"]


@pytest.mark.parametrize("what", LINES)
def test_strange_lines_are_left_alone(
    directory: Path, opened: Opened, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    leave(directory)
    (dead,) = directory.iterdir()
    (dead / "00000007.events").write_bytes(LINES[what])

    (said,) = adopted_once(opened, caplog)

    assert "1 lines of the outbox" in said
    assert [path.name for path in dead.iterdir()] == ["00000007.events"]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("what", sorted(FILES.keys() - {"huge"}))
def test_strange_locks_are_left_alone(
    directory: Path, opened: Opened, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    leave(directory)
    FILES[what](directory / "notes")
    (directory / "strange").mkdir()
    FILES[what](directory / "strange" / "lock")

    said = adopted_once(opened, caplog)

    assert all("strange" in each for each in said)
    assert len(said) <= 1
    assert sorted(path.name for path in directory.iterdir()) == ["notes", "strange"]


def test_a_dead_outboxs_other_files_stay(directory: Path, opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    leave(directory)
    (dead,) = directory.iterdir()
    (dead / "notes.txt").write_text("mine")

    assert adopted_once(opened, caplog) == []

    assert [path.name for path in dead.iterdir()] == ["notes.txt"]


def test_a_file_that_becomes_readable_is_adopted_by_the_next(directory: Path, opened: Opened) -> None:
    leave(directory)
    (dead,) = directory.iterdir()
    (dead / "00000000.events").rename(dead / "aside")
    (dead / "00000000.events").mkdir()
    (first,) = opened().adopt()
    assert first.events == []
    first.close()
    (dead / "00000000.events").rmdir()
    (dead / "aside").rename(dead / "00000000.events")

    (second,) = opened().adopt()

    assert second.events == [made(1)]
    second.close()


@pytest.mark.timeout(30)
def test_a_wallet_starts_and_ends_among_strangers(deployment: Deployment, directory: Path) -> None:
    directory.mkdir()
    for what, make in FILES.items():
        (directory / what).mkdir()
        (directory / what / "lock").touch()
        make(directory / what / "00000000.events")

    wallet = deployment.wallet(Outbox(directory, ROOM))
    wallet.reserve("agent-7", 10).finalize(10)

    assert wallet.flush() == ()
    assert wallet.close() == ()


# --- two users ----------------------------------------------------------------------------------------------


def as_user(user: int, do: Callable[[], Any]) -> Any:
    """What `do` returns in a child process of that user's, or the error that it raises there."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            try:
                said = do()
            except Exception as error:
                said = error
            os.write(write, pickle.dumps(said))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    return said


@pytest.fixture
def everyones() -> Iterator[Path]:
    """A directory that all users may write to, as /tmp."""
    made_there = Path(tempfile.mkdtemp(prefix="daycap-", dir="/tmp"))
    made_there.chmod(0o1777)
    yield made_there
    shutil.rmtree(made_there)


def adopted_in(directory: Path) -> list[int]:
    """The numbers of the events that a process adopts, which leaves one of its own."""
    outbox = Outbox(directory, ROOM)
    numbers = []
    for adopted in outbox.adopt():
        numbers += [event.number for event in adopted.events]
        adopted.close()
    outbox.append(made(os.geteuid() - ONE + 1))
    outbox.close()
    return numbers


@pytest.mark.skipif(not ROOT, reason="only root can be two users")
def test_users_who_share_a_directory_adopt_their_own(everyones: Path) -> None:
    assert as_user(ONE, lambda: adopted_in(everyones)) == []
    assert as_user(OTHER, lambda: adopted_in(everyones)) == []
    assert as_user(ONE, lambda: adopted_in(everyones)) == [1]
    assert as_user(OTHER, lambda: adopted_in(everyones)) == [2]
    assert Outbox(everyones, ROOM).adopt() == [], "root neither"


@pytest.mark.skipif(not ROOT, reason="only root can be two users")
def test_another_users_directory_is_refused(everyones: Path) -> None:
    private = everyones / "outbox"
    assert as_user(ONE, lambda: adopted_in(private)) == []

    error = as_user(OTHER, lambda: adopted_in(private))

    assert isinstance(error, InvalidSetting)
    assert "each user needs its own outbox" in str(error)


@pytest.mark.skipif(ROOT, reason="root may do everything")
def test_a_directory_without_rights_is_refused(directory: Path) -> None:
    directory.mkdir(mode=0o500)
    with pytest.raises(InvalidSetting, match="cannot read and write"):
        Outbox(directory, ROOM)


def test_the_directory_is_made_for_its_user(directory: Path) -> None:
    Outbox(directory, ROOM)
    assert directory.stat().st_mode & 0o777 == 0o700
