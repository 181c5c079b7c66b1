"""What each adapter of this directory does when it is run: `spend N` or `read`. Imported by path, in any environment.

`spend` makes N calls one after the other, each reserved and finalized, and then kills itself with SIGKILL. Before that
it says how long each took, in microseconds, and what they cost in all. `read` says what the file knows.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable

CAP = 10**9
ESTIMATE, ACTUAL = 1_000, 700
PAUSE_S = 0.0005
"""Between two calls: a program that calls a model waits for it, and a thread beside it gets its turn."""


def main(open_file: Callable[[], Callable[[], None]], read: Callable[[], int]) -> None:
    """`open_file` opens it and returns what one call does; `read` returns the micros recorded."""
    if sys.argv[1] == "read":
        print(read())
        return
    call = open_file()
    call()  # The first one opens what there is to open.
    took_us = []
    for _ in range(int(sys.argv[2])):
        time.sleep(PAUSE_S)
        start = time.perf_counter_ns()
        call()
        took_us.append((time.perf_counter_ns() - start) / 1000)
    print(json.dumps({"took_us": took_us, "spent": ACTUAL * (len(took_us) + 1)}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
