"""When to resend events that nobody has confirmed."""

from __future__ import annotations

_MOST_DOUBLINGS = 8


def resend_wait_ns(resend_ns: int, resends: int) -> int:
    """How long to wait before the next resend, after so many that brought nothing."""
    return resend_ns << min(resends, _MOST_DOUBLINGS)
