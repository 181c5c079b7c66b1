"""Format amounts and untrusted values for messages."""

from __future__ import annotations

MICROS_PER_USD = 1_000_000


def format_usd(amount_micros: int) -> str:
    """Format micros exactly, with at least two decimals: `format_usd(31_200) == "$0.0312"`."""
    whole, rest = divmod(abs(amount_micros), MICROS_PER_USD)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount_micros < 0 else ''}${whole:,}.{decimals}"


def shown(value: object, length: int) -> str:
    """Return the repr of any value for a message, cut to `length` characters."""
    try:
        return f"{value!r:.{length}}"
    except (ValueError, RecursionError):
        # An int of thousands of digits has no repr, nor does a value that is nested too deeply.
        return f"a {type(value).__name__} too large to show"
