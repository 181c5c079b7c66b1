"""daycap keeps AI agents inside their daily budget."""

from daycap.errors import (
    AgentPaused,
    BudgetUnavailable,
    CapExceeded,
    CounterUnavailable,
    DaycapError,
    HoldEnded,
    InvalidAmount,
    InvalidInput,
    InvalidSetting,
    LedgerUnavailable,
    OutboxFull,
    Refused,
    Unavailable,
    UnknownAgent,
)
from daycap.money import MAX_MICROS, format_usd, usd

__all__ = [
    "MAX_MICROS",
    "AgentPaused",
    "BudgetUnavailable",
    "CapExceeded",
    "CounterUnavailable",
    "DaycapError",
    "HoldEnded",
    "InvalidAmount",
    "InvalidInput",
    "InvalidSetting",
    "LedgerUnavailable",
    "OutboxFull",
    "Refused",
    "Unavailable",
    "UnknownAgent",
    "format_usd",
    "usd",
]
