"""Kinds of dead letters, as the ledger stores them and commands name them."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Why an event, or a whole message, could not be settled."""

    MALFORMED = "malformed"
    """It does not follow the wire format."""
    UNKNOWN_AGENT = "unknown_agent"
    """There is no account to charge."""
    UNKNOWN_BUDGET = "unknown_budget"
    """It names a budget, or a period of one, that does not exist."""
    WRONG_LEASE = "wrong_lease"
    """The lease belongs to another agent or another day."""
    WRONG_DAY = "wrong_day"
    """The day is in the future."""
    DAY_CLOSED = "day_closed"
    """The day's books are closed."""
    CONFLICT = "conflict"
    """The hold was settled before, with another payload."""
    FAILED = "failed"
    """The ledger rejected the event, even in a transaction of its own."""
