"""Micros: micro-USD, the only money unit inside daycap."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, localcontext

from daycap.errors import InvalidAmount
from daycap.formats import MICROS_PER_USD, format_usd, shown

__all__ = ["MAX_MICROS", "MICROS_PER_USD", "decimal_of", "format_usd", "micros", "usd"]

MAX_MICROS = 2**53 - 1
"""The largest amount. Redis' Lua and JavaScript count exactly up to here (IEEE 754 binary64)."""

_MAX_USD = Decimal(MAX_MICROS).scaleb(-6)
_PLAIN_DECIMAL = re.compile(r"\+?(\d+(\.\d*)?|\.\d+)(e-\d{1,4})?", re.ASCII | re.IGNORECASE)
_LONGEST_DECIMAL = 64
_HINT = 'write digits with a decimal point, such as "1250.50" or "7.5e-05", without a sign, a currency or separators'


def micros(value: object) -> int:
    """Return `value` if it is an amount of micros: an `int` (not a `bool`) from 0 to `MAX_MICROS`.

    Raises `InvalidAmount` for everything else, including floats.
    """
    if type(value) is not int:
        raise InvalidAmount(f"an amount is an int of micros, not {type(value).__name__}; usd() makes one")
    if not 0 <= value <= MAX_MICROS:
        raise InvalidAmount(f"{shown(value, 40)} micros is outside 0 .. 2**53 - 1")
    return value


def usd(amount: str | int | Decimal) -> int:
    """Convert US dollars to micros, rounding up: `usd("0.0312") == 31_200`.

    Takes a decimal string, an `int` of dollars or a `Decimal`. The string may have a negative exponent, as `str` writes
    small floats ("7.5e-05"). A positive exponent is refused: "1e3" is more likely a typo than a thousand dollars.
    Raises `InvalidAmount` for floats (0.1 is not exactly a tenth), bools, NaN, infinities, negatives and anything over
    `MAX_MICROS`.
    """
    if isinstance(amount, str):
        exact = decimal_of(amount)
        if exact is None:
            raise InvalidAmount(f"not an amount of US dollars: {amount[:_LONGEST_DECIMAL]!r}; {_HINT}")
    elif type(amount) is int or isinstance(amount, Decimal):
        exact = Decimal(amount)
    else:
        hint = "; usd(str(amount)) takes a float as it is written" if isinstance(amount, float) else ""
        raise InvalidAmount(f"usd() takes a str, an int or a Decimal, not {type(amount).__name__}{hint}")
    if not exact.is_finite() or exact < 0:
        raise InvalidAmount(f"not an amount of US dollars: {shown(amount, 64)}; it must be finite and not negative")
    if exact > _MAX_USD:
        raise InvalidAmount(f"{shown(amount, 64)} US dollars is more than 2**53 - 1 micros")
    with localcontext(prec=_LONGEST_DECIMAL, rounding=ROUND_CEILING):
        return int((exact * MICROS_PER_USD).to_integral_value())


def decimal_of(text: str) -> Decimal | None:
    """Parse a decimal exactly; return None if `text` is malformed or too long."""
    text = text.strip()
    return Decimal(text) if len(text) <= _LONGEST_DECIMAL and _PLAIN_DECIMAL.fullmatch(text) else None
