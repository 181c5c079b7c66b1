"""One runner process: makes its share of the calls through a wallet, as any application would.

`python -m demo.runner CALLS JOURNAL [CAPS]`. It writes a line when it is ready and begins when it receives one. It ends
when its calls are settled, or soon after its input is closed, so that it never outlives its parent. With a file of
CAPS a naive counter checks the same calls at the same time, for comparison; its journal is JOURNAL.naive.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from daycap import AgentPaused, BudgetUnavailable, CapExceeded, Hold, Wallet
from daycap.settings import Settings
from demo.journal import End, Entry, JournalWriter
from demo.naive import NaiveBudget, naive_journal_of
from demo.plan import Outcome, PlannedCall, read_calls

SETTLE_S = 60.0
"""How long a runner waits after its last call until everything is settled."""

STOP_S = 5.0
"""How long a runner may take to stop."""

Take = Callable[[PlannedCall, threading.Event], Entry]
"""Makes a call, and gives up early once the event is set."""

_AT_ONCE = 32
_TRIES = 5
_TRY_AGAIN_S = 0.2
"""The first pause after `BudgetUnavailable`. It doubles each time: about as patient as redis-py."""


class CallFailed(Exception):
    """the provider broke off the call; it may have billed it"""


def make_calls(
    calls: Sequence[PlannedCall], takers: Sequence[tuple[Take, JournalWriter]], stop: threading.Event
) -> None:
    """Pass each call to each taker at its time, many concurrently, until all have ended or `stop` is set."""
    start_s = time.monotonic()
    taken = []
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(_AT_ONCE)) for _ in takers]
        for call in calls:
            if stop.wait(max(0.0, start_s + call.at_s - time.monotonic())):
                break
            for pool, (take, journal) in zip(pools, takers, strict=True):
                taken.append(pool.submit(_journaled, take, call, stop, journal))
    for each in taken:
        each.result()  # Raise unexpected errors.


def _journaled(take: Take, call: PlannedCall, stop: threading.Event, journal: JournalWriter) -> None:
    journal.write(take(call, stop))


def _made(wallet: Wallet, call: PlannedCall, stop: threading.Event) -> Entry:
    for unavailable in range(_TRIES):
        try:
            hold = wallet.reserve(call.agent, call.estimate_micros)
        except (CapExceeded, AgentPaused):
            stopped = call.cost_micros
            return Entry(End.REFUSED, call.agent, call.estimate_micros, unavailable, stopped_micros=stopped)
        except BudgetUnavailable:
            stop.wait(_TRY_AGAIN_S * 2**unavailable if unavailable + 1 < _TRIES else 0)
        else:
            return _spend(hold, call, unavailable, stop)
    return Entry(End.UNAVAILABLE, call.agent, call.estimate_micros, _TRIES)


def _spend(hold: Hold, call: PlannedCall, unavailable: int, stop: threading.Event) -> Entry:
    end, actual = End.FINALIZED, call.actual_micros
    if call.outcome is Outcome.NOT_SENT:
        hold.release()
        end, actual = End.RELEASED, 0
    else:
        try:
            with hold:
                stop.wait(call.duration_s)
                if call.outcome is Outcome.FAILED:
                    raise CallFailed
                hold.actual = actual
        except CallFailed:
            actual = hold.held_micros
    # An overage raises the hold from the lease's free money, so held is read after the end.
    return Entry(end, hold.agent, hold.held_micros, unavailable, hold.id, hold.day, actual)


def main(calls_file: str, journal_file: str, caps_file: str = "") -> int:
    """Return 0 if all spending is known to be settled."""
    calls = read_calls(Path(calls_file))
    journal = JournalWriter(Path(journal_file))
    go, stop = threading.Event(), threading.Event()
    threading.Thread(target=_obey, args=(go, stop), daemon=True).start()
    with Wallet.from_env() as wallet:
        takers: list[tuple[Take, JournalWriter]] = [(partial(_made, wallet), journal)]
        if caps_file:
            naive = NaiveBudget(Settings.from_env().redis_url, json.loads(Path(caps_file).read_text("utf-8")))
            takers.append((naive.take, JournalWriter(naive_journal_of(Path(journal_file)))))
        print("ready", flush=True)
        go.wait()
        make_calls(calls, takers, stop)
        journal.close()
        return 1 if wallet.close(timeout=1 if stop.is_set() else SETTLE_S) else 0


def _obey(go: threading.Event, stop: threading.Event) -> None:
    """Wait for a line of input, which means go, and for its end, which means stop."""
    os.read(0, 1)  # Not sys.stdin: a thread that blocks in it would block the interpreter's exit.
    go.set()
    while os.read(0, 64):
        pass
    stop.set()
    time.sleep(STOP_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
