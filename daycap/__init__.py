"""daycap keeps AI agents inside their daily budget."""

from daycap.async_wallet import AsyncWallet
from daycap.base_wallet import WalletStats
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
    NotYourAgent,
    OutboxFull,
    Refused,
    Unavailable,
    UnknownAgent,
    UnknownModel,
)
from daycap.lease import AsyncHold, Hold
from daycap.money import MAX_MICROS, format_usd, usd
from daycap.readings import Reading
from daycap.settings import Settings
from daycap.wallet import Wallet

__all__ = [
    "MAX_MICROS",
    "AgentPaused",
    "AsyncHold",
    "AsyncWallet",
    "BudgetUnavailable",
    "CapExceeded",
    "CounterUnavailable",
    "DaycapError",
    "Hold",
    "HoldEnded",
    "InvalidAmount",
    "InvalidInput",
    "InvalidSetting",
    "LedgerUnavailable",
    "NotYourAgent",
    "OutboxFull",
    "Reading",
    "Refused",
    "Settings",
    "Unavailable",
    "UnknownAgent",
    "UnknownModel",
    "Wallet",
    "WalletStats",
    "format_usd",
    "usd",
]
