"""What can go wrong, in one tree: catch narrow (`CapExceeded`) or broad (`Refused`, `DaycapError`)."""

from __future__ import annotations


def shown(value: object, length: int) -> str:
    """`value` for a message: its repr, at most `length` characters, whatever it is."""
    try:
        return f"{value!r:.{length}}"
    except (ValueError, RecursionError):
        # An int of thousands of digits has no repr, nor has what is nested too deep.
        return f"a {type(value).__name__} too large to show"


class DaycapError(Exception):
    """daycap could not do what was asked"""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__class__.__doc__)


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

    All amounts are micros, as the counter knew them when it refused: `estimate_micros` asked for,
    `cap_micros`, `spent_micros` settled (with what was drawn uncharged under a cap since raised),
    `leased_micros` set aside by other runners,
    `remaining_micros` what could still be reserved here. `day` is the UTC date that the cap is for and
    `day_ends_in_s` the seconds until it ends.
    """

    def __init__(
        self,
        agent: str,
        *,
        estimate_micros: int,
        cap_micros: int,
        spent_micros: int,
        leased_micros: int,
        remaining_micros: int,
        day: str,
        day_ends_in_s: float,
    ) -> None:
        self.estimate_micros = estimate_micros
        self.cap_micros = cap_micros
        self.spent_micros = spent_micros
        self.leased_micros = leased_micros
        self.remaining_micros = remaining_micros
        self.day = day
        self.day_ends_in_s = day_ends_in_s
        from daycap.money import format_usd  # noqa: PLC0415  (it raises errors of this module)

        minutes = round(day_ends_in_s / 60)
        super().__init__(
            agent,
            f"agent {agent}: {format_usd(estimate_micros)} would pass the cap of {format_usd(cap_micros)} for {day}: "
            f"{format_usd(spent_micros)} spent, {format_usd(leased_micros)} leased by others, "
            f"{format_usd(remaining_micros)} remaining; "
            f"the day ends in {minutes // 60} h {minutes % 60} min",
        )


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
