"""The process that wallets live in: how it begins with a fork, and how it ends.

`atexit` does not run in every child: those of multiprocessing and of Celery's prefork pool leave by `os._exit`. Each
has its own way to announce its end, and is listened to here. docs/how-to/processes.md has a table of what each end
guarantees.
"""

from __future__ import annotations

import atexit
import encodings.idna  # noqa: F401  (else the first connection imports it)
import getpass
import logging
import mmap
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import MutableSequence
from typing import Any, Protocol

from celery.signals import worker_process_shutdown

from daycap.errors import BudgetUnavailable

logger = logging.getLogger("daycap")

END_S = 5.0
"""How long the end of a process may wait until its events are settled, for all wallets together."""

_END = "daycap-end"

_FORK_WAITS_S = 5.0
"""How long a fork waits for a send that is under way: none takes longer, also at a broker that hangs."""

_MADV_WIPEONFORK = 18
"""Python does not name it."""

_BEFORE_QUEUES = -1
"""The place among multiprocessing's finalizers: after its own children have ended, before its queues are waited for."""


class Wallet(Protocol):
    """What a process asks of its wallets."""

    def _forget(self) -> None:
        """In a forked child: share nothing with the parent but the settings."""

    def _end(self, timeout_s: float) -> None:
        """The process ends: close within `timeout_s`, and log what is left."""


class _ByPid:
    """`here`, where the kernel cannot wipe memory: nine times slower."""

    def __init__(self) -> None:
        self[0] = 1

    def __getitem__(self, _: int) -> bool:
        return os.getpid() == self._pid

    def __setitem__(self, _: int, __: int) -> None:
        self._pid = os.getpid()


def _marker() -> Any:
    """A byte that is 1 until a fork, and 0 in the child."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if sys.platform != "linux":
            return _ByPid()
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):
        return _ByPid()
    page[0] = 1
    return page


here: MutableSequence[int] = _marker()
"""`here[0]` is false in a process that was forked and has not called `begin` yet.

Python's own forks do so at once (`os.register_at_fork`); a program that embeds Python, like uwsgi, may fork without it.
"""


class _Whole:
    """A lock that each fork waits for, so that no child inherits half of what is done with it. Threads may nest it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """For threads of the user's, whose signal handlers may raise anywhere: `with` on it alone is safe."""
        self._forking = threading.local()
        self._forks_waiting = 0

    def __enter__(self) -> None:
        if self._forks_waiting:
            time.sleep(0.001)  # A lock goes to whoever comes first, which the thread that just let go of it would be.
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def before_fork(self) -> None:
        self._forks_waiting += 1
        self._forking.has_it = self.lock.acquire(timeout=_FORK_WAITS_S)

    def after_fork(self) -> None:
        self._forks_waiting -= 1
        if self._forking.has_it:
            self.lock.release()

    def in_child(self) -> None:
        self.__init__()  # type: ignore[misc]  # Should the fork have waited in vain, nobody would ever let go.


whole = _Whole()
"""Held while something is done of which a child must not inherit half: imports, connecting, and whatever else libraries
lock, or keep for the whole process."""

_wallets: weakref.WeakSet[Wallet] = weakref.WeakSet()
_finalizers: dict[str, Any] = {}
_beginning = threading.RLock()


def me() -> str:
    """Who changes the ledger, for the record: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def watch(wallet: Wallet) -> None:
    """Tell this wallet of forks, and of the process's end."""
    _wallets.add(wallet)


def wallets() -> list[Wallet]:
    """Those that are watched."""
    return list(_wallets)


def begin() -> None:
    """In a forked child: have every wallet forget what belongs to the parent."""
    with _beginning:
        if here[0]:
            return
        _finalizers.clear()
        for wallet in wallets():
            wallet._forget()
        here[0] = 1


def check() -> None:
    """Make sure that the end of this process will be heard of. To be called before money is held.

    Raises `BudgetUnavailable` where no thread could send what is spent.
    """
    if not here[0]:
        begin()
    if (why := without_threads()) is not None:
        raise BudgetUnavailable(why)
    _heed_the_end_of_a_thread()
    for name, end in (("multiprocessing", _end_after_threads), ("billiard", _end)):
        process, util = sys.modules.get(f"{name}.process"), sys.modules.get(f"{name}.util")
        if process is None or util is None or not process.current_process()._identity:
            continue  # It has not begun this process.
        finalizer = _finalizers.get(name)
        if finalizer is None or not finalizer.still_active():  # It forgets those from before the child was set up.
            _finalizers[name] = util.Finalize(None, end, exitpriority=_BEFORE_QUEUES)
        if util.is_exiting():
            _heed_the_end_of_threads()


def _heed_the_end_of_threads() -> None:
    """The child's function has returned, and a thread of it lives on: no finalizer may be called any more."""
    if threading.current_thread() is threading.main_thread() or _awaited(daemon=False):
        return
    try:
        threading.Thread(target=_wait_and_end, name=_END, daemon=False).start()
    except RuntimeError as error:
        raise BudgetUnavailable(f"the process ends, so nothing would be sent: {error}") from error


def _awaited(*, daemon: bool) -> bool:
    """Whether a thread of ours waits for the end of this process."""
    return any(thread.name == _END and thread.daemon is daemon for thread in threading.enumerate())


def without_threads() -> str | None:
    """Why no thread should be started in this process now, so that nothing would be sent; None where it can."""
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        return None
    if not uwsgi.has_threads:
        return "uwsgi runs no threads, so nothing would be sent: start it with --enable-threads"
    forks = uwsgi.masterpid() == os.getpid() or ((uwsgi.worker_id(), uwsgi.masterpid()) == (0, 0) and uwsgi.numproc > 1)
    if forks and "py-call-uwsgi-fork-hooks" not in uwsgi.opt:
        return (
            "uwsgi forks its workers from this process without telling Python, which no thread outlives: reserve in a "
            "worker, or start uwsgi with --lazy-apps or --py-call-uwsgi-fork-hooks"
        )
    return None


def _end(*_: object, **__: object) -> None:
    """Close every wallet; one that needs little time leaves more to the others.

    What a signal's handler raises meanwhile (SystemExit, KeyboardInterrupt) is raised when all are closed.
    """
    if not here[0]:
        begin()
    end_s, left, raised = time.monotonic() + END_S, wallets(), None
    while left:
        try:
            left[-1]._end(max(0.0, end_s - time.monotonic()) / len(left))
        except Exception:
            logger.exception("closing a wallet at the end of the process failed")
        except BaseException as error:
            raised = error
            if time.monotonic() < end_s:
                continue
        left.pop()
    if raised is not None:
        raise raised


def _end_after_threads() -> None:
    """A child of multiprocessing waits for its threads only after this, and then leaves at once."""
    if not _others():
        _end()
        return
    try:
        threading.Thread(target=_wait_and_end, name=_END, daemon=False).start()
    except RuntimeError:
        _end()


def _heed_the_end_of_a_thread() -> None:
    """Of a process that a thread forked, Python does not notice the end: it is over when its last thread returns."""
    main = threading.main_thread()
    if isinstance(main, threading._MainThread):  # type: ignore[attr-defined]
        return
    if _awaited(daemon=True):
        return

    def work() -> None:
        main.join()
        _wait_and_end()

    threading.Thread(target=work, name=_END, daemon=True).start()


def _wait_and_end() -> None:
    while others := _others():
        for thread in others:
            thread.join()
    _end()


def _others() -> list[threading.Thread]:
    """The threads that the process's end waits for."""
    own = (threading.current_thread(), threading.main_thread())
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in own]


def _after_fork() -> None:
    """Begin anew in a forked child, even if a signal's handler raises meanwhile: Python loses what a hook raises."""
    global _beginning  # noqa: PLW0603  (a thread of the parent may have held it)
    raised: BaseException | None = None
    while not here[0]:
        try:
            whole.in_child()
            _beginning = threading.RLock()
            begin()
        except Exception:
            raise
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


os.register_at_fork(before=whole.before_fork, after_in_parent=whole.after_fork, after_in_child=_after_fork)
atexit.register(_end)
worker_process_shutdown.connect(_end, weak=False)
