"""The errors of daycap, in one tree: catch narrow (`CapExceeded`) or broad (`Refused`, `DaycapError`)."""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import Any, NamedTuple

from daycap.formats import format_usd, shown


class DaycapError(Exception):
    """daycap could not complete the operation"""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__class__.__doc__)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, but most of these constructors take more than a message.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class Refused(DaycapError):
    """refused: the caller's money or input does not allow it"""


class InvalidAmount(Refused, ValueError):
    """an amount must be an int of micro-USD from 0 to 2**53 - 1"""


class InvalidInput(Refused, ValueError):
    """an agent id, a day, a message or a usage is malformed"""


class UnknownModel(Refused, LookupError):
    """there is no price for this model

    `model` and `provider` are as the caller passed them. The message says what is missing and how to add a price.
    """

    def __init__(self, model: str, provider: str | None, what: str) -> None:
        self.model = model
        self.provider = provider
        super().__init__(
            f"no price for model {shown(model, 100)}{f' of {shown(provider, 60)}' if provider else ''}: {what}; "
            "give one in the file that DAYCAP_PRICES_FILE names"
        )


class InvalidSetting(DaycapError, ValueError):
    """a setting has an invalid value"""


class RunEnded(Refused):
    """this run has ended, or this process has not joined it"""


class HoldEnded(Refused):
    """this hold was already finalized or released"""


class AgentExists(Refused):
    """the agent exists already; change its cap with: daycap cap set NAME USD"""


class UnknownGroup(Refused):
    """there is no such group; add it with: daycap group add NAME"""


class GroupExists(Refused):
    """the group exists already; change its members with: daycap group join, daycap group leave"""


class UnknownBudget(Refused):
    """there is no such budget; add it with: daycap budget add NAME"""


class BudgetExists(Refused):
    """the budget exists already; change it with: daycap budget set NAME"""


class AgentRefused(Refused):
    """refused for this agent"""

    def __init__(self, agent: str, message: str | None = None) -> None:
        self.agent = agent
        super().__init__(message or f"agent {agent}: {self.__class__.__doc__}")


class UnknownAgent(AgentRefused):
    """there is no such agent; add it with: daycap agent add NAME --cap USD"""


class AgentPaused(AgentRefused):
    """the agent is paused; resume it with: daycap resume NAME"""


class NotYourAgent(AgentRefused):
    """its identity anchor differs from the one that this wallet is bound to (DAYCAP_IDENTITY_ANCHOR, or anchor=)"""


class FullBudget(NamedTuple):
    """A budget that had no room for a call, as of the refusal. Amounts are micros.

    `spent_micros` + `held_micros` + `waiting_micros` + `leased_micros` + `remaining_micros` == `cap_micros`:

    - spent is settled, and includes what was drawn but not charged under a cap that was raised since;
    - held is in live holds of this process;
    - waiting is the cost of this process's calls that have ended but are not settled yet;
    - leased is set aside for other runners;
    - remaining can still be reserved here. It is negative if the cap was lowered below the sum of the other four.
    """

    budget: str | None
    """The budget's id; None for the agent's own daily cap."""
    period: str
    """The period's id; the UTC date of a daily cap."""
    cap_micros: int
    spent_micros: int
    held_micros: int
    waiting_micros: int
    leased_micros: int
    remaining_micros: int
    ends_in_s: float
    """Seconds until the period ends."""

    def retry_after_s(self, estimate_micros: int) -> float | None:
        """Return how many seconds to wait before another try may succeed; None if waiting never helps."""
        if estimate_micros > self.cap_micros:
            return None
        if self.spent_micros + self.waiting_micros + estimate_micros > self.cap_micros:
            return self.ends_in_s
        return min(_RETRY_S, self.ends_in_s)

    def _told(self, estimate_micros: int) -> str:
        """Say what its cap, its use and its prospects are."""
        unit = "day" if self.budget is None else "period"
        wait_s = self.retry_after_s(estimate_micros)
        if wait_s is None:
            advice = f"it exceeds the cap of a whole {unit}, so waiting does not help"
        elif wait_s == self.ends_in_s and self.spent_micros + self.waiting_micros + estimate_micros > self.cap_micros:
            minutes = max(0, round(self.ends_in_s / 60))
            days = f"{minutes // 1440} d " if minutes >= _TWO_DAYS else ""
            hours = minutes // 60 % 24 if days else minutes // 60
            advice = f"it cannot fit before the {unit} ends in {days}{hours} h {minutes % 60} min"
        else:
            advice = "it may fit when calls in progress end"
        remaining = (
            f"{format_usd(self.remaining_micros)} remaining"
            if self.remaining_micros >= 0
            else f"{format_usd(-self.remaining_micros)} over the cap, which was lowered"
        )
        whose = "" if self.budget is None else f"of budget {self.budget.partition('/')[0]}, "
        return (
            f"the cap {whose or 'of '}{format_usd(self.cap_micros)} for {self.period}: "
            f"{format_usd(self.spent_micros)} spent, {format_usd(self.held_micros)} held here, "
            f"{format_usd(self.waiting_micros)} waiting to be settled, "
            f"{format_usd(self.leased_micros)} leased by other runners, {remaining}; {advice}"
        )


_TWO_DAYS = 2880
"""Minutes from which a wait is told in days."""


class CapExceeded(AgentRefused):
    """the estimate would exceed a cap: the agent's own for the day, or that of another budget

    `full` names every budget that was full (`FullBudget`), the agent's own daily cap first. `budget`, `period`,
    `cap_micros`, `spent_micros`, `held_micros`, `waiting_micros`, `leased_micros` and `remaining_micros` are those of
    the first one, as are `day` (its period) and `day_ends_in_s`. `estimate_micros` is the amount requested.

    `retry_after_s` is how many seconds to wait before another try may succeed: one second while calls in progress
    may still free enough, the rest of the period if too much is spent, and None if the estimate exceeds the cap of a
    whole period, so that waiting never helps.
    """

    retry_after_s: float | None

    def __init__(self, agent: str, estimate_micros: int, full: Sequence[FullBudget]) -> None:
        self.estimate_micros = estimate_micros
        self.full = tuple(full)
        first = self.full[0]
        self.budget, self.period = first.budget, first.period
        self.cap_micros, self.spent_micros = first.cap_micros, first.spent_micros
        self.held_micros, self.waiting_micros = first.held_micros, first.waiting_micros
        self.leased_micros, self.remaining_micros = first.leased_micros, first.remaining_micros
        self.day, self.day_ends_in_s = first.period, first.ends_in_s
        waits = [each.retry_after_s(estimate_micros) for each in self.full]
        self.retry_after_s = None if None in waits else max(wait for wait in waits if wait is not None)
        told = ". Also ".join(each._told(estimate_micros) for each in self.full)
        super().__init__(agent, f"agent {agent}: {format_usd(estimate_micros)} would exceed {told}")


_RETRY_S = 1.0


class Unavailable(DaycapError):
    """the system cannot answer now; try again later"""


class BudgetUnavailable(Unavailable):
    """the budget could not be checked safely, so nothing was reserved"""


class OutboxFull(BudgetUnavailable):
    """the outbox is full: too many events wait for a broker or a worker that is down"""


class CounterUnavailable(Unavailable):
    """the counter did not answer in time or is unreachable"""


class LedgerUnavailable(Unavailable):
    """the ledger did not answer or is unreachable"""
