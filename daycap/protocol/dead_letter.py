"""Kinds of dead letters, as the ledger stores them and commands name them."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Why an event, or a whole message, could not be settled."""

    MALFORMED = "malformed"
    """It is not of the wire's form."""
    UNKNOWN_AGENT = "unknown_agent"
    """There is no account to charge."""
    WRONG_LEASE = "wrong_lease"
    """The ledger knows the lease as another agent's or another day's."""
    WRONG_DAY = "wrong_day"
    """The day is not yet there."""
    DAY_CLOSED = "day_closed"
    """The day's books are closed."""
    CONFLICT = "conflict"
    """The hold was settled before, with another payload."""
    FAILED = "failed"
    """The ledger refused the row, whatever it was tried with."""
