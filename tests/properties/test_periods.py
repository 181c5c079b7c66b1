"""Periods of every time zone around its clock changes, and of any zone at any time.

There is no gap and no overlap, ids are unique and lead back to their period, and a period begins when the wall clock
says so.
"""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, available_timezones

from hypothesis import given, settings
from hypothesis import strategies as st

from daycap.errors import InvalidInput
from daycap.periods import END_MS, Period, PeriodRule

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HOUR_S, DAY_S = 3600, 86_400
FROM_YEAR, UNTIL_YEAR = 2010, 2031
SCAN_S = 5 * DAY_S
"""No zone changes its offset and goes back to it within five days."""

ZONES = sorted(available_timezones() - {"localtime"})  # That one is the host's.


def local(zone: str, second: int) -> datetime:
    return (EPOCH + second * SECOND).astimezone(ZoneInfo(zone))


def wall(zone: str, second: int) -> datetime:
    """What a clock on the wall shows, without its offset."""
    return local(zone, second).replace(tzinfo=None)


def clock_changes(zone: str) -> Iterator[tuple[int, timedelta | None]]:
    """Yield each second at which the UTC offset changes, with the new offset; first of all the offset at the start."""
    start, end = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (FROM_YEAR, UNTIL_YEAR))
    offset = local(zone, start).utcoffset()
    yield start, offset
    for low in range(start, end, SCAN_S):
        high = low + SCAN_S
        if (new := local(zone, high).utcoffset()) != offset:
            yield low + bisect_left(range(low, high), True, key=lambda s: local(zone, s).utcoffset() == new), new
            offset = new


def rules_around(zone: str, change: int) -> Iterator[PeriodRule]:
    """Yield rules whose periods begin in the hours and on the date at which the clock changes."""
    before, after = wall(zone, change - 1), wall(zone, change)
    yield PeriodRule("hour", zone)
    for hour in {0, before.hour, after.hour, (before.hour + 1) % 24}:
        yield PeriodRule("day", zone, hour=hour)
    yield PeriodRule("week", zone, hour=after.hour, weekday=after.isoweekday())
    yield PeriodRule("month", zone, hour=before.hour, monthday=before.day)
    yield PeriodRule("month", zone, monthday=31)
    yield PeriodRule("year", zone)


def begin_of(rule: PeriodRule, period_id: str) -> datetime:
    """Return the local time at which the period with this id has to begin."""
    match rule.kind:
        case "day":
            day = date.fromisoformat(period_id)
        case "week":
            monday = date.fromisoformat(f"{period_id}-1")
            # The fourth day decides which week it is: those from Friday to Sunday begin before the ISO week does.
            day = monday + timedelta(rule.weekday - 1 - (7 if rule.weekday > 4 else 0))
        case "month":
            year, month = map(int, period_id.split("-"))
            day = date(year, month, min(rule.monthday, monthrange(year, month)[1]))
        case _:
            day = date(int(period_id), 1, 1)
    return datetime.combine(day, time(rule.hour))


def check_hour(zone: str, period: Period) -> None:
    start, last = (local(zone, ms // 1000) for ms in (period.start_ms, period.end_ms - 1))
    for moment in (start, last):
        assert period.id == f"{moment:%Y-%m-%dT%H}" + f"{moment:%z}".removesuffix("00"), (zone, period)
    assert last - start < timedelta(hours=1), (zone, period)
    if start.minute or start.second:
        assert local(zone, period.start_ms // 1000 - 1).utcoffset() != start.utcoffset(), (zone, period)


def check_begin(rule: PeriodRule, period: Period) -> None:
    start, begin = period.start_ms // 1000, begin_of(rule, period.id)
    assert wall(rule.zone, start) >= begin, (rule, period)
    for earlier in (1, HOUR_S // 2, HOUR_S, DAY_S):
        assert wall(rule.zone, start - earlier) < begin, (rule, period)


def check(rule: PeriodRule, change_ms: int, count: int) -> None:
    """Walk from the period before that of the last millisecond before the change."""
    # Rules remember their last answer. These have not seen the periods that they are asked for.
    late, named = PeriodRule.from_json(rule.to_json()), PeriodRule.from_json(rule.to_json())
    for instant in (change_ms - 1, change_ms, change_ms + 1_800_000):
        found = PeriodRule.from_json(rule.to_json()).at(instant)
        assert found.start_ms <= instant < found.end_ms, (rule, instant, found)
    period = rule.at(rule.at(change_ms - 1).start_ms - 1)
    ids = {period.id}
    for _ in range(count):
        following = rule.after(period)
        assert following.start_ms == period.end_ms < following.end_ms, (rule, period, following)
        assert following.id not in ids, (rule, following)
        assert late.at(following.end_ms - 1) == following == named.named(following.id), (rule, following)
        if rule.kind == "hour":
            check_hour(rule.zone, following)
        else:
            check_begin(rule, following)
        ids.add(following.id)
        period = following


def test_every_zone_around_its_clock_changes() -> None:
    changes_of = {tuple(clock_changes(zone)): zone for zone in ZONES}  # Many zones have equal data.
    assert sum(map(len, changes_of)) > 1000
    for changes, zone in changes_of.items():
        for change, _ in changes:
            for rule in rules_around(zone, change):
                check(rule, change * 1000, 3)


RULES = st.one_of(
    st.builds(PeriodRule, st.just("hour"), st.sampled_from(ZONES)),
    st.builds(PeriodRule, st.sampled_from(["day", "year"]), st.sampled_from(ZONES), st.integers(0, 23)),
    st.builds(PeriodRule, st.just("week"), st.sampled_from(ZONES), st.integers(0, 23), st.integers(1, 7)),
    st.builds(PeriodRule, st.just("month"), st.sampled_from(ZONES), st.integers(0, 23), monthday=st.integers(1, 31)),
    st.just(PeriodRule("once")),
)


@settings(max_examples=300, deadline=None)
@given(RULES, st.integers(0, END_MS - 1))
def test_any_rule_at_any_time(rule: PeriodRule, instant: int) -> None:
    fresh = PeriodRule.from_json(rule.to_json())
    period = rule.at(instant)
    assert period.start_ms <= instant < period.end_ms
    assert fresh.named(period.id) == period
    for other in (period.start_ms, period.end_ms - 1):
        assert PeriodRule.from_json(rule.to_json()).at(other) == period
    if period.start_ms:
        before = rule.at(period.start_ms - 1)
        assert before.end_ms == period.start_ms
        assert fresh.after(before) == period


@settings(max_examples=300, deadline=None)
@given(RULES, st.text(max_size=24) | st.text("0123456789-+:TWZ ", max_size=24))
def test_any_text_is_an_id_or_refused(rule: PeriodRule, text: str) -> None:
    try:
        period = rule.named(text)
    except InvalidInput:
        return
    assert rule.at(period.start_ms).id == period.id == text
