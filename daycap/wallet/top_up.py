"""The steps of a reservation that memory cannot serve: what to ask, what the answer means, when to ask again.

No I/O: the caller, a thread or an event loop, sends each sync that it yields, and waits for each pause.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, NamedTuple

from daycap.errors import AgentRefused, BudgetUnavailable, CounterUnavailable, InvalidInput
from daycap.protocol.counter import Answer, SyncReply
from daycap.protocol.labels import Labels
from daycap.protocol.plan import read_plan
from daycap.wallet.hold import H, Pending
from daycap.wallet.lease import Lease
from daycap.wallet.lease_book import LeaseBook


class Pause(NamedTuple):
    """A wait before the next step."""

    seconds: float


class ReadPlan(NamedTuple):
    """Reading the plan in force of an agent, which the counter has with this day."""

    agent: str
    day: str


Step = Pending | ReadPlan | Pause
"""Syncs to send in one exchange (`Pending.all`), a plan to read, or a pause."""

Answered = list[SyncReply] | tuple[int, str] | None
"""A step is answered with the replies, the plan, or None; or by throwing `CounterUnavailable`."""

Steps = Generator[Step, Answered, H]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.05


def top_up(
    book: LeaseBook[H],
    agent: str,
    estimate: int,
    labels: Labels = (),
    *,
    end_s: float,
    ask_to_open: Callable[[str, str], None],
) -> Steps[H]:
    """Reserve `estimate` micros by asking the counter, until `end_s` (monotonic) at the latest.

    Preferably one at a time per agent. Raises what `Wallet.reserve` raises.
    """
    before: dict[Lease, int] = {}
    try:
        return (yield from _until_held(book, agent, estimate, labels, end_s, ask_to_open, before))
    except (AgentRefused, BudgetUnavailable):
        # What some of several budgets granted would be missing elsewhere.
        if (back := book.exchanges.begin_return(before)) is not None:
            with suppress(BudgetUnavailable):  # The next renewal says it, too.
                yield from _asked_and_applied(book, back)
        raise


def _until_held(
    book: LeaseBook[H],
    agent: str,
    estimate: int,
    labels: Labels,
    end_s: float,
    ask_to_open: Callable[[str, str], None],
    before: dict[Lease, int],
) -> Steps[H]:
    """See `top_up`. `before` becomes what each lease had been granted when it was first asked for more."""
    why, pause_s = "", 0.0
    exchanges = book.exchanges
    while (hold := book.reserve(agent, estimate, labels)) is None:
        if why and time.monotonic() >= end_s:
            raise BudgetUnavailable(f"agent {agent}: {why}")
        for back in exchanges.begin_hand_back(agent, labels):
            yield from _asked_and_applied(book, back)
        pending = exchanges.begin_top_up(agent, estimate, labels)
        for each in pending.all:
            before.setdefault(each.lease, each.request.granted_micros)
        reply, *others = yield from _asked(book, pending)
        hold = exchanges.finish_top_up(pending, reply, estimate, others)
        if hold is not None:
            break
        if reply.answer.taken and exchanges.lacks_plan(agent):
            yield from _learn_plan(book, agent, pending.request.day)
            if exchanges.lacks_plan(agent):
                why = "its plan of budgets changed a moment ago; try again"
            continue
        why = _reason(pending, reply, others, ask_to_open)
        if pause_s:
            # Two runners in step, each of which holds what the other lacks, would refuse each other again.
            part = random.uniform(0.5, 1) if pending.others else 1  # noqa: S311
            yield Pause(pause_s * part)
        pause_s = min(max(pause_s * 1.5, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
    return hold


def _reason(
    pending: Pending, reply: SyncReply, others: list[SyncReply], ask_to_open: Callable[[str, str], None]
) -> str:
    """Say why it must be asked again. Has what is not open opened."""
    answers = list(zip(pending.all, (reply, *others), strict=True))
    closed = [each.request for each, its in answers if its.answer is Answer.NOT_OPEN]
    for request in closed:
        ask_to_open(request.agent, request.day)
    if closed:
        what = closed[0].day if closed[0].span is None else f"{closed[0].day} of budget {closed[0].agent}"
        return f"{what} is not open in the counter; is a worker running?"
    for each, its in answers[1:]:
        if its.answer in (Answer.PAUSED, Answer.UNKNOWN_AGENT):
            return f"budget {each.request.agent} was removed a moment ago; try again"
    if all(its.answer is Answer.OK for _, its in answers):
        return f"{pending.request.day} is ending, or the counter answers too late"
    return "the agent's totals kept changing; try again"


def _learn_plan(book: LeaseBook[Any], agent: str, day: str) -> Generator[Step, Answered, None]:
    try:
        answer = yield ReadPlan(agent, day)
        if answer is not None:
            assert isinstance(answer, tuple)  # noqa: S101
            book.exchanges.learn_plan(agent, read_plan(*answer))
    except (CounterUnavailable, InvalidInput) as error:
        raise BudgetUnavailable(f"agent {agent}: {error}") from error


def _asked_and_applied(book: LeaseBook[Any], pending: Pending) -> Generator[Step, Answered, None]:
    replies = yield from _asked(book, pending)
    for each, reply in zip(pending.all, replies, strict=True):
        book.exchanges.apply(each, reply)


def _asked(book: LeaseBook[Any], pending: Pending) -> Generator[Step, Answered, list[SyncReply]]:
    """Return the replies to syncs. Without them, put back what they earmarked, and raise."""
    try:
        replies = yield pending
        assert isinstance(replies, list), "a sync is answered"  # noqa: S101
    except CounterUnavailable as error:
        book.exchanges.abandon(pending)
        raise BudgetUnavailable(f"agent {pending.request.agent}: {error}") from error
    except BaseException:
        book.exchanges.abandon(pending)
        raise
    return replies
