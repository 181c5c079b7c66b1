"""Micros are exact ints from 0 to 2**53 - 1; nothing else passes the door (P10)."""

from decimal import Decimal

import pytest

from daycap import MAX_MICROS, InvalidAmount, format_usd, usd
from daycap.money import micros


@pytest.mark.parametrize(
    ("dollars", "expected"),
    [
        ("0.0312", 31_200),
        ("5", 5_000_000),
        (5, 5_000_000),
        (Decimal("0.05"), 50_000),
        ("0", 0),
        ("0.0000001", 1),
        ("1.0000001", 1_000_001),
        (str(7.5e-05), 75),
        ("7.5E-7", 1),
        ("1e-9999", 1),
        (" 5 ", 5_000_000),
        ("+.5", 500_000),
        ("5.", 5_000_000),
        (Decimal("-0"), 0),
        (Decimal("1E-40"), 1),
        ("9007199254.740991", MAX_MICROS),
        (Decimal("1." + "0" * 200 + "1"), 1_000_001),
        (Decimal("1E-999999"), 1),
    ],
)
def test_usd_is_exact_and_rounds_up(dollars: str | int | Decimal, expected: int) -> None:
    assert usd(dollars) == expected


@pytest.mark.parametrize(
    "bad",
    [
        0.1,
        5.0,
        True,
        None,
        b"1",
        "-1",
        -1,
        Decimal("-0.01"),
        "NaN",
        Decimal("NaN"),
        "inf",
        Decimal("Infinity"),
    ]
    + [
        "",
        " ",
        "1e3",
        "1_000",
        "0x10",
        "1,5",
        "٣",
        "9" * 100,
        "9007199254.740992",
        2**53,
        Decimal("1E+999999"),
        Decimal("9007199254.7409910000000000000000001"),
    ],
)
def test_usd_refuses(bad: object) -> None:
    with pytest.raises(InvalidAmount):
        usd(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", ["NaN", "1_000", "٣", "-0", "-5", "1e3", "1e400", "1e-99999", "$5", "5 USD", "5,00", "1,000.00", "0x10", ""]
)
def test_a_text_that_is_no_amount_is_told_how_to_write_one(bad: str) -> None:
    with pytest.raises(InvalidAmount, match=r'write digits with a decimal point, such as "1250.50" or "7.5e-05"'):
        usd(bad)


def test_a_float_is_told_how_to_become_an_amount() -> None:
    with pytest.raises(InvalidAmount, match=r"usd\(str\(amount\)\)"):
        usd(7.5e-05)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-1, 2**53, 1.0, True, "1", None, float("nan")])
def test_micros_refuses(bad: object) -> None:
    with pytest.raises(InvalidAmount):
        micros(bad)


def test_micros_takes_the_whole_range() -> None:
    assert micros(0) == 0
    assert micros(2**53 - 1) == 9_007_199_254_740_991


@pytest.mark.parametrize(
    ("amount", "text"), [(31_200, "$0.0312"), (5_000_000, "$5.00"), (1, "$0.000001"), (-1_500_000, "-$1.50")]
)
def test_format_usd(amount: int, text: str) -> None:
    assert format_usd(amount) == text
