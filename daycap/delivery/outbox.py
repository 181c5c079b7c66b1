"""The outbox: it keeps events on disk until they are settled, so that they survive a killed process.

`DAYCAP_OUTBOX` names a directory that the runner processes of a host may share. Each process has its own directory in
it, locked while the process lives, with memory-mapped files of a fixed size. Writing an event copies about 300 bytes,
which the kernel keeps even if the process is killed right after. (A machine that loses power may lose the last
seconds.) A file is removed when all its events are settled. The next process that opens the outbox adopts what a dead
process left, and resends the events until they are settled.

The directory belongs to one user and is created with mode 0700. A directory that several users may write to (mode
1777, like /tmp) also works: each user's processes adopt only what belongs to that user. Foreign or unreadable files
stay as they are and are logged once.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import secrets
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO

from daycap.errors import DaycapError, InvalidSetting
from daycap.protocol.counter import LeaseKey
from daycap.protocol.resend import resend_wait_ns
from daycap.protocol.wire import FinalizeEvent
from daycap.signal_safe import Busy, Turn

logger = logging.getLogger("daycap")

SEGMENT_BYTES = 256 * 1024
"""The size of a file, enough for about a thousand events."""

_LARGEST_BYTES = 16 * SEGMENT_BYTES
"""A larger file was not written by daycap."""

_RETRY_WAITS_S = 5.0

_NEW = "new-"
_LOCK = "lock"
_SEGMENTS = "*.events"


class _Segment:
    """One file: events as JSON lines, then zeros."""

    def __init__(self, path: Path) -> None:
        with path.open("xb+") as file:
            try:
                file.write(bytes(SEGMENT_BYTES))  # Allocate now: a full disk raises here, not in the mapping.
                file.flush()
                self._bytes = mmap.mmap(file.fileno(), SEGMENT_BYTES)
            except OSError:
                path.unlink()  # Otherwise it blocks the name once there is room.
                raise
        self.path = path
        self.unsettled = 0
        self._end = 0

    def write(self, line: bytes) -> bool:
        """Append `line` if there is room. Returns whether there was."""
        end = self._end + len(line)
        if end > len(self._bytes):
            return False
        self._bytes[self._end : end] = line
        self._end = end
        self.unsettled += 1
        return True

    @property
    def half_full(self) -> bool:
        return self._end > SEGMENT_BYTES // 2

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink()


class Outbox:
    """This process's part of the outbox in `directory`. Threads may share it.

    `full` is True while an event could not be written or `limit_bytes` are in use: then reserve nothing new. An event
    that cannot be written is not refused, because the money is spent: it stays in memory, is sent like any other, and
    is written once there is room. Raises `InvalidSetting` if the directory cannot be created or used.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory = directory.absolute()  # The process may change its directory, as a daemon does.
        self._limit_bytes = limit_bytes
        self._logged: set[Path] = set()
        self._incomplete: set[Path] = set()
        self._begin()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSetting(f"DAYCAP_OUTBOX: cannot create the directory {directory}: {error.strerror}") from error
        effective = os.access in os.supports_effective_ids
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective):
            raise InvalidSetting(
                f"DAYCAP_OUTBOX: this user cannot read and write {directory}; each user needs its own outbox"
            )

    def _begin(self) -> None:
        self._turn = Turn()
        self._left: deque[tuple[Callable[[FinalizeEvent], None], FinalizeEvent]] = deque()
        """Work for the thread that has the turn: `append` and `settled` must not wait, because they are called under
        the lease book's lock, and by code that interrupted a thread in here."""
        self._trouble: OSError | None = None
        self._own: Path | None = None
        self._lock: IO[bytes] | None = None
        self._segments: list[_Segment] = []
        self._spare: _Segment | None = None
        self._numbers = count()
        self._segment_of: dict[str, _Segment] = {}
        self._unwritten: dict[str, FinalizeEvent] = {}
        self.full = False
        self.failures = 0
        """How many events could not be written at once."""

    def append(self, event: FinalizeEvent) -> None:
        """Write `event` to disk. When this returns and `full` is not set, kill -9 does not lose it."""
        self._left.append((self._append, event))
        self._work_off()

    def prepare(self) -> None:
        """Create the next file before it is needed, so that `append` does not wait for the disk."""
        segments = self._segments
        if self._spare is not None or not segments or not segments[-1].half_full:
            return
        with suppress(OSError):  # `append` tries again and reports the error.
            self._spare = _Segment(self._next_path())

    def settled(self, event: FinalizeEvent) -> None:
        """Stop keeping `event`, because the ledger has it."""
        self._left.append((self._settled, event))
        self._work_off()

    def retry(self) -> None:
        """Write what could not be written before, and update `full`."""
        with suppress(Busy):  # The next call tries again.
            self._turn.take(self._retry, _RETRY_WAITS_S)
        self._work_off()
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            logger.error("cannot write the outbox, so events are kept in memory only: %s", trouble)

    def _work_off(self) -> None:
        while self._left and not self._turn.mine():
            try:
                self._turn.take(self._do_what_is_left)
            except Busy:
                return  # The thread that has the turn checks again before it finishes.

    def _do_what_is_left(self) -> None:
        while self._left:
            do, event = self._left[0]
            do(event)  # If it is interrupted, it is done once more.
            self._left.popleft()

    def _append(self, event: FinalizeEvent) -> None:
        if event.reservation in self._segment_of or event.reservation in self._unwritten:
            return
        if self._unwritten or not self._write(event):
            self._unwritten[event.reservation] = event
            self.failures += 1
            self.full = True

    def _settled(self, event: FinalizeEvent) -> None:
        self._unwritten.pop(event.reservation, None)
        segment = self._segment_of.pop(event.reservation, None)
        if segment is None:
            return
        segment.unsettled -= 1
        if segment.unsettled == 0 and segment is not self._segments[-1]:
            segment.remove()
            self._segments.remove(segment)

    def _retry(self) -> None:
        for reservation, event in list(self._unwritten.items()):
            if not self._write(event):
                return
            self._unwritten.pop(reservation, None)
        self.full = self._used_bytes >= self._limit_bytes

    def adopt(self) -> list[AbandonedOutbox]:
        """Lock and return what dead processes left. Skips what cannot be read."""
        found = []
        try:
            shared = bool(self._directory.stat().st_mode & 0o022)
            with os.scandir(self._directory) as entries:
                paths = sorted(
                    self._directory / entry.name
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(_NEW)
                )
        except OSError as error:
            self._leave_alone(self._directory, error)
            return []
        for path in paths:
            if path == self._own or path in self._incomplete:
                continue
            try:
                if shared and path.stat().st_uid != os.geteuid():
                    continue  # Another user's: do not trust its events.
                if (lock := _locked(path / _LOCK)) is None:
                    continue
                found.append(AbandonedOutbox(path, lock))
                if found[-1].incomplete:
                    self._incomplete.add(path)  # The next process may be able to read it.
            except FileNotFoundError:
                continue  # Removed meanwhile, or no longer an outbox.
            except OSError as error:
                self._leave_alone(path, error)
        return found

    def _leave_alone(self, path: Path, error: OSError) -> None:
        if path not in self._logged:
            self._logged.add(path)
            logger.error("cannot adopt the outbox in %s: %s", path, error.strerror)

    def forget(self) -> None:
        """Start empty: everything here belongs to the parent. Called in a forked child."""
        if self._lock is not None:
            self._lock.close()  # The parent's own descriptor keeps the lock.
        self._begin()

    def close(self) -> None:
        """Release the outbox. Unsettled events stay for the next process; without any, the files are removed."""
        self.retry()
        if self._spare is not None:
            self._spare.remove()
        if self._own is not None and not self._segment_of:
            shutil.rmtree(self._own, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        self._begin()

    @property
    def _used_bytes(self) -> int:
        return len(self._segments) * SEGMENT_BYTES

    def _write(self, event: FinalizeEvent) -> bool:
        line = json.dumps(event.to_wire(), separators=(",", ":")).encode() + b"\n"
        if not self._segments or not self._segments[-1].write(line):
            try:
                segment = self._add_segment()
            except OSError as error:
                if not self.full:
                    self._trouble = error  # `retry` logs it: nothing is logged under the lease book's lock.
                return False
            segment.write(line)
        self._segment_of[event.reservation] = self._segments[-1]
        return True

    def _add_segment(self) -> _Segment:
        segment, self._spare = self._spare, None
        if segment is None:
            segment = _Segment(self._next_path())
        for settled in [each for each in self._segments if each.unsettled == 0]:
            settled.remove()
            self._segments.remove(settled)
        self._segments.append(segment)
        self.full = self._used_bytes >= self._limit_bytes
        return segment

    def _next_path(self) -> Path:
        if self._own is not None and not self._own.exists():  # Someone cleaned up old files.
            if self._lock is not None:
                self._lock.close()
            self._own = None
        if self._own is None:
            self._own = self._create_own()
        return self._own / f"{next(self._numbers):08d}.events"

    def _create_own(self) -> Path:
        # No process adopts a directory with this prefix; rename it once the lock is held.
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        new = self._directory / f"{_NEW}{name}"
        new.mkdir(mode=0o700)
        (new / _LOCK).touch(mode=0o600)
        self._lock = _locked(new / _LOCK)
        return new.rename(self._directory / name)


class AbandonedOutbox:
    """The events of a dead process, adopted by this one until they are settled."""

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        self._path = path
        self._lock = lock
        self.sends = 0
        """How often the events were queued for sending."""
        self._sent_ns = 0
        self._events: dict[LeaseKey, dict[int, FinalizeEvent]] = {}
        self._read_files: list[Path] = []
        self._unreadable = 0
        self.incomplete = False
        """Whether there is a file that could not be read."""
        for file in sorted(path.glob(_SEGMENTS)):
            try:
                content = _content(file)
            except OSError as error:
                logger.error("cannot read a file of the outbox, so it stays as it is: %s: %s", file, error.strerror)
                self.incomplete = True
                continue
            before = self._unreadable
            for event in self._read(content):
                self._events.setdefault(LeaseKey(event.agent, event.day, event.lease), {})[event.number] = event
            if self._unreadable == before:
                self._read_files.append(file)

    def due(self, now_ns: int, resend_ns: int) -> bool:
        """Whether it is time to send the events (again); the wait doubles after each send."""
        if self.sends and now_ns - self._sent_ns < resend_wait_ns(resend_ns, self.sends - 1):
            return False
        self.sends += 1
        self._sent_ns = now_ns
        return True

    @property
    def leases(self) -> list[LeaseKey]:
        """The leases with events here."""
        return list(self._events)

    @property
    def events(self) -> list[FinalizeEvent]:
        """The events that are not known to be settled."""
        return [event for events in self._events.values() for event in events.values()]

    def settled(self, lease: LeaseKey, up_to: int) -> None:
        """Drop the lease's events up to number `up_to`: the ledger has them."""
        events = self._events.get(lease, {})
        for number in [number for number in events if number <= up_to]:
            del events[number]
        if not events:
            self._events.pop(lease, None)

    def drop(self, lease: LeaseKey) -> list[FinalizeEvent]:
        """Drop and return a lease's events."""
        return list(self._events.pop(lease, {}).values())

    def forget(self) -> None:
        """Close the lock file: the parent follows these events. Called in a forked child."""
        self._lock.close()

    def close(self) -> None:
        """Remove the files if no events are left in them; otherwise leave them for the next process to adopt.

        Unreadable lines and foreign files stay. Without its lock file the directory is not adopted again; if a file
        could not be opened, the lock file stays for the next process.
        """
        if not self._events:
            if self._unreadable:
                logger.error(
                    "%d lines of the outbox in %s cannot be parsed; the files stay there", self._unreadable, self._path
                )
            for file in (*self._read_files, *([] if self.incomplete else [self._path / _LOCK])):
                with suppress(OSError):
                    file.unlink()
            with suppress(OSError):
                self._path.rmdir()
        self._lock.close()

    def _read(self, content: bytes) -> Iterable[FinalizeEvent]:
        *lines, _ = content.rstrip(b"\0").split(b"\n")
        # The process was killed while writing a last line without a line end: its finalize never returned.
        for line in lines:
            try:
                yield FinalizeEvent.from_wire(json.loads(line))
            except (ValueError, RecursionError, DaycapError):
                self._unreadable += 1


def _locked(path: Path) -> IO[bytes] | None:
    """Open and lock a file, until it is closed or this process ends. Returns None if another process has the lock.

    Raises `OSError` if the file is missing or cannot be opened.
    """
    lock = _opened(path, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError:
        lock.close()
        raise
    return lock


def _content(path: Path) -> bytes:
    with _opened(path, os.O_RDONLY) as file:
        if (size := os.fstat(file.fileno()).st_size) > _LARGEST_BYTES:
            raise OSError(errno.EFBIG, f"{size:,} bytes is too large")
        return file.read()


def _opened(path: Path, flags: int) -> IO[bytes]:
    """Open a regular file, without following a link or blocking on a pipe."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "rb+", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise
