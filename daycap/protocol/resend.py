"""When to resend unconfirmed events."""

from __future__ import annotations

_MOST_DOUBLINGS = 8


def resend_wait_ns(resend_ns: int, resends: int) -> int:
    """Return how long to wait before the next resend, after `resends` without progress."""
    return resend_ns << min(resends, _MOST_DOUBLINGS)
