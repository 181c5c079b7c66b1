"""The outbox's files: none goes too early or stays for ever, and no trouble with them reaches the runner."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daycap.delivery.outbox import SEGMENT_BYTES, AbandonedOutbox, Outbox
from daycap.protocol.counter import LeaseKey
from daycap.protocol.wire import FinalizeEvent
from tests.unit.conftest import DAY, Opened, made

LEASE, ANOTHER = "a" * 26, "b" * 26


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*.events"))


def fill(outbox: Outbox, directory: Path, count: int = 2) -> list[FinalizeEvent]:
    """Write until there are so many files. The last event of those returned stands in the last file."""
    written: list[FinalizeEvent] = []
    while len(files(directory)) < count:
        assert len(written) < 3_000
        written.append(made(len(written) + 1))
        outbox.append(written[-1])
    return written


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can be as large as one of the outbox's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT_BYTES // 2, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def forked(in_the_child: Callable[[], None]) -> Iterator[None]:
    """While a child lives that has done this."""
    read, write = os.pipe()
    done, tell = os.pipe()
    if (child := os.fork()) == 0:
        sys.unraisablehook = lambda _: os._exit(3)  # A file that is left open is a warning, and so an error.
        try:
            in_the_child()
            os.close(write)
            os.write(tell, b".")
            os.read(read, 1)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        assert os.read(done, 1) == b"."
        yield
    finally:
        for end in (read, write, done):
            os.close(end)
        os.waitpid(child, 0)


def test_a_file_goes_with_its_last_event_and_not_before(directory: Path, opened: Opened) -> None:
    outbox = opened()
    *in_the_first, _ = fill(outbox, directory)
    first, second = files(directory)

    for event in in_the_first[:-1]:
        outbox.settled(event)
        assert first.exists()
    outbox.settled(in_the_first[-1])

    assert files(directory) == [second]


@pytest.mark.parametrize("kept", [0, 1])
def test_settled_last_file_goes_with_the_next(directory: Path, opened: Opened, kept: int) -> None:
    outbox = opened(2 * SEGMENT_BYTES)
    first = [made(number) for number in range(1, 101)]
    for event in first:
        outbox.append(event)
    for event in first[kept:]:
        outbox.settled(event)
    assert len(files(directory)) == 1

    for number in range(1_001, 4_000):
        outbox.append(made(number))
        outbox.settled(made(number))
        if files(directory)[-1].name != "00000000.events":
            break

    assert len(files(directory)) == 1 + kept
    assert outbox.full == bool(kept)


def test_it_is_full_until_files_have_gone(directory: Path, opened: Opened) -> None:
    outbox = opened(2 * SEGMENT_BYTES)
    outbox.append(made(10_001))
    assert not outbox.full
    *in_the_first, _ = fill(outbox, directory)
    assert outbox.full
    outbox.retry()
    assert outbox.full

    for event in [made(10_001), *in_the_first]:
        outbox.settled(event)
    outbox.retry()

    assert not outbox.full


def test_events_are_adopted_in_the_order_in_which_they_were_written(directory: Path, opened: Opened) -> None:
    outbox = opened()
    written = [made(number) for number in range(1, 3_001)]
    for event in written:
        outbox.append(event)
    assert len(files(directory)) > 2
    outbox.close()

    (adopted,) = opened().adopt()
    assert adopted.events == written
    adopted.close()


def test_only_its_owner_may_look_into_an_outbox(directory: Path, opened: Opened) -> None:
    outbox = opened()
    outbox.append(made(1))
    (own,) = directory.iterdir()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_the_directory_is_made_with_those_above_it(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "var" / "lib" / "outbox", SEGMENT_BYTES)
    outbox.append(made(1))
    assert (tmp_path / "var" / "lib" / "outbox").is_dir()
    outbox.settled(made(1))
    outbox.close()


# --- a disk that refuses ----------------------------------------------------------------------------------


def test_a_full_disk_leaves_no_half_file_and_is_tried_again(
    directory: Path, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = opened()
    with full_disk():
        outbox.append(made(1))
        outbox.append(made(2))
        outbox.retry()
        assert "cannot write the outbox" in caplog.text
        outbox.retry()
    assert (outbox.full, outbox.failures, files(directory)) == (True, 2, [])
    assert caplog.text.count("cannot write the outbox") == 1, "it is said once, not for every event"

    outbox.retry()
    assert not outbox.full
    outbox.append(made(3))
    assert (outbox.full, outbox.failures) == (False, 2)
    outbox.close()

    (adopted,) = opened().adopt()
    assert adopted.events == [made(1), made(2), made(3)]
    adopted.close()


def test_the_next_file_is_made_before_it_is_needed(directory: Path, opened: Opened) -> None:
    outbox = opened()
    many = len(fill(outbox, directory))
    outbox.prepare()
    assert len(files(directory)) == 2, "the last one has just begun"
    for number in range(many + 1, many + many // 2 + 10):
        outbox.append(made(number))

    outbox.prepare()
    outbox.prepare()

    assert len(files(directory)) == 3
    with full_disk():
        for number in range(2 * many, 3 * many - 20):
            outbox.append(made(number))
    assert (len(files(directory)), outbox.failures) == (3, 0)
    outbox.close()
    assert [path.stat().st_size for path in files(directory)] == [SEGMENT_BYTES] * 3


def test_a_file_that_was_made_and_not_needed_goes(directory: Path, opened: Opened) -> None:
    outbox = opened()
    many = len(fill(outbox, directory))
    for number in range(many + 1, many + many // 2 + 10):
        outbox.append(made(number))
    outbox.prepare()

    outbox.close()

    assert len(files(directory)) == 2


def test_what_could_not_be_written_and_is_settled_is_not_written_later(directory: Path, opened: Opened) -> None:
    outbox = opened()
    with full_disk():
        outbox.append(made(1))
    outbox.settled(made(1))

    outbox.retry()

    assert not outbox.full
    outbox.close()
    assert list(directory.iterdir()) == [], "nobody would ever settle it again"


def test_what_could_not_be_written_is_tried_once_more_at_the_end(directory: Path, opened: Opened) -> None:
    outbox = opened()
    with full_disk():
        outbox.append(made(1))

    outbox.close()

    (adopted,) = opened().adopt()
    assert adopted.events == [made(1)]
    adopted.close()


def test_files_that_an_operator_removed_trouble_nobody(directory: Path, opened: Opened) -> None:
    outbox, dead, other = opened(), opened(), opened()
    dead.append(made(1, ANOTHER))
    dead.close()
    _leave_a_broken_line(directory / "0-dead")
    broken, adopted = other.adopt()
    written = fill(outbox, directory, 4)

    shutil.rmtree(directory)

    for event in written:
        outbox.settled(event)
    outbox.close()
    adopted.settled(LeaseKey("agent-7", DAY, ANOTHER), 1)
    adopted.close()
    broken.close()


def _leave_a_broken_line(dead: Path) -> None:
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "00000000.events").write_bytes(b"not an event\n")


# --- other processes --------------------------------------------------------------------------------------


def test_what_ends_after_the_close_is_kept_as_well(directory: Path, opened: Opened) -> None:
    """A live hold may end then. Its event is this process's own, and that of before anybody's."""
    outbox, other = opened(), opened()
    outbox.append(made(1))
    outbox.close()

    outbox.append(made(2))

    (adopted,) = other.adopt()
    assert adopted.events == [made(1)]
    adopted.close()
    outbox.close()
    assert sorted(event.number for each in other.adopt() for event in _closed(each)) == [1, 2]


def _closed(adopted: AbandonedOutbox) -> list[FinalizeEvent]:
    events = adopted.events
    adopted.close()
    return events


def test_child_frees_its_dead_parents_outbox(opened: Opened) -> None:
    outbox, other = opened(), opened()
    outbox.append(made(1))

    with forked(outbox.forget):
        outbox.close()
        (adopted,) = other.adopt()

        with forked(adopted.forget):
            adopted.close()
            (again,) = opened().adopt()
            assert again.events == [made(1)]
            again.close()


# --- what was adopted -------------------------------------------------------------------------------------


@pytest.fixture
def adopted(opened: Opened) -> Iterator[AbandonedOutbox]:
    """Two leases, with an event each."""
    outbox = opened()
    for lease in (LEASE, ANOTHER):
        outbox.append(made(1, lease))
    outbox.close()
    (adopted,) = opened().adopt()
    yield adopted
    adopted.close()


def test_what_is_adopted_is_sent_at_once_and_then_ever_more_seldom(adopted: AbandonedOutbox) -> None:
    assert adopted.sends == 0
    now_ns, waits = 1_000, (10, 20, 40)

    assert adopted.due(now_ns, 10)
    for sends, wait_ns in enumerate(waits, 1):
        assert adopted.sends == sends
        assert adopted.due(now_ns + wait_ns - 1, 10) is False
        now_ns += wait_ns
        assert adopted.due(now_ns, 10)


def test_a_lease_that_is_too_old_is_dropped_with_its_events(adopted: AbandonedOutbox) -> None:
    first, second = (LeaseKey("agent-7", DAY, lease) for lease in (LEASE, ANOTHER))
    assert adopted.leases == [first, second]

    assert adopted.drop(first) == [made(1)]

    assert adopted.leases == [second]
    assert adopted.drop(first) == []
