"""How amounts and foreign values are shown in messages."""

from __future__ import annotations

MICROS_PER_USD = 1_000_000


def format_usd(amount_micros: int) -> str:
    """Micros for people, exact: `format_usd(31_200) == "$0.0312"`; at least two decimals."""
    whole, rest = divmod(abs(amount_micros), MICROS_PER_USD)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount_micros < 0 else ''}${whole:,}.{decimals}"


def shown(value: object, length: int) -> str:
    """`value` for a message: its repr, at most `length` characters, whatever it is."""
    try:
        return f"{value!r:.{length}}"
    except (ValueError, RecursionError):
        # An int of thousands of digits has no repr, nor has what is nested too deep.
        return f"a {type(value).__name__} too large to show"
