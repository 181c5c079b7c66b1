"""Micros: micro-USD, the only money unit inside daycap."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, localcontext

from daycap.errors import InvalidAmount, shown

MICROS_PER_USD = 1_000_000

MAX_MICROS = 2**53 - 1
"""The largest amount. Redis' Lua and JavaScript count exactly up to here (IEEE 754 binary64)."""

_MAX_USD = Decimal(MAX_MICROS).scaleb(-6)
_PLAIN_DECIMAL = re.compile(r"\+?(\d+(\.\d*)?|\.\d+)", re.ASCII)
_LONGEST_DECIMAL = 64


def micros(value: object) -> int:
    """`value`, if it is an amount of micros: an `int` (not a `bool`) from 0 to `MAX_MICROS`.

    Raises `InvalidAmount` for everything else, floats included.
    """
    if type(value) is not int:
        raise InvalidAmount(f"an amount is an int of micros, not {type(value).__name__}; usd() makes one")
    if not 0 <= value <= MAX_MICROS:
        raise InvalidAmount(f"{shown(value, 40)} micros is outside 0 .. 2**53 - 1")
    return value


def usd(amount: str | int | Decimal) -> int:
    """US dollars as micros, rounded up to the next micro: `usd("0.0312") == 31_200`.

    Takes a plain decimal string, an `int` of dollars or a `Decimal`. Raises `InvalidAmount` for floats
    (0.1 is not a tenth), bools, NaN, infinities, negatives and anything over `MAX_MICROS`.
    """
    if isinstance(amount, str):
        text = amount.strip()
        if len(text) > _LONGEST_DECIMAL or not _PLAIN_DECIMAL.fullmatch(text):
            raise InvalidAmount(f"not an amount of US dollars: {amount[:_LONGEST_DECIMAL]!r}")
        exact = Decimal(text)
    elif type(amount) is int or isinstance(amount, Decimal):
        exact = Decimal(amount)
    else:
        raise InvalidAmount(f"usd() takes a str, an int or a Decimal, not {type(amount).__name__}")
    if not exact.is_finite() or exact < 0:
        raise InvalidAmount(f"not an amount of US dollars: {shown(amount, 64)}")
    if exact > _MAX_USD:
        raise InvalidAmount(f"{shown(amount, 64)} US dollars is more than 2**53 - 1 micros")
    with localcontext(prec=_LONGEST_DECIMAL, rounding=ROUND_CEILING):
        return int((exact * MICROS_PER_USD).to_integral_value())


def format_usd(amount_micros: int) -> str:
    """Micros for people, exact: `format_usd(31_200) == "$0.0312"`; at least two decimals."""
    whole, rest = divmod(abs(amount_micros), MICROS_PER_USD)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount_micros < 0 else ''}${whole:,}.{decimals}"
