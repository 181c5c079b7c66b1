"""The steps of a reservation that memory cannot serve: what to ask, what the answer means, when to ask again.

No I/O: the caller, a thread or an event loop, sends each sync that it yields, and waits for each pause.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from daycap.errors import BudgetUnavailable, CounterUnavailable
from daycap.protocol.counter import Answer, SyncReply
from daycap.wallet.hold import H, Pending
from daycap.wallet.lease_book import LeaseBook


class Pause(NamedTuple):
    """A wait before the next step; answered with None."""

    seconds: float


Step = Pending | Pause
"""A sync to send, answered with its reply or by throwing `CounterUnavailable`; or a pause."""

Steps = Generator[Step, SyncReply | None, H]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.05


def top_up(
    book: LeaseBook[H], agent: str, estimate: int, *, end_s: float, ask_to_open: Callable[[str, str], None]
) -> Steps[H]:
    """Reserve `estimate` micros by asking the counter, until `end_s` (monotonic) at the latest.

    Preferably one at a time per agent. Raises what `Wallet.reserve` raises.
    """
    why, pause_s = "", 0.0
    while (hold := book.reserve(agent, estimate)) is None:
        if why and time.monotonic() >= end_s:
            raise BudgetUnavailable(f"agent {agent}: {why}")
        for back in book.exchanges.begin_hand_back(agent):
            book.exchanges.apply(back, (yield from _asked(book, back)))
        pending = book.exchanges.begin_top_up(agent, estimate)
        reply = yield from _asked(book, pending)
        if (hold := book.exchanges.finish_top_up(pending, reply, estimate)) is not None:
            break
        if reply.answer is Answer.NOT_OPEN:
            why = f"{pending.request.day} is not open in the counter; is a worker running?"
            ask_to_open(agent, pending.request.day)
        elif reply.answer is Answer.OK:
            why = f"{pending.request.day} is ending, or the counter answers too late"
        else:
            why = "the agent's totals kept changing; try again"
        if pause_s:
            yield Pause(pause_s)
        pause_s = min(max(pause_s * 1.5, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
    return hold


def _asked(book: LeaseBook[Any], pending: Pending) -> Generator[Step, SyncReply | None, SyncReply]:
    """Return the reply to a sync. Without one, put back what it earmarked, and raise."""
    try:
        reply = yield pending
        assert reply is not None, "a sync is answered"  # noqa: S101
    except CounterUnavailable as error:
        book.exchanges.abandon(pending)
        raise BudgetUnavailable(f"agent {pending.request.agent}: {error}") from error
    except BaseException:
        book.exchanges.abandon(pending)
        raise
    return reply
