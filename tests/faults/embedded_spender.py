"""Forks spenders with a SQLite file of their own and kills each at a random moment. Says what they finalized.

    python -m tests.faults.embedded_spender threads|loop HOW_MANY

The parent imports everything once and makes no wallet, so that a spender is at work within milliseconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from daycap import usd
from tests.in_loop import FACES


def spend(face: str, said: int) -> None:
    """Finalize without end; each cost is said once `finalize` has returned."""
    dice = random.Random()
    wallet = FACES[face].from_env()
    wallet.add_agent("agent-7", usd(1000))
    os.write(said, b"ready\n")
    while True:
        hold = wallet.reserve("agent-7", 1_000)
        actual = dice.randrange(1_000)
        hold.finalize(actual)
        os.write(said, f"{hold.id} {actual}\n".encode())


def killed(face: str, dice: random.Random) -> bytes:
    """What a spender said until it was killed: at any moment since its start, or since it began to spend."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            spend(face, write)
        finally:
            os._exit(3)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        first = pipe.readline() if dice.random() < 0.8 else b""
        time.sleep(dice.random() * 0.06)
        os.kill(child, signal.SIGKILL)
        rest = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it ended by itself: {os.waitstatus_to_exitcode(status)}"
    return (first + rest).replace(b"ready\n", b"")


if __name__ == "__main__":
    moments = random.Random()
    for _ in range(int(sys.argv[2])):
        sys.stdout.buffer.write(killed(sys.argv[1], moments))
        sys.stdout.buffer.flush()
