"""A user's program that forks while its first events are on their way, with threads at work: children must send theirs.

`python -m tests.integration.processes.programs.forks RUNS SEED` makes `RUNS` parents, each as new as this process, with
nothing imported by a first send and no connection. A parent forks two children, one of them from a thread, at a random
moment of its first quarter of a second. Prints how many parents failed.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from daycap import Wallet
from tests.integration.processes.programs.children import FACES, spend

AGENT = "agent-7"
AT_ONCE, MOST_S = 4, 20


def child(wallet: Wallet) -> None:
    spend(wallet, AGENT)
    must_be_settled(wallet)


def must_be_settled(wallet: Wallet) -> None:
    left = wallet._flush(10)
    assert not left, f"{os.getpid()} has not settled {len(left)} events"


def parent(rng: random.Random) -> None:
    caps = None if "DAYCAP_REDIS_URL" in os.environ else {AGENT: 1_000_000_000}
    wallet = FACES[rng.choice(sorted(FACES))].from_env(caps=caps)
    delays = [rng.choice((0, rng.uniform(0, 0.05), rng.uniform(0, 0.25))) for _ in range(2)]
    spending = [threading.Thread(target=spend, args=(wallet, AGENT)) for _ in range(2)]
    children: list[int] = []

    def fork(delay: float) -> None:
        time.sleep(delay)
        children.append(forked(lambda: child(wallet)))

    forking = threading.Thread(target=fork, args=(delays[0],))
    for thread in (*spending, forking):
        thread.start()
    fork(delays[1])
    for thread in (*spending, forking):
        thread.join()
    failed = [pid for pid in children if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
    must_be_settled(wallet)
    assert not failed, f"{len(failed)} of the children failed, forked after {delays}"


def forked(work: Callable[[], None]) -> int:
    """The pid of a child that does `work`, within `MOST_S`, and ends at once; status 0 if that raised nothing."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        faulthandler.register(signal.SIGALRM, chain=True)  # It says where it hangs.
        signal.alarm(MOST_S)
        work()
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def main(runs: str, seed: str) -> None:
    left, at_work, failed = list(range(int(runs))), 0, 0
    while left or at_work:
        while left and at_work < AT_ONCE:
            number = left.pop()
            forked(partial(parent, random.Random(f"{seed} {number}")))
            at_work += 1
        _, status = os.wait()
        at_work -= 1
        failed += status != 0
    print(failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
