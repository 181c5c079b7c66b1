"""The lock of a SQLite ledger: either one embedded wallet or any number of workers may lend from it.

It is an `flock` on a file beside the ledger. The kernel releases it however the holder ends, even by kill -9. The lock
file is never removed: a process that waits for a removed file would not see the next holder. Readers take no lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from daycap.errors import InvalidSetting

_LONGEST_NOTE = 300


class LedgerInUse(InvalidSetting):
    """another process is using this ledger"""


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite ledger, absolute and without symlinks; None if `url` does not name a plain file."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return None
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    if str(parsed.database).startswith("file:"):
        return None
    return Path(str(parsed.database)).resolve()


def holder_of(file: Path) -> str | None:
    """Return who uses the ledger in `file`, as the holder of the lock wrote it; None if nobody does.

    Takes a free lock for a moment. Raises `OSError` if the lock's file cannot be read.
    """
    try:
        descriptor = os.open(_lock_path(file), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _note(descriptor)
    finally:
        os.close(descriptor)
    return None


def _lock_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.lock")


def _note(descriptor: int) -> str:
    """Return what the holder wrote into the lock's file."""
    return os.pread(descriptor, _LONGEST_NOTE, 0).decode(errors="replace").strip() or "another process"


class LedgerLock:
    """The lock of the ledger in `file`: exclusive for a wallet, `shared` for workers. Not thread-safe."""

    def __init__(self, file: Path, *, shared: bool = False) -> None:
        self._file = file
        self._path = _lock_path(file)
        self._shared = shared
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock without waiting. Returns False if this process already had it.

        Raises `LedgerInUse` if another process has it, and `InvalidSetting` if the lock's file cannot be opened.
        """
        if self._descriptor is not None and self._is_mine(self._descriptor):
            return False
        self.release()
        try:
            descriptor = self._open()
        except OSError as error:
            raise InvalidSetting(f"DAYCAP_LEDGER_URL: cannot open {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _note(descriptor)
            os.close(descriptor)
            raise LedgerInUse(self._refusal(holder)) from None
        except OSError as error:
            os.close(descriptor)
            raise InvalidSetting(f"DAYCAP_LEDGER_URL: cannot lock {self._path}: {error.strerror}") from error
        self._descriptor = descriptor
        self._sign(descriptor)
        return True

    def release(self) -> None:
        """Release the lock. In a forked child this closes the inherited descriptor; the parent keeps the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)  # Not LOCK_UN, which would free it for the parent too.

    def _open(self) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        except OSError as error:
            if error.errno != errno.EROFS or not self._path.exists():
                raise
        # The disk may be read-only for a while. flock needs no write access, and the lock stays when the disk recovers.
        return os.open(self._path, os.O_RDONLY | flags)

    def _is_mine(self, descriptor: int) -> bool:
        """Return whether the path still names the locked file."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except OSError:
            return False

    def _sign(self, descriptor: int) -> None:
        """Write the holder into the file. With several workers it names the last one that started."""
        kind = "a worker" if self._shared else "a wallet"
        with suppress(OSError):  # The disk may be full; the lock holds anyway.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{kind} (process {os.getpid()} on {socket.gethostname()})\n".encode(), 0)

    def _refusal(self, holder: str) -> str:
        in_use = f"the ledger {self._file} is in use by {holder}"
        if self._shared:
            return f"{in_use}: stop that program and restart it with DAYCAP_REDIS_URL and DAYCAP_BROKER_URL"
        return (
            f"{in_use}; without Redis only one process can lend from it: stop that one, or set DAYCAP_REDIS_URL and "
            "DAYCAP_BROKER_URL and start a worker to share budgets among processes"
        )
