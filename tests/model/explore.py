"""Breadth first over every state of a configuration: the first trace to a broken promise is the shortest."""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from tests.model.promises import broken, tidy
from tests.model.protocol import Config, Protocol, State


class Result(NamedTuple):
    """What an exploration found. `trace` is one line for each step to the broken promise."""

    config: str
    without: str
    states: int
    steps: int
    depth: int
    complete: bool
    seconds: float
    broken: str
    trace: tuple[str, ...]


class Progress(NamedTuple):
    states: int
    depth: int
    frontier: int
    seconds: float


class _Pool:
    """States as short bytes: each part of a state is kept once and named by a number."""

    def __init__(self, parts: int) -> None:
        self._numbers: list[dict[object, int]] = [{} for _ in range(parts)]
        self._kept: list[list[object]] = [[] for _ in range(parts)]
        self._pack = struct.Struct(f"{parts}I")

    def key(self, s: State) -> bytes:
        numbers = []
        for part, known, kept in zip(s, self._numbers, self._kept, strict=True):
            number = known.setdefault(part, len(kept))
            if number == len(kept):
                kept.append(part)
            numbers.append(number)
        return self._pack.pack(*numbers)

    def state(self, key: bytes) -> State:
        return State(*[kept[n] for kept, n in zip(self._kept, self._pack.unpack(key), strict=True)])  # type: ignore[arg-type]


def explore(
    config: Config,
    *,
    most_states: int = 10**9,
    most_seconds: float = 10**9,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Explore `config` until all is seen, a promise is broken, or a limit is reached."""
    protocol, started = Protocol(config), time.monotonic()
    pool = _Pool(len(State._fields))
    first = pool.key(tidy(protocol, protocol.initial()))
    seen, order, parents = {first}, [first], array("q", [-1])
    layer_ends, depth, steps, at = 1, 0, 0, 0

    def result(complete: bool, why: str = "", last: tuple[int, bytes] | None = None) -> Result:
        trace = _trace(protocol, pool, order, parents, last) if last else ()
        seconds = time.monotonic() - started
        return Result(config.name, config.terms.without, len(order), steps, depth, complete, seconds, why, trace)

    while at < len(order):
        if at == layer_ends:
            layer_ends, depth = len(order), depth + 1
        if at % 2000 == 0:
            seconds = time.monotonic() - started
            progress(Progress(len(order), depth, len(order) - at, seconds))
            if len(order) >= most_states or seconds >= most_seconds:
                return result(complete=False)
        for _, state, broke in protocol.steps(pool.state(order[at])):
            steps += 1
            after = tidy(protocol, state)
            key = pool.key(after)
            if key in seen and not broke:
                continue
            why = broke or broken(protocol, after)
            if why:
                depth += 1
                return result(complete=False, why=why, last=(at, key))
            seen.add(key)
            order.append(key)
            parents.append(at)
        at += 1
    return result(complete=True)


def _trace(
    protocol: Protocol, pool: _Pool, order: list[bytes], parents: array[int], last: tuple[int, bytes]
) -> tuple[str, ...]:
    """The steps to the last state, found again from each state on the way."""
    at, key = last
    keys = [key]
    while at >= 0:
        keys.append(order[at])
        at = parents[at]
    keys.reverse()
    lines = []
    for number, (before, after) in enumerate(pairwise(keys), 1):
        found = None
        for what, state, why in protocol.steps(pool.state(before)):
            if pool.key(tidy(protocol, state)) == after and (found is None or why):
                found = what
        lines.append(f"{number:3}. {told(found or ())}")
    return tuple(lines)


def told(what: tuple[object, ...]) -> str:
    return f"{what[0]}: " + ", ".join(str(word) for word in what[1:] if word != "") if len(what) > 1 else str(what[0])
