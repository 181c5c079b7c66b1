"""Code that is interrupted anywhere: by an exception, or by a handler that calls the wallet again.

A signal's handler runs between two bytecodes of the main thread, and so do the finalizers that the garbage collector
runs in any thread. Here a trace function plays both, once at each bytecode of the book's own code. (Python swallows
what a handler raises while a finalizer runs; the finalizer of a forgotten hold is left out.)
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from daycap import BudgetUnavailable
from daycap.wallet import counter_clock, exchanges, holds, leases, unsettled
from daycap.wallet import lease as lease_module
from daycap.wallet.hold import AsyncHold, Hold, kinds
from tests.runner_without_io import CAP, Runner, held

TRACED = tuple(str(module.__file__) for module in (lease_module, holds, leases, exchanges, unsettled, counter_clock))


FINALIZER = ("_forgotten", "dropped", "_leave")


class Interrupted(BaseException):
    """What the handler raises."""


LOOKS = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD") if name in dis.opmap}
"""After these the interpreter looks for signals, and (from 3.12 on) for garbage. It does so nowhere else."""


class Interrupter:
    """Calls `handler` at bytecode number `at` of the traced code, once.

    With `real`, only those are counted at which the interpreter itself would do so.
    """

    def __init__(self, at: int, handler: Callable[[], None], *, real: bool) -> None:
        self._left = at
        self._handler = handler
        self._real = real
        self._last: dict[int, int] = {}
        self.done = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and not self.done and frame.f_code.co_name not in FINALIZER:
            last = self._last.get(id(frame), -1)
            self._last[id(frame)] = frame.f_code.co_code[frame.f_lasti]
            self._left -= not self._real or last in LOOKS
            if self._left < 0:
                self.done = True
                sys.settrace(None)
                self._handler()
        return self


def at_each_bytecode(
    prepare: Callable[[], Runner],
    run: Callable[[Runner], None],
    handler: Callable[[Runner], None],
    check: Callable[[Runner], None],
    *,
    real: bool = False,
) -> int:
    """Run it anew with an interruption at the first, second, ... bytecode, until there is none left."""
    for at in range(10_000):
        runner = prepare()
        interrupter = Interrupter(at, lambda runner=runner: handler(runner), real=real)  # type: ignore[misc]
        sys.settrace(interrupter)
        try:
            run(runner)
        except Interrupted:
            pass
        finally:
            sys.settrace(None)
        check(runner)
        if not interrupter.done:
            return at
    raise AssertionError("it has no end")


class Money(Runner):
    """A runner that knows what its calls were charged, with one hold that is live already."""

    def __init__(self, hold_type: type[Any]) -> None:
        super().__init__()
        self.book._ended_type, self.book._make_hold = kinds(hold_type, traced=False)
        self.book.exchanges.slice_seconds = 0
        self.bystander: Any = held(self, 5_000)
        held(self, 20_000).release()
        self.mine: Any = None
        self.other: Any = None

    def adds_up(self) -> None:
        """Every micro that was granted is free, held by a live hold, drawn by one event, or handed back."""
        self.book.catch_up()
        lease = next(iter(self.book.leases.current.values()))
        live = [hold for hold in (self.bystander, self.mine, self.other) if hold is not None and not hold.ended]
        assert self.book.live_holds() == len(live)
        drawn = sum(event.drawn_micros for event in self.book.unsettled.events())
        assert lease.free == lease.granted - lease.returned - drawn - sum(hold.held_micros for hold in live)
        assert (lease.free >= 0, lease.questions) == (True, {})
        unsettled = self.book.unsettled.events()
        assert [event.number for event in unsettled] == list(range(1, len(unsettled) + 1)), "no gap, none twice"
        assert len({event.hold for event in unsettled}) == len(unsettled)
        assert {event.number for event in self.events} == {event.number for event in unsettled}, "all were handed on"


HOLDS = pytest.mark.parametrize("hold_type", [Hold, AsyncHold])


def call(runner: Any) -> None:
    """A call as users make it: reserve, do something, finalize on leaving."""
    hold = runner.book.reserve("agent", 1_000)
    assert hold is not None
    with hold:
        runner.mine = hold
        hold.actual = 700
    runner.mine = None


def raises(_: Any) -> None:
    raise Interrupted


@HOLDS
def test_an_exception_anywhere_loses_no_money(hold_type: type[Any]) -> None:
    many = at_each_bytecode(lambda: Money(hold_type), call, raises, Money.adds_up)  # type: ignore[arg-type]
    assert many > 200


@HOLDS
@pytest.mark.parametrize("end", ["finalize", "release", "settle_part", "forgotten"])
def test_a_nested_end_anywhere(hold_type: type[Any], end: str) -> None:
    def handler(runner: Any) -> None:
        if end == "forgotten":
            runner.bystander = None
        else:
            getattr(runner.bystander, end)(*() if end == "release" else (3_000,))

    def check(runner: Any) -> None:
        runner.adds_up()
        charged = sorted(event.actual_micros for event in runner.book.unsettled.events())
        assert charged == {"finalize": [700, 3_000], "release": [700], "settle_part": [700, 3_000]}.get(
            end, [700, 5_000]
        ) or not any(runner.events[1:])

    at_each_bytecode(lambda: Money(hold_type), call, handler, check)


@HOLDS
def test_a_nested_reserve_anywhere(hold_type: type[Any]) -> None:
    """It is served, or told at once that it cannot be: it neither waits for itself nor spends what is being spent."""
    served = []

    def handler(runner: Any) -> None:
        try:
            runner.other = runner.book.reserve("agent", 18_000)
            served.append(runner.other is not None)
        except BudgetUnavailable:
            served.append(False)

    def run(runner: Any) -> None:
        hold = runner.book.reserve("agent", 1_000)
        if hold is not None:
            hold.finalize(700)

    at_each_bytecode(lambda: Money(hold_type), run, handler, Money.adds_up)  # type: ignore[arg-type]
    assert {True, False} <= set(served)


def test_an_interrupted_question_keeps_nothing() -> None:
    def run(runner: Any) -> None:
        runner.mine = runner.ask(CAP // 2)

    def check(runner: Any) -> None:
        if runner.mine is None:
            runner.book.catch_up()
        runner.adds_up()

    at_each_bytecode(lambda: Money(Hold), run, raises, check, real=True)


def test_an_interrupted_renewal_loses_no_money() -> None:
    def run(runner: Any) -> None:
        runner.ms += 1_000
        runner.renew()

    at_each_bytecode(lambda: Money(Hold), run, raises, Money.adds_up, real=True)  # type: ignore[arg-type]
