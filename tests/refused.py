"""What refusals have in common. Imports little: a child process of a test reads it."""

from __future__ import annotations

from daycap import CapExceeded, Wallet
from daycap.errors import UnknownModel


def adds_up(refused: CapExceeded) -> bool:
    """Whether its parts are the whole cap."""
    parts = (refused.held_micros, refused.waiting_micros, refused.leased_micros)
    return min(parts) >= 0 and sum(parts) + refused.spent_micros + refused.remaining_micros == refused.cap_micros


def reserve_too_much() -> None:
    """Raise `CapExceeded`: 11 micros of 10."""
    with Wallet.from_env(caps={"agent-7": 10}, environ={}) as wallet:
        wallet.reserve("agent-7", 11)


def ask_for_a_price() -> None:
    """Raise `UnknownModel`."""
    raise UnknownModel("gpt-99", None, "nobody knows it")
