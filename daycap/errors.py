"""What can go wrong, in one tree: catch narrow (`CapExceeded`) or broad (`Refused`, `DaycapError`)."""

from __future__ import annotations

import copyreg
from typing import Any

from daycap.formats import format_usd, shown


class DaycapError(Exception):
    """daycap could not do what was asked"""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__class__.__doc__)

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by calling the class with `args`, as exceptions do: most of these are made of more than a message.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class Refused(DaycapError):
    """refused: the caller's money or input does not allow it"""


class InvalidAmount(Refused, ValueError):
    """an amount must be an int of micro-USD from 0 to 2**53 - 1"""


class InvalidInput(Refused, ValueError):
    """an agent, a day, a message or a usage is not of the form that the contract gives it"""


class UnknownModel(Refused, LookupError):
    """there is no price for this model

    `model` and `provider` as they were given; the message says what is missing, and how to give a price.
    """

    def __init__(self, model: str, provider: str | None, what: str) -> None:
        self.model = model
        self.provider = provider
        super().__init__(
            f"no price for model {shown(model, 100)}{f' of {shown(provider, 60)}' if provider else ''}: {what}; "
            "give one in the file that DAYCAP_PRICES_FILE names"
        )


class InvalidSetting(DaycapError, ValueError):
    """a setting has a value that cannot be used"""


class HoldEnded(Refused):
    """this hold was finalized or released before"""


class AgentExists(Refused):
    """the agent exists already; change its cap with: daycap cap set NAME USD"""


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
    """its identity anchor is not the one that this wallet is bound to (DAYCAP_IDENTITY_ANCHOR, or anchor=)"""


class CapExceeded(AgentRefused):
    """the estimate would pass the agent's cap of the day

    `retry_after_s` decides what to do: seconds until another try may succeed. That is a second while calls under way
    may still free enough, the rest of the day where too much is spent, and None where the estimate is more than the
    cap of a whole day, so that waiting never helps.

    Amounts are micros, at the moment of the refusal: `estimate_micros` asked for, `cap_micros`, and what the cap is
    made of: `spent_micros` + `held_micros` + `waiting_micros` + `leased_micros` + `remaining_micros` == `cap_micros`.
    Spent is settled (with what was drawn uncharged under a cap since raised), held is what live holds of this process
    have, waiting is what its calls cost that have ended and are not settled, leased is set aside by other runners.
    Remaining could still be reserved here; it is negative where the cap was lowered below the other four.
    `day` is the UTC date that the cap is for and `day_ends_in_s` the seconds until it ends.
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
            waiting_helps = "it is more than the whole day's cap, so waiting does not help"
        elif spent_micros + waiting_micros + estimate_micros > cap_micros:
            minutes = max(0, round(day_ends_in_s / 60))
            self.retry_after_s = day_ends_in_s
            waiting_helps = f"it cannot fit before the day ends in {minutes // 60} h {minutes % 60} min"
        else:
            self.retry_after_s = min(_RETRY_S, day_ends_in_s)
            waiting_helps = "it may fit when calls under way end"
        remaining = (
            f"{format_usd(remaining_micros)} remaining"
            if remaining_micros >= 0
            else f"{format_usd(-remaining_micros)} more than the cap, which was lowered"
        )
        super().__init__(
            agent,
            f"agent {agent}: {format_usd(estimate_micros)} would pass the cap of {format_usd(cap_micros)} for {day}: "
            f"{format_usd(spent_micros)} spent, {format_usd(held_micros)} held here, "
            f"{format_usd(waiting_micros)} waiting to be settled, {format_usd(leased_micros)} leased by other runners, "
            f"{remaining}; {waiting_helps}",
        )


_RETRY_S = 1.0


class Unavailable(DaycapError):
    """the system cannot answer now; trying again later may succeed"""


class BudgetUnavailable(Unavailable):
    """the check could not be made safely, so nothing was reserved"""


class OutboxFull(BudgetUnavailable):
    """the outbox has no room for another event: too many wait for a broker or a worker that is away"""


class CounterUnavailable(Unavailable):
    """the counter did not answer in time, or cannot be reached"""


class LedgerUnavailable(Unavailable):
    """the ledger did not answer, or cannot be reached"""
