"""A runner of the campaign: reserves and finalizes without pause for the agents that it is given, and says so in files.

`python -m tests.chaos.runner JOURNAL INTENTS FACE SEED`. Each line of its input is a list of agents to work for; an
empty one lets it rest, and is answered with what was not settled, and which children hung. What it is about to
finalize it writes to INTENTS before, and to JOURNAL after: a runner killed in between leaves a cost of which nobody can
say whether it was taken. Now and then it forks a child that does the same for a few calls; some are ended by SIGTERM
before. The runner itself handles SIGTERM, and ends cleanly.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from daycap import BudgetUnavailable, CapExceeded, Wallet
from demo.journal import End, Entry, JournalWriter
from tests.in_loop import FACES

FLUSH_S = 40
_THREADS = 2
_MOST_MICROS = 3_000
_FORK = multiprocessing.get_context("fork")
_CALLS_OF_A_CHILD = 12
_CHILD_S = 20
"""How long a child may take: its calls, and what it waits for as it ends."""


class _Work:
    """Calls for `agents`, by several threads, until it is told to stop."""

    def __init__(
        self, wallet: Wallet, agents: list[str], files: tuple[JournalWriter, JournalWriter], seed: str
    ) -> None:
        self._wallet, self._agents = wallet, agents
        self._journal, self._intents = files
        self._stop = threading.Event()
        self.hung: list[str] = []
        """The children that began their calls and did not end."""
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {number}"),)) for number in range(_THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self, rng: random.Random) -> None:
        while not self._stop.is_set():
            self._call(rng)
            if rng.random() < 0.01:
                self._fork(rng)

    def _fork(self, rng: random.Random) -> None:
        """A child that ends when it has done its calls, or by SIGTERM in the middle of them.

        libfaketime has a lock that another thread may have held at the fork: such a child never gets as far as Python,
        let alone its calls, and is killed.
        """
        begun, begins = multiprocessing.Pipe(duplex=False)
        child = _FORK.Process(target=self._run_in_child, args=(random.Random(rng.random()), begins))
        child.start()
        begins.close()
        if rng.random() < 0.3:
            child.join(rng.uniform(0, 0.1))
            child.terminate()
        child.join(_CHILD_S)
        if child.is_alive():
            if begun.poll():
                self.hung.append(f"child {child.pid}")
            child.kill()
            child.join()
        begun.close()

    def _run_in_child(self, rng: random.Random, begins: Connection) -> None:
        begins.send(None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for _ in range(_CALLS_OF_A_CHILD):
            self._call(rng)

    def _call(self, rng: random.Random) -> None:
        time.sleep(rng.uniform(0.001, 0.008))
        agent, estimate = rng.choice(self._agents), rng.randint(1, _MOST_MICROS)
        try:
            hold = self._wallet.reserve(agent, estimate)
        except CapExceeded:
            self._journal.write(Entry(End.REFUSED, agent, estimate))
            return
        except BudgetUnavailable:
            self._journal.write(Entry(End.UNAVAILABLE, agent, estimate, 1))
            return
        time.sleep(rng.choice((0, 0, 0.002, 0.02)))
        if rng.random() < 0.1:
            hold.release()
            self._journal.write(Entry(End.RELEASED, agent, estimate, 0, hold.id, hold.day))
            return
        actual = rng.randint(0, estimate) if rng.random() < 0.95 else estimate + rng.randint(1, 500)
        self._intents.write(Entry(End.FINALIZED, agent, estimate, 0, hold.id, hold.day, actual))
        hold.finalize(actual)
        self._journal.write(Entry(End.FINALIZED, agent, hold.held_micros, 0, hold.id, hold.day, actual))


def main(journal: str, intents: str, face: str, seed: str) -> None:
    """Obey until the input ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    files = JournalWriter(Path(journal)), JournalWriter(Path(intents))
    wallet: Wallet = FACES[face].from_env()
    # A child of multiprocessing closes sys.stdin, and would wait for the thread of its parent that reads from it.
    commands, sys.stdin = sys.stdin, None
    work: _Work | None = None
    hung: list[str] = []
    try:
        for line in commands:
            if work is not None:
                work.stop()
                hung += work.hung
            agents = json.loads(line)
            if agents:
                work = _Work(wallet, agents, files, seed)
                work.start()  # Not before it is assigned: a SIGTERM in between would leave nobody to stop it.
            else:
                work = None
                wallet._renewer.follow_adopted()  # What its children left in the outbox is flushed too.
                print(json.dumps([*wallet.flush(FLUSH_S), *hung]), flush=True)
    finally:
        if work is not None:
            work.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
