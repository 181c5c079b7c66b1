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
    NotYourAgent,
    OutboxFull,
    Refused,
    Unavailable,
    UnknownAgent,
    UnknownModel,
)
from daycap.money import MAX_MICROS, format_usd, usd
from daycap.settings import Settings
from daycap.wallet.aio import AsyncWallet
from daycap.wallet.base import WalletStats
from daycap.wallet.hold import AsyncHold, Hold
from daycap.wallet.readings import Reading
from daycap.wallet.sync import Wallet

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
