"""A reservation that memory cannot serve: what is asked and waited for, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest

from daycap import BudgetUnavailable
from daycap.errors import CounterUnavailable
from daycap.protocol.counter import SyncReply
from daycap.wallet.hold import Hold, Pending
from daycap.wallet.top_up import Answered, Step, top_up
from tests.runner_without_io import DAY, Runner

Steps = Generator[Step, Answered, Hold]


def begun(runner: Runner, seconds: float, asked: list[tuple[str, str]]) -> Steps:
    end_s = time.monotonic() + seconds
    return top_up(runner.book, "agent", 500, end_s=end_s, ask_to_open=lambda agent, day: asked.append((agent, day)))


def answer(runner: Runner, step: Step) -> list[SyncReply]:
    assert isinstance(step, Pending)
    return runner.counter.sync([each.request for each in step.all])


def test_unopened_day_is_awaited_with_backoff() -> None:
    runner = Runner()
    asked: list[tuple[str, str]] = []
    runner.counter.flush()
    steps = begun(runner, 60, asked)

    step, waits = next(steps), []
    for _ in range(12):
        step = steps.send(answer(runner, step))
        if not isinstance(step, Pending):
            waits.append(step.seconds)
            step = next(steps)

    assert asked == [("agent", DAY)] * 12
    assert len(waits) == 11, "the first question is repeated at once"
    assert waits[:3] == pytest.approx([0.002, 0.003, 0.0045])
    assert waits[-1] == 0.05


@pytest.mark.parametrize("late", [False, True])
def test_when_time_is_up_it_says_why(late: bool) -> None:
    runner = Runner()
    if not late:
        runner.counter.flush()
    steps = begun(runner, 0, [])
    step = next(steps)
    reply = answer(runner, step)
    runner.ms += 2_000 if late else 0

    with pytest.raises(BudgetUnavailable, match="answers too late" if late else "is a worker running"):
        steps.send(reply)


@pytest.mark.parametrize("error", [CounterUnavailable("gone"), KeyboardInterrupt()])
def test_a_question_that_fails_puts_the_earmarked_money_back(error: BaseException) -> None:
    runner = Runner()
    hold = runner.ask(100)
    assert hold is not None
    hold.release()
    steps = begun(runner, 60, [])
    assert isinstance(next(steps), Pending)
    assert runner.book.free_micros("agent") == 0

    with pytest.raises(BudgetUnavailable if isinstance(error, CounterUnavailable) else KeyboardInterrupt):
        steps.throw(error)

    assert runner.book.free_micros("agent") == 100
