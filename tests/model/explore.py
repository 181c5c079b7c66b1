"""Breadth first over every state of a configuration: the first trace to a broken promise is the shortest."""

from __future__ import annotations

import gc
import struct
import time
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.model import promises, protocol
from tests.model.state import NONE


class Rules(NamedTuple):
    """What is explored: the steps, the states that are the same, and the promises."""

    protocol: Callable[..., Any]
    tidy: Callable[..., Any]
    broken: Callable[..., str]
    quiet: Callable[..., bool]


ONE_BUDGET = Rules(protocol.Protocol, promises.Tidy, promises.broken, promises.quiet)


class Result(NamedTuple):
    """What an exploration found. `trace` has a line for each step to the broken promise."""

    config: str
    states: int
    steps: int
    depth: int
    complete: bool
    seconds: float
    broken: str
    trace: tuple[str, ...]


class Progress(NamedTuple):
    """How far an exploration is; `frontier` is how many states were found and not yet looked at."""

    states: int
    depth: int
    frontier: int
    seconds: float


class _Pool:
    """States as short keys: each part of a state is kept once and named by a number."""

    def __init__(self, first: Any) -> None:
        parts = len(first)
        self._kind = type(first)
        self._numbers: list[dict[Any, int]] = [{} for _ in range(parts)]
        self._kept: list[list[Any]] = [[] for _ in range(parts)]
        self._struct = struct.Struct(f"{parts}I")

    def key(self, s: Any, before: Any | None = None, numbers_before: tuple[int, ...] = ()) -> bytes:
        """The key of `s`; parts that it shares with `before`, whose numbers are given, are not looked up."""
        numbers = list(numbers_before) or [-1] * len(s)
        for place, part in enumerate(s):
            if before is not None and part is before[place]:
                continue
            number = self._numbers[place].setdefault(part, len(self._kept[place]))
            if number == len(self._kept[place]):
                self._kept[place].append(part)
            numbers[place] = number
        return self._struct.pack(*numbers)

    def state(self, key: bytes) -> tuple[Any, tuple[int, ...]]:
        """The state of a key, and the numbers of its parts."""
        numbers = self._struct.unpack(key)
        return self._kind._make([kept[number] for kept, number in zip(self._kept, numbers, strict=True)]), numbers


class Exploration:
    """All states of `config` that can be reached. `promise` is the one that is looked for, if not any."""

    def __init__(self, config: Any, promise: str = "", rules: Rules = ONE_BUDGET) -> None:
        self._protocol = rules.protocol(config)
        self._tidy = rules.tidy(self._protocol)
        self._rules, self._promise = rules, promise
        initial = self._tidy(self._protocol.initial())
        self._pool = _Pool(initial)
        first = self._pool.key(initial)
        self._seen, self._order, self._parents = {first}, [first], array("q", [-1])
        self._steps = self._depth = 0

    def run(
        self,
        most_states: int = 10**9,
        most_seconds: float = 10**9,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> Result:
        """Explore until all is seen, a promise is broken, or a limit is reached."""
        began, at, layer_ends = time.monotonic(), 0, 1
        collecting = gc.isenabled()
        gc.disable()  # Millions of tuples, and no cycles among them.
        try:
            while at < len(self._order):
                if at == layer_ends:
                    layer_ends, self._depth = len(self._order), self._depth + 1
                if at % 1000 == 0:
                    seconds = time.monotonic() - began
                    progress(Progress(len(self._order), self._depth, len(self._order) - at, seconds))
                    if len(self._order) >= most_states or seconds >= most_seconds:
                        return self._result(began, complete=False)
                found = self._look(at)
                if found is not None:
                    self._depth += 1
                    return self._result(began, complete=False, why=found[0], trace=self._trace(at, found[1]))
                at += 1
            return self._result(began, complete=True)
        finally:
            if collecting:
                gc.enable()

    def states_at_rest(self) -> set[Any]:
        """Those that were found in which nothing is under way."""
        states = [self._pool.state(key)[0] for key in self._order]
        return {s._replace(focus=NONE) for s in states if self._rules.quiet(s)}

    def can_reach(self, wanted: Callable[[Any], bool]) -> int:
        """From how many of the states that were found one can be reached that is `wanted`."""
        numbers = {key: number for number, key in enumerate(self._order)}
        before: list[list[int]] = [[] for _ in self._order]
        found = []
        for number, key in enumerate(self._order):
            state = self._pool.state(key)[0]
            found += [number] if wanted(state) else []
            for _, after, _ in self._protocol.steps(state):
                before[numbers[self._pool.key(self._tidy(after))]].append(number)
        can, waiting = set(found), found
        while waiting:
            more = set(before[waiting.pop()]) - can
            can |= more
            waiting += more
        return len(can)

    def _look(self, at: int) -> tuple[str, bytes] | None:
        """Take every step from one state; the first that breaks the promise, with its state's key."""
        state, numbers = self._pool.state(self._order[at])
        for _, after, breaks in self._protocol.steps(state):
            self._steps += 1
            tidy = self._tidy(after)
            key = self._pool.key(tidy, state, numbers)
            new = key not in self._seen
            why = breaks or (self._rules.broken(self._protocol, tidy) if new else "")
            if why and why.startswith(self._promise):
                return why, key
            if new:
                self._seen.add(key)
                self._order.append(key)
                self._parents.append(at)
        return None

    def _result(self, began: float, *, complete: bool, why: str = "", trace: tuple[str, ...] = ()) -> Result:
        name, seconds = self._protocol.config.name, time.monotonic() - began
        return Result(name, len(self._order), self._steps, self._depth, complete, seconds, why, trace)

    def _trace(self, at: int, last: bytes) -> tuple[str, ...]:
        """The steps to the last state, found again one by one, with each runner under the name that it began with."""
        keys = [last]
        while at >= 0:
            keys.append(self._order[at])
            at = self._parents[at]
        state, lines = self._protocol.initial(), []
        for number, key in enumerate(reversed(keys[:-1]), 1):
            reached = [
                (why, what, after)
                for what, after, why in self._protocol.steps(state)
                if key in (self._pool.key(alike) for alike in self._tidy.alike(after))
            ]
            _, what, state = max(reached, key=lambda step: step[0])
            lines.append(f"{number:3}. {what}")
        return tuple(lines)


def explore(config: Any, promise: str = "", rules: Rules = ONE_BUDGET, **limits: Any) -> Result:
    """See `Exploration`."""
    return Exploration(config, promise, rules).run(**limits)
