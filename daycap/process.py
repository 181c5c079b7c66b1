"""The life of the process: forks, and its end.

`atexit` does not run in every child: children of multiprocessing and of Celery's prefork pool leave by `os._exit`.
Each has its own exit hook, and this module registers with all of them. docs/how-to/processes.md has a table of what
each end guarantees.
"""

from __future__ import annotations

import atexit
import encodings.idna  # noqa: F401  (otherwise the first connection imports it)
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
"""How long the process's exit may wait for events to settle, for all wallets together."""

_END = "daycap-end"

_FORK_WAITS_S = 5.0
"""How long a fork waits for a send in progress: no send takes longer, even if the broker hangs."""

_MADV_WIPEONFORK = 18
"""From Linux's `mman.h`; the `mmap` module has no name for it."""

_BEFORE_QUEUES = -1
"""The priority among multiprocessing's finalizers: after its own children end, before it joins its queues."""


class Wallet(Protocol):
    """The part of a wallet that this module calls."""

    def _forget(self) -> None:
        """Drop everything inherited from the parent, except the settings. Called in a forked child."""

    def _end(self, timeout_s: float) -> None:
        """Close within `timeout_s`, because the process ends, and log what is left."""


class _ByPid:
    """A substitute for `here` on kernels that cannot wipe memory on fork; nine times slower."""

    def __init__(self) -> None:
        self[0] = 1

    def __getitem__(self, _: int) -> bool:
        return os.getpid() == self._pid

    def __setitem__(self, _: int, __: int) -> None:
        self._pid = os.getpid()


def _marker() -> Any:
    """Return a byte that is 1 in this process and 0 in a forked child."""
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
"""`here[0]` is false in a forked process that has not called `begin` yet.

Python's own forks call it at once (`os.register_at_fork`). A program that embeds Python, such as uwsgi, may fork
without telling Python.
"""


class _Whole:
    """A reentrant lock that every fork waits for, so that no child inherits a half-finished operation."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """For the user's threads, whose signal handlers may raise anywhere: use a plain `with` on this lock."""
        self._forking = threading.local()
        self._forks_waiting = 0

    def __enter__(self) -> None:
        if self._forks_waiting:
            time.sleep(0.001)  # Otherwise the thread that just released the lock takes it again before the fork can.
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
        self.__init__()  # type: ignore[misc]  # If the fork timed out, no thread here would ever release it.


whole = _Whole()
"""Held during operations that a child must not inherit half-finished: imports, connecting, and anything for which a
library takes a lock or keeps process-wide state."""

_wallets: weakref.WeakSet[Wallet] = weakref.WeakSet()
_finalizers: dict[str, Any] = {}
_beginning = threading.RLock()


def me() -> str:
    """Return user@host, to record who changes the ledger."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def watch(wallet: Wallet) -> None:
    """Notify this wallet of forks and of the process's end."""
    _wallets.add(wallet)


def wallets() -> list[Wallet]:
    """Return the watched wallets."""
    return list(_wallets)


def begin() -> None:
    """Make every wallet forget what belongs to the parent. Called in a forked child."""
    with _beginning:
        if here[0]:
            return
        _finalizers.clear()
        for wallet in wallets():
            wallet._forget()
        here[0] = 1


def check() -> None:
    """Make sure that the wallets are notified when this process ends. Call it before money is held.

    Raises `BudgetUnavailable` if no thread could send what is spent.
    """
    if not here[0]:
        begin()
    if (why := without_threads()) is not None:
        raise BudgetUnavailable(why)
    _watch_forking_thread()
    for name, end in (("multiprocessing", _end_after_threads), ("billiard", _end)):
        process, util = sys.modules.get(f"{name}.process"), sys.modules.get(f"{name}.util")
        if process is None or util is None or not process.current_process()._identity:
            continue  # It did not start this process.
        finalizer = _finalizers.get(name)
        if finalizer is None or not finalizer.still_active():  # Setting up the child clears earlier finalizers.
            _finalizers[name] = util.Finalize(None, end, exitpriority=_BEFORE_QUEUES)
        if util.is_exiting():
            _watch_last_threads()


def _watch_last_threads() -> None:
    """End the wallets after the last thread: the child's function has returned, so finalizers may not run any more."""
    if threading.current_thread() is threading.main_thread() or _awaited(daemon=False):
        return
    try:
        threading.Thread(target=_wait_and_end, name=_END, daemon=False).start()
    except RuntimeError as error:
        raise BudgetUnavailable(f"the process is ending, so no event would be sent: {error}") from error


def _awaited(*, daemon: bool) -> bool:
    """Whether one of our threads waits for the end of this process."""
    return any(thread.name == _END and thread.daemon is daemon for thread in threading.enumerate())


def without_threads() -> str | None:
    """Return why this process must not start a thread now, so that no event would be sent; None if it may."""
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        return None
    if not uwsgi.has_threads:
        return "uwsgi runs without threads, so no event would be sent: start it with --enable-threads"
    forks = uwsgi.masterpid() == os.getpid() or ((uwsgi.worker_id(), uwsgi.masterpid()) == (0, 0) and uwsgi.numproc > 1)
    if forks and "py-call-uwsgi-fork-hooks" not in uwsgi.opt:
        return (
            "uwsgi forks its workers from this process without telling Python, and no thread survives that: reserve "
            "in a worker, or start uwsgi with --lazy-apps or --py-call-uwsgi-fork-hooks"
        )
    return None


def _end(*_: object, **__: object) -> None:
    """Close every wallet; time that one does not need goes to the others.

    If a signal handler raises meanwhile (SystemExit, KeyboardInterrupt), re-raise after all are closed.
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
    """End the wallets after the last thread: a child of multiprocessing joins its threads later, then exits at once."""
    if not _others():
        _end()
        return
    try:
        threading.Thread(target=_wait_and_end, name=_END, daemon=False).start()
    except RuntimeError:
        _end()


def _watch_forking_thread() -> None:
    """Watch a process that a thread forked: it ends when its last thread returns, and Python runs no exit hook."""
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
    """Return the threads that the process's exit waits for."""
    own = (threading.current_thread(), threading.main_thread())
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in own]


def _after_fork() -> None:
    """Start over in a forked child, even if a signal handler raises meanwhile: Python loses what a hook raises."""
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
