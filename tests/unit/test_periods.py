"""Periods: the bounds and ids that a calendar on the wall shows."""

from __future__ import annotations

import pickle
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.errors import InvalidInput
from daycap.periods import END_MS, UTC_DAY, Period, PeriodRule

HOUR_MS = 3_600_000


def ms(moment: str) -> int:
    """Read an ISO 8601 moment with its offset."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def span(period_id: str, start: str, end: str) -> Period:
    return Period(period_id, ms(start), ms(end))


def walk(rule: PeriodRule, start: str, count: int) -> list[Period]:
    """Return the period that contains `start` and those that follow it."""
    found = [rule.at(ms(start))]
    while len(found) < count:
        found.append(rule.after(found[-1]))
    return found


ZURICH = "Europe/Zurich"

SPANS = {
    "a day of 23 hours": (
        PeriodRule("day", ZURICH),
        span("2026-03-29", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00"),
    ),
    "a day of 25 hours": (
        PeriodRule("day", ZURICH),
        span("2026-10-25", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00"),
    ),
    "a day from 04:00": (
        PeriodRule("day", ZURICH, hour=4),
        span("2026-03-28", "2026-03-28T04:00+01:00", "2026-03-29T04:00+02:00"),
    ),
    "a day whose first hour is skipped": (
        PeriodRule("day", ZURICH, hour=2),
        span("2026-03-29", "2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"),
    ),
    "a day whose first hour occurs twice": (
        PeriodRule("day", ZURICH, hour=2),
        span("2026-10-25", "2026-10-25T02:00+02:00", "2026-10-26T02:00+01:00"),
    ),
    "midnight is skipped": (
        PeriodRule("day", "Africa/Cairo"),
        span("2026-04-24", "2026-04-24T01:00+03:00", "2026-04-25T00:00+03:00"),
    ),
    "midnight occurs twice": (
        PeriodRule("day", "America/Havana"),
        span("2026-11-01", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00"),
    ),
    # At 00:01 the clock went back to 23:01, so the date of the day before came back for 59 minutes.
    "yesterday comes back": (
        PeriodRule("day", "America/St_Johns"),
        span("2010-11-07", "2010-11-07T00:00-02:30", "2010-11-08T00:00-03:30"),
    ),
    "a day of 24.5 hours": (
        PeriodRule("day", "Australia/Lord_Howe"),
        span("2026-04-05", "2026-04-05T00:00+11:00", "2026-04-06T00:00+10:30"),
    ),
    # The clock went from 00:00 to 24:00, so 04:00 was over when it could have begun.
    "a day that a zone skips, from 04:00": (
        PeriodRule("day", "Pacific/Apia", hour=4),
        span("2011-12-30", "2011-12-31T00:00+14:00", "2011-12-31T04:00+14:00"),
    ),
    "a week from Monday": (
        PeriodRule("week"),
        span("2026-W48", "2026-11-23T00:00Z", "2026-11-30T00:00Z"),
    ),
    "a week from Sunday": (
        PeriodRule("week", ZURICH, weekday=7),
        span("2026-W13", "2026-03-22T00:00+01:00", "2026-03-29T00:00+01:00"),
    ),
    "a week from Friday at 18:00": (
        PeriodRule("week", "America/New_York", hour=18, weekday=5),
        span("2026-W45", "2026-10-30T18:00-04:00", "2026-11-06T18:00-05:00"),
    ),
    "the week of two years": (
        PeriodRule("week"),
        span("2026-W53", "2026-12-28T00:00Z", "2027-01-04T00:00Z"),
    ),
    "a month": (
        PeriodRule("month", ZURICH),
        span("2026-03", "2026-03-01T00:00+01:00", "2026-04-01T00:00+02:00"),
    ),
    "a month from the 5th": (
        PeriodRule("month", ZURICH, monthday=5),
        span("2026-10", "2026-10-05T00:00+02:00", "2026-11-05T00:00+01:00"),
    ),
    "a month from the 31st in February": (
        PeriodRule("month", monthday=31),
        span("2026-02", "2026-02-28T00:00Z", "2026-03-31T00:00Z"),
    ),
    "a month from the 30th in a leap year": (
        PeriodRule("month", monthday=30, hour=6),
        span("2028-02", "2028-02-29T06:00Z", "2028-03-30T06:00Z"),
    ),
    "a year": (
        PeriodRule("year", "America/New_York"),
        span("2026", "2026-01-01T00:00-05:00", "2027-01-01T00:00-05:00"),
    ),
    "an hour of UTC": (
        PeriodRule("hour"),
        span("2026-11-27T14+00", "2026-11-27T14:00Z", "2026-11-27T15:00Z"),
    ),
    "an hour west of UTC": (
        PeriodRule("hour", "America/St_Johns"),
        span("2026-11-27T14-0330", "2026-11-27T14:00-03:30", "2026-11-27T15:00-03:30"),
    ),
    "an hour of Kathmandu": (
        PeriodRule("hour", "Asia/Kathmandu"),
        span("2026-11-27T14+0545", "2026-11-27T08:15Z", "2026-11-27T09:15Z"),
    ),
}


@pytest.mark.parametrize("name", SPANS)
def test_bounds_and_id(name: str) -> None:
    rule, period = SPANS[name]
    for instant in (period.start_ms, (period.start_ms + period.end_ms) // 2, period.end_ms - 1):
        assert PeriodRule.from_json(rule.to_json()).at(instant) == period
    assert PeriodRule.from_json(rule.to_json()).named(period.id) == period
    assert rule.at(period.start_ms - 1).end_ms == period.start_ms
    assert rule.after(period).start_ms == period.end_ms


@pytest.mark.parametrize(
    ("instant", "day"),
    [
        ("2010-11-06T23:59:59-02:30", "2010-11-06"),
        ("2010-11-07T00:00:30-02:30", "2010-11-07"),
        ("2010-11-06T23:30:00-03:30", "2010-11-07"),
    ],
)
def test_yesterday_does_not_begin_again(instant: str, day: str) -> None:
    assert PeriodRule("day", "America/St_Johns").at(ms(instant)).id == day


def test_hour_that_occurs_twice_has_two_ids() -> None:
    assert walk(PeriodRule("hour", ZURICH), "2026-10-25T02:30+02:00", 3) == [
        span("2026-10-25T02+02", "2026-10-25T00:00Z", "2026-10-25T01:00Z"),
        span("2026-10-25T02+01", "2026-10-25T01:00Z", "2026-10-25T02:00Z"),
        span("2026-10-25T03+01", "2026-10-25T02:00Z", "2026-10-25T03:00Z"),
    ]


def test_hour_that_is_skipped_does_not_exist() -> None:
    rule = PeriodRule("hour", ZURICH)
    assert walk(rule, "2026-03-29T01:00+01:00", 2) == [
        span("2026-03-29T01+01", "2026-03-29T00:00Z", "2026-03-29T01:00Z"),
        span("2026-03-29T03+02", "2026-03-29T01:00Z", "2026-03-29T02:00Z"),
    ]
    for skipped in ("2026-03-29T02+01", "2026-03-29T02+02"):
        with pytest.raises(InvalidInput):
            rule.named(skipped)


def test_hours_when_the_clock_moves_by_half_an_hour() -> None:
    rule = PeriodRule("hour", "Australia/Lord_Howe")
    assert walk(rule, "2026-04-05T01:00+11:00", 3) == [
        span("2026-04-05T01+11", "2026-04-04T14:00Z", "2026-04-04T15:00Z"),
        span("2026-04-05T01+1030", "2026-04-04T15:00Z", "2026-04-04T15:30Z"),
        span("2026-04-05T02+1030", "2026-04-04T15:30Z", "2026-04-04T16:30Z"),
    ]
    assert walk(rule, "2026-10-04T01:00+10:30", 3) == [
        span("2026-10-04T01+1030", "2026-10-03T14:30Z", "2026-10-03T15:30Z"),
        span("2026-10-04T02+11", "2026-10-03T15:30Z", "2026-10-03T16:00Z"),
        span("2026-10-04T03+11", "2026-10-03T16:00Z", "2026-10-03T17:00Z"),
    ]


def test_hour_that_a_clock_change_ends() -> None:
    assert walk(PeriodRule("hour", "America/St_Johns"), "2010-11-07T00:00-02:30", 3) == [
        span("2010-11-07T00-0230", "2010-11-07T02:30Z", "2010-11-07T02:31Z"),
        span("2010-11-06T23-0330", "2010-11-07T02:31Z", "2010-11-07T03:30Z"),
        span("2010-11-07T00-0330", "2010-11-07T03:30Z", "2010-11-07T04:30Z"),
    ]


def test_hour_that_an_odd_offset_cuts() -> None:
    assert walk(PeriodRule("hour", "Africa/Monrovia"), "1972-01-06T23:30-00:44:30", 3) == [
        span("1972-01-06T23-004430", "1972-01-06T23:44:30Z", "1972-01-07T00:44:30Z"),
        span("1972-01-07T00+00", "1972-01-07T00:44:30Z", "1972-01-07T01:00Z"),
        span("1972-01-07T01+00", "1972-01-07T01:00Z", "1972-01-07T02:00Z"),
    ]


def test_day_that_a_zone_skips_does_not_exist() -> None:
    rule = PeriodRule("day", "Pacific/Apia")
    assert walk(rule, "2011-12-29T12:00-10:00", 2) == [
        span("2011-12-29", "2011-12-29T10:00Z", "2011-12-30T10:00Z"),
        span("2011-12-31", "2011-12-30T10:00Z", "2011-12-31T10:00Z"),
    ]
    with pytest.raises(InvalidInput):
        rule.named("2011-12-30")


def test_weeks_from_sunday_have_numbers_of_their_own() -> None:
    assert [period.id for period in walk(PeriodRule("week", weekday=7), "2026-12-20T00:00Z", 4)] == [
        "2026-W52",
        "2026-W53",
        "2027-W01",
        "2027-W02",
    ]


def test_month_from_the_31st_begins_in_each_month() -> None:
    starts = [period.start_ms for period in walk(PeriodRule("month", monthday=31), "2026-01-31T00:00Z", 5)]
    days = ("2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31")
    assert starts == [day_start_ms(day) for day in days]


def test_utc_day_is_the_day_of_the_clock() -> None:
    for instant in (0, 1, DAY_MS - 1, DAY_MS, ms("2026-11-27T23:59:59.999Z"), END_MS - 1):
        start = day_start_ms(day_of(instant))
        assert UTC_DAY.at(instant) == (day_of(instant), start, start + DAY_MS)


def test_once_never_ends() -> None:
    rule = PeriodRule("once")
    assert rule.at(0) == rule.at(END_MS - 1) == rule.named("once") == ("once", 0, END_MS)
    with pytest.raises(InvalidInput, match="no period follows once"):
        rule.after(rule.at(0))


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati", "Africa/Monrovia"])
@pytest.mark.parametrize("kind", ["hour", "day", "week", "month", "year"])
def test_first_and_last_period_are_cut(kind: str, zone: str) -> None:
    for weekday in range(1, 8) if kind == "week" else (1,):
        rule = PeriodRule(kind, zone, weekday=weekday)
        first, last = rule.at(0), rule.at(END_MS - 1)
        assert (first.start_ms, last.end_ms) == (0, END_MS)
        assert (rule.named(first.id), rule.named(last.id)) == (first, last)
        assert rule.after(rule.at(last.start_ms - 1)) == last
        with pytest.raises(InvalidInput, match="no period follows"):
            rule.after(last)


def test_no_period_begins_in_year_10000() -> None:
    assert PeriodRule("day", "Asia/Tokyo").at(END_MS - 1) == ("9999-12-31", ms("9999-12-31T00:00+09:00"), END_MS)
    last = PeriodRule("day", "America/New_York", hour=20).at(END_MS - 1)
    assert last == ("9999-12-30", ms("9999-12-30T20:00-05:00"), END_MS)
    assert PeriodRule("week", weekday=5).at(END_MS - 1) == ("9999-W52", ms("9999-12-24T00:00Z"), END_MS)


@pytest.mark.parametrize("kind", ["hour", "day", "week", "month", "year", "once"])
def test_other_instants_are_refused(kind: str) -> None:
    instants: list[Any] = [-1, END_MS, 2**63, -(10**400), 10**5000, float("nan"), float("inf")]
    for instant in instants:
        with pytest.raises(InvalidInput, match="years 1970 to 9999"):
            PeriodRule(kind).at(instant)


def test_instant_must_be_an_int() -> None:
    with pytest.raises(InvalidInput):
        PeriodRule("day").at(1.5e12)  # type: ignore[arg-type]


BAD_IDS = {
    "hour": ["2026-11-27T14", "2026-11-27T14Z", "2026-11-27T14+0000", "2026-11-27T14+00:00", "2026-11-27T14-00",
             "2026-11-27 14+00", "2026-11-27T24+00", "20261127T14+00", "2026-11-27T14+01", "2026-11-27T14:00+00"],
    "day": ["20261127", "2026-W48-5", "2026-11-31", "2026-11", "2026-11-27 ", "2026-11-27\n", "1969-12-31",
            "10000-01-01"],
    "week": ["2026W48", "2026-W48-1", "2026-W54", "2025-W53", "2026-W00", "2026-W1", "2026-w48", "1969-W52",
             "0001-W01", "9999-W53"],
    "month": ["202611", "2026-13", "2026-00", "2026-1", "2026-11-01", "1969-12"],
    "year": ["26", "02026", "+2026", "1969", "0000", "0001", "10000", "2026-01"],
    "once": ["ONCE", "one", "once "],
}  # fmt: skip
ANY_BAD_ID: list[Any] = [
    "",
    "\0",
    "\ud800",
    "\uff12\uff10\uff12\uff16",
    "x" * 10_000_000,
    None,
    2026,
    2.5,
    True,
    b"2026",
    [],
    {},
]


@pytest.mark.parametrize("kind", BAD_IDS)
def test_an_id_has_one_spelling(kind: str) -> None:
    rule = PeriodRule(kind)
    for period_id in [*BAD_IDS[kind], *ANY_BAD_ID]:
        with pytest.raises(InvalidInput, match="not the id of a period") as caught:
            rule.named(period_id)
        assert len(str(caught.value)) < 120


def test_week_that_begins_before_year_1_is_refused() -> None:
    with pytest.raises(InvalidInput):
        PeriodRule("week", weekday=5).named("0001-W01")


def test_ids_of_other_kinds_are_refused() -> None:
    ids = {kind: PeriodRule(kind).at(ms("2026-11-27T14:00Z")).id for kind in BAD_IDS}
    for kind, own in ids.items():
        for period_id in set(ids.values()) - {own}:
            with pytest.raises(InvalidInput):
                PeriodRule(kind).named(period_id)


def test_last_period_is_remembered() -> None:
    """Finding it takes some 15 us, and `at` is called for each reservation."""
    rule = PeriodRule("day", ZURICH)
    period = rule.at(ms("2026-11-27T12:00Z"))
    assert rule.at(period.end_ms - 1) is period
    assert rule.named(period.id) is period


def test_after_counts_the_id_alone() -> None:
    """The bounds of a period that is kept may be those of older time zone data."""
    rule = PeriodRule("day", ZURICH)
    assert rule.after(Period("2026-11-27", 1, 2)) == rule.at(ms("2026-11-28T12:00+01:00"))
    with pytest.raises(InvalidInput):
        rule.after(Period("2026-11", 1, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "fortnight"}, "unknown period 'fortnight': use one of hour, day, week, month, year, once"),
        ({"kind": ["day"]}, "unknown period"),
        ({"kind": "day", "hour": 24}, "hour must be an int from 0 to 23, not 24"),
        ({"kind": "day", "hour": -1}, "hour must be"),
        ({"kind": "day", "hour": True}, "hour must be"),
        ({"kind": "day", "hour": 4.0}, "hour must be"),
        ({"kind": "week", "weekday": 0}, "weekday must be an int from 1 to 7"),
        ({"kind": "week", "weekday": 8}, "weekday must be"),
        ({"kind": "month", "monthday": 32}, "monthday must be an int from 1 to 31"),
        ({"kind": "month", "monthday": 0}, "monthday must be"),
        ({"kind": "month", "weekday": 7}, "'weekday' does not apply to the period 'month'"),
        ({"kind": "day", "monthday": 5}, "'monthday' does not apply"),
        ({"kind": "hour", "hour": 4}, "'hour' does not apply"),
        ({"kind": "once", "zone": "Europe/Zurich"}, "'zone' does not apply"),
    ],
)
def test_rule_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        PeriodRule(**fields)
    with pytest.raises(InvalidInput, match=message):
        PeriodRule.from_json({"period": fields.pop("kind"), **fields})


BAD_ZONES: list[Any] = [
    "../../etc/passwd", "/etc/passwd", "Europe/../Europe/Zurich", "Europe//Zurich", "Europe/", "Europe", "", ".",
    "A\0B", "localtime", "posixrules", "right/Europe/Zurich", "posix/Europe/Zurich", "zone.tab",
    "tzdata.zi", "leapseconds", "__init__", "Europe/__init__", "Europe/Zurich\n", "europe/zurich", "Europe/Zürich",
    "Europe\\Zurich", "utc", "+01:00", "X" * 10_000_000, "A/" * 1_000_000, "\ud800", None, 1, ["UTC"], b"UTC", {},
]  # fmt: skip


@pytest.mark.parametrize("zone", BAD_ZONES, ids=lambda zone: ascii(zone)[:20])
def test_other_zones_are_refused(zone: Any) -> None:
    with pytest.raises(InvalidInput, match="use an IANA name such as 'Europe/Zurich'") as caught:
        PeriodRule("day", zone)
    assert len(str(caught.value)) < 300


def test_json_has_what_differs_from_the_default() -> None:
    assert UTC_DAY.to_json() == {"period": "day"}
    rule = PeriodRule("month", ZURICH, hour=4, monthday=5)
    assert rule.to_json() == {"period": "month", "zone": ZURICH, "hour": 4, "monthday": 5}
    assert PeriodRule.from_json(rule.to_json()) == rule
    assert PeriodRule.from_json({"period": "week", "zone": "UTC", "hour": 0, "weekday": 1}) == PeriodRule("week")


@pytest.mark.parametrize(
    "obj",
    [None, [], "day", {}, {"kind": "day"}, {"period": None}, {"period": "day", "kind": "day"}, {"period": "day", 1: 2},
     {"period": "day", "_zone": None}, {"period": "day", "weekday": 1}, {"period": "once", "zone": "UTC"}],
)  # fmt: skip
def test_other_json_is_refused(obj: object) -> None:
    with pytest.raises(InvalidInput):
        PeriodRule.from_json(obj)


def test_rules_are_compared_by_their_fields() -> None:
    one, other = PeriodRule("day", ZURICH), PeriodRule("day", ZURICH)
    one.at(ms("2026-11-27T12:00Z"))
    assert one == other == pickle.loads(pickle.dumps(one))
    assert len({one, other, PeriodRule("day", ZURICH, hour=4)}) == 2
    fields = "kind='day', zone='Europe/Zurich', hour=0, weekday=1, monthday=1, until_ms=253402300800000"
    assert repr(one) == f"PeriodRule({fields})"


NO_DATA = """
import sys
sys.modules["tzdata"] = None
from daycap.errors import InvalidInput
from daycap.periods import UTC_DAY, PeriodRule
assert UTC_DAY.at(0).id == PeriodRule("hour", "UTC").at(0).id[:10] == "1970-01-01"
try:
    PeriodRule("day", "Europe/Zurich")
except InvalidInput as error:
    print(error)
"""
DATA_OF_THE_PACKAGE = """
from daycap.periods import PeriodRule
print(PeriodRule("hour", "Europe/Zurich").at(0).id)
"""


@pytest.mark.parametrize(
    ("program", "output"),
    [(NO_DATA, "install the package tzdata"), (DATA_OF_THE_PACKAGE, "1970-01-01T01+01")],
    ids=["no data at all", "the package's data"],
)
def test_system_without_time_zones(program: str, output: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONTZPATH": ""}, capture_output=True, text=True, check=True
    )
    assert output in run.stdout


def test_once_may_have_an_end() -> None:
    rule = PeriodRule("once", until_ms=1_795_900_000_000)
    assert rule.at(0) == rule.named("once") == Period("once", 0, 1_795_900_000_000)
    assert rule.at(1_795_900_000_001) == rule.at(0), "it is over, and there is no other"
    assert [rule.contains(ms) for ms in (0, 1_795_899_999_999, 1_795_900_000_000)] == [True, True, False]
    assert PeriodRule.from_json(rule.to_json()) == rule
    with pytest.raises(InvalidInput, match="no period follows"):
        rule.after(rule.at(0))
    for wrong in (0, -1, 253_402_300_800_001, True):
        with pytest.raises(InvalidInput):
            PeriodRule("once", until_ms=wrong)
    with pytest.raises(InvalidInput):
        PeriodRule("day", until_ms=1)
