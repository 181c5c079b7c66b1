"""The callers of one process. Nothing but the standard library: it runs in each peer's own environment.

`python ADAPTER CONFIG` prints a line when it is ready and then answers each line of input with one of output, both
JSON: `{"do": "open", "key": ..., "cap": ...}` gives a new key its cap, in one process alone, and
`{"do": "run", ...}`, a `Round`, lets all callers of this process spend under it and answers what each call did. It
ends when its input does. Amounts are micros, moments nanoseconds of the monotonic clock, which processes share.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

Verbs = dict[str, Callable[..., Any]]

Step = tuple[str, tuple[Any, ...]]
"""What a caller does next: a verb and its words."""

Row = tuple[str, int, int, int, int, int, int, int]
"""One call: how it ended; whose it was; estimate, actual; when reserve began and ended, when settling did, or 0, 0."""

SETTLED, REFUSED, UNAVAILABLE = "settled", "refused", "unavailable"


class Refused(Exception):
    """there is no money for it"""


class Unavailable(Exception):
    """no answer could be had; it may be tried again"""


class Peer(Protocol):
    """What an adapter makes of a peer. Its verbs may be coroutine functions: then all of them are."""

    def open(self, key: str, cap: int) -> object:
        """Give a new key its cap, once for all processes."""

    def begin(self, key: str, cap: int, **options: Any) -> object:
        """Make ready to spend under that key, in the mode that `options` say; not timed."""

    def reserve(self, estimate: int) -> Any:
        """A hold. Raises `Refused` or `Unavailable`."""

    def settle(self, hold: Any, actual: int) -> object:
        """End the hold with what the call did cost."""

    def finish(self) -> object:
        """Wait until all is booked; not timed."""


@dataclass(frozen=True)
class Round:
    """What a process's callers are to do: all begin at `start_ns`, and one that is refused `patience` times in a
    row, `pause_s` apart, gives up. An estimate is `factor` times what the call will cost."""

    key: str
    cap: int
    options: dict[str, Any]
    factor: int
    callers: int
    seed: str
    start_ns: int
    patience: int
    pause_s: float
    least: int
    most: int


def steps(round_: Round, number: int, rows: list[Row]) -> Generator[Step, Any, None]:
    """One caller: what it does, step by step; an error is thrown in. A call that was refused is the one it tries
    again."""
    amounts = random.Random(f"{round_.seed}-{number}")
    now, refusals = time.monotonic_ns, 0
    yield "pause", (max(0.0, (round_.start_ns - now()) / 1e9),)
    actual = amounts.randint(round_.least, round_.most)
    while refusals < round_.patience:
        estimate, begun = actual * round_.factor, now()
        try:
            hold = yield "reserve", (estimate,)
        except (Refused, Unavailable) as error:
            end = REFUSED if isinstance(error, Refused) else UNAVAILABLE
            rows.append((end, number, estimate, 0, begun, now(), 0, 0))
            refusals += 1
            yield "pause", (round_.pause_s,)
        else:
            held = now()
            yield "settle", (hold, actual)
            rows.append((SETTLED, number, estimate, actual, begun, held, held, now()))
            refusals, actual = 0, amounts.randint(round_.least, round_.most)


def run_in_threads(peer: Peer, round_: Round, first: int) -> list[Row]:
    """A thread for each caller."""

    def drive(number: int) -> list[Row]:
        rows: list[Row] = []
        caller = steps(round_, number, rows)
        verbs: Verbs = {"reserve": peer.reserve, "settle": peer.settle, "pause": time.sleep}
        verb, words = next(caller)
        while True:
            try:
                try:
                    answer = verbs[verb](*words)
                except (Refused, Unavailable) as error:
                    verb, words = caller.throw(error)
                else:
                    verb, words = caller.send(answer)
            except StopIteration:
                return rows

    with ThreadPoolExecutor(round_.callers) as pool:
        return [row for rows in pool.map(drive, range(first, first + round_.callers)) for row in rows]


async def run_in_tasks(peer: Peer, round_: Round, first: int) -> list[Row]:
    """A task for each caller."""

    async def drive(number: int) -> list[Row]:
        rows: list[Row] = []
        caller = steps(round_, number, rows)
        verbs: Verbs = {"reserve": peer.reserve, "settle": peer.settle, "pause": asyncio.sleep}
        verb, words = next(caller)
        while True:
            try:
                try:
                    answer = await verbs[verb](*words)
                except (Refused, Unavailable) as error:
                    verb, words = caller.throw(error)
                else:
                    verb, words = caller.send(answer)
            except StopIteration:
                return rows

    drives = (drive(number) for number in range(first, first + round_.callers))
    return [row for rows in await asyncio.gather(*drives) for row in rows]


def config() -> dict[str, Any]:
    """Where the servers are, by name."""
    said: dict[str, Any] = json.loads(sys.argv[1])
    return said


def serve(peer: Peer) -> None:
    """Answer the input, line by line, until it ends. What the peer itself prints goes to the errors."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    loop = asyncio.new_event_loop()

    def done(result: Any) -> Any:
        return loop.run_until_complete(result) if inspect.isawaitable(result) else result

    def obey(do: str, number: int = 0, **words: Any) -> dict[str, Any]:
        if do == "open":
            done(peer.open(**words))
            return {}
        round_ = Round(**words)
        done(peer.begin(round_.key, round_.cap, **round_.options))
        run = run_in_tasks if inspect.iscoroutinefunction(peer.reserve) else run_in_threads
        rows = done(run(peer, round_, number * round_.callers))
        done(peer.finish())
        return {"rows": rows}

    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = obey(**json.loads(line))
        except Exception as error:  # Whatever it is, it is the reason why this peer is left out.
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    answers.close()
    os._exit(0)  # Whatever threads a peer has.
