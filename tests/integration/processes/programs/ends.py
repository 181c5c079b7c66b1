"""A user's program that spends, as "agent-7", 4 calls of 1,000 micros, and ends in the way that it is told.

`python -m tests.integration.processes.programs.ends WAY FACE`
"""

from __future__ import annotations

import atexit
from collections.abc import Callable

at_last: list[Callable[[], object]] = []
# Registered before daycap's own, so that it runs after it.
atexit.register(lambda: [each() for each in at_last])

import asyncio  # noqa: E402
import ctypes  # noqa: E402
import hashlib  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import billiard  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)  # Whoever started the tests may ignore both: nohup does.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

from daycap import BudgetUnavailable  # noqa: E402
from tests.integration.processes.programs.children import COST, FACES, spend  # noqa: E402

AGENT = "agent-7"

# --- clean ends -------------------------------------------------------------------------------------------------


def returns(wallet: Any) -> None:
    spend(wallet, AGENT)


def exits(wallet: Any) -> None:
    spend(wallet, AGENT)
    sys.exit(3)


def raises(wallet: Any) -> None:
    spend(wallet, AGENT)
    raise LookupError("of the user's")


def interrupted(wallet: Any) -> None:
    spend(wallet, AGENT)
    signal.raise_signal(signal.SIGINT)


def handles_sigterm(wallet: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    spend(wallet, AGENT)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def handles_sigterm_after_a_c_call(wallet: Any) -> None:
    """Python's handlers wait for it, here some tenths of a second."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    spend(wallet, AGENT)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 500_000)
    time.sleep(60)


def threads_outlive_main(wallet: Any) -> None:
    def work() -> None:
        threading.main_thread().join()
        spend(wallet, AGENT)

    wallet_is_warm(wallet)
    threading.Thread(target=work).start()


def daemon_thread_goes_on(wallet: Any) -> None:
    """What it finalized is booked; it is refused new money, and does not hold up the end."""
    spent = threading.Event()

    def work() -> None:
        spend(wallet, AGENT)
        spent.set()
        while True:
            try:
                wallet_is_warm(wallet)
            except BudgetUnavailable:
                return

    threading.Thread(target=work, daemon=True).start()
    spent.wait()


def spends_at_exit(wallet: Any) -> None:
    """Registered after daycap was imported, so that it runs before the wallet is closed."""
    atexit.register(spend, wallet, AGENT)


def finalizes_at_the_very_end(wallet: Any) -> None:
    """The wallet is closed by then: it refuses new holds, and takes what was held."""
    hold = reserve(wallet, 4 * 2 * COST)

    def finalize() -> None:
        for _ in range(3):
            hold.settle_part(COST)
        hold.finalize(COST)
        try:
            wallet_is_warm(wallet)
        except BudgetUnavailable:
            pass
        else:
            print("lent by a closed wallet", file=sys.stderr)

    at_last.append(finalize)


def forked_child_exits(wallet: Any) -> None:
    wallet_is_warm(wallet)
    if os.fork():
        os.wait()
    else:
        spend(wallet, AGENT)
        sys.exit()


def forked_child_flushes(wallet: Any) -> None:
    wallet_is_warm(wallet)
    if os.fork():
        os.wait()
    else:
        spend(wallet, AGENT)
        wallet._flush(5)
        os._exit(0)


def forks_in_a_fork_of_a_thread(wallet: Any) -> None:
    def work() -> None:
        if os.fork():
            os.wait()
            return
        if os.fork():
            os.wait()
        else:
            spend(wallet, AGENT)
        sys.exit()  # Of the only thread that a fork has.

    wallet_is_warm(wallet)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def daemonized(wallet: Any) -> None:
    """Twice forked; the daemon ends when it has spent, and this program after it."""
    wallet_is_warm(wallet)
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.close(read)
        spend(wallet, AGENT)
        sys.exit()
    os.waitpid(pid, 0)
    os.close(write)
    os.read(read, 1)  # Until the daemon, which has the other end, is gone.


def forked_behind_pythons_back(wallet: Any) -> None:
    """As uwsgi does it."""
    wallet_is_warm(wallet)
    if ctypes.PyDLL(None).fork():
        os.wait()
    else:
        spend(wallet, AGENT)
        sys.exit()


def child_of_multiprocessing_has_threads(wallet: Any) -> None:
    """They go on after its function returned, and are waited for."""
    child = multiprocessing.get_context("fork").Process(target=threads_outlive_main, args=(wallet,))
    child.start()
    child.join()


def child_of_billiard(wallet: Any) -> None:
    wallet_is_warm(wallet)
    child = billiard.Process(target=spend, args=(wallet, AGENT))
    child.start()
    child.join()
    sys.exit(child.exitcode)


def pool_is_terminated_with_a_handler(wallet: Any) -> None:
    with multiprocessing.get_context("fork").Pool(1, exit_on_sigterm) as pool:
        pool.apply(spend, (wallet, AGENT))


def exit_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def runs_a_program(wallet: Any) -> None:
    subprocess.run([sys.executable, "-m", __spec__.name, "returns", sys.argv[2]], check=True)


CLEAN: dict[Callable[[Any], None], int] = {
    returns: 0,
    exits: 3,
    raises: 1,
    interrupted: 1,
    handles_sigterm: 143,
    handles_sigterm_after_a_c_call: 143,
    threads_outlive_main: 0,
    daemon_thread_goes_on: 0,
    spends_at_exit: 0,
    finalizes_at_the_very_end: 0,
    forked_child_exits: 0,
    forked_child_flushes: 0,
    forks_in_a_fork_of_a_thread: 0,
    daemonized: 0,
    forked_behind_pythons_back: 0,
    child_of_multiprocessing_has_threads: 0,
    child_of_billiard: 0,
    pool_is_terminated_with_a_handler: 0,
    runs_a_program: 0,
}
"""The ways to end, and the status of each, after which all is booked."""

# --- ends that nothing can be done at ---------------------------------------------------------------------------


def killed(number: signal.Signals) -> Callable[[Any], None]:
    def way(wallet: Any) -> None:
        spend(wallet, AGENT)
        os.kill(os.getpid(), number)
        time.sleep(60)

    way.__name__ = number.name
    return way


def leaves(wallet: Any) -> None:
    spend(wallet, AGENT)
    os._exit(0)


def replaces_itself(wallet: Any) -> None:
    spend(wallet, AGENT)
    os.execv("/bin/true", ["true"])


def pool_is_terminated(wallet: Any) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(spend, (wallet, AGENT))


SUDDEN: dict[Callable[[Any], None], int] = {
    **{killed(number): -number for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGABRT)},
    leaves: 0,
    replaces_itself: 0,
    pool_is_terminated: 0,
}
"""The ways to end, and the status of each, after which what was not sent is in the outbox, or lost."""


def reserve(wallet: Any, micros: int) -> Any:
    hold = wallet.reserve(AGENT, micros)
    return asyncio.run(hold) if asyncio.iscoroutine(hold) else hold


def wallet_is_warm(wallet: Any) -> None:
    """Threads, connections and a lease are there; all at rest."""
    reserve(wallet, COST).release()


def main(way: str, face: str) -> None:
    (act,) = (each for each in (*CLEAN, *SUDDEN) if each.__name__ == way)
    act(FACES[face].from_env())


if __name__ == "__main__":
    main(*sys.argv[1:])
