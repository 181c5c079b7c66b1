"""daycap keeps AI agents inside their daily budget."""

from typing import TYPE_CHECKING

from daycap.errors import (
    AgentExists,
    AgentPaused,
    BudgetExists,
    BudgetUnavailable,
    CapExceeded,
    CounterUnavailable,
    DaycapError,
    FullBudget,
    GroupExists,
    HoldEnded,
    InvalidAmount,
    InvalidInput,
    InvalidSetting,
    LedgerUnavailable,
    NotYourAgent,
    OutboxFull,
    Refused,
    RunEnded,
    Unavailable,
    UnknownAgent,
    UnknownBudget,
    UnknownGroup,
    UnknownModel,
)
from daycap.money import MAX_MICROS, format_usd, usd
from daycap.settings import Settings
from daycap.wallet.aio import AsyncWallet
from daycap.wallet.base import WalletStats
from daycap.wallet.hold import AsyncHold, Hold
from daycap.wallet.readings import Reading
from daycap.wallet.run import Run
from daycap.wallet.sync import Wallet

__all__ = [
    "MAX_MICROS",
    "AgentExists",
    "AgentPaused",
    "AsyncHold",
    "AsyncWallet",
    "BudgetExists",
    "BudgetUnavailable",
    "CapExceeded",
    "CounterUnavailable",
    "DaycapError",
    "FullBudget",
    "GroupExists",
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
    "Run",
    "RunEnded",
    "Settings",
    "Unavailable",
    "UnknownAgent",
    "UnknownBudget",
    "UnknownGroup",
    "UnknownModel",
    "Wallet",
    "WalletStats",
    "__version__",
    "format_usd",
    "usd",
]

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415  (looks the package up on disk)

    return version("daycap")
