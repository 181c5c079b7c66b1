"""The errors of daycap, in one tree: catch narrow (`CapExceeded`) or broad (`Refused`, `DaycapError`)."""

from __future__ import annotations

import copyreg
from typing import Any

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


class CapExceeded(AgentRefused):
    """the estimate would exceed the agent's cap for the day

    `retry_after_s` is how many seconds to wait before another try may succeed: one second while calls in progress
    may still free enough, the rest of the day if too much is spent, and None if the estimate exceeds the cap of a
    whole day, so that waiting never helps.

    Amounts are micros, as of the refusal. `estimate_micros` is the amount requested, and
    `spent_micros` + `held_micros` + `waiting_micros` + `leased_micros` + `remaining_micros` == `cap_micros`:

    - spent is settled, and includes what was drawn but not charged under a cap that was raised since;
    - held is in live holds of this process;
    - waiting is the cost of this process's calls that have ended but are not settled yet;
    - leased is set aside for other runners;
    - remaining can still be reserved here. It is negative if the cap was lowered below the sum of the other four.

    `day` is the UTC date of the cap, and `day_ends_in_s` the seconds until it ends.
    """

    retry_after_s: float | None

    def __init__(
        self,
        agent: str,
        *,
        estimate_micros: int,
        cap_micros: int,
        spent_micros: int,
        held_micros: int,
        waiting_micros: int,
        leased_micros: int,
        remaining_micros: int,
        day: str,
        day_ends_in_s: float,
    ) -> None:
        self.estimate_micros = estimate_micros
        self.cap_micros = cap_micros
        self.spent_micros = spent_micros
        self.held_micros = held_micros
        self.waiting_micros = waiting_micros
        self.leased_micros = leased_micros
        self.remaining_micros = remaining_micros
        self.day = day
        self.day_ends_in_s = day_ends_in_s
        if estimate_micros > cap_micros:
            self.retry_after_s = None
            advice = "it exceeds the cap of a whole day, so waiting does not help"
        elif spent_micros + waiting_micros + estimate_micros > cap_micros:
            minutes = max(0, round(day_ends_in_s / 60))
            self.retry_after_s = day_ends_in_s
            advice = f"it cannot fit before the day ends in {minutes // 60} h {minutes % 60} min"
        else:
            self.retry_after_s = min(_RETRY_S, day_ends_in_s)
            advice = "it may fit when calls in progress end"
        remaining = (
            f"{format_usd(remaining_micros)} remaining"
            if remaining_micros >= 0
            else f"{format_usd(-remaining_micros)} over the cap, which was lowered"
        )
        super().__init__(
            agent,
            f"agent {agent}: {format_usd(estimate_micros)} would exceed the cap of {format_usd(cap_micros)} for {day}: "
            f"{format_usd(spent_micros)} spent, {format_usd(held_micros)} held here, "
            f"{format_usd(waiting_micros)} waiting to be settled, {format_usd(leased_micros)} leased by other runners, "
            f"{remaining}; {advice}",
        )


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
