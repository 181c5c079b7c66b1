"""Periods of a budget: hours, days, weeks, months and years of a time zone, or `once`, which never ends.

A `PeriodRule` divides the years 1970 to 9999 into periods, without a gap or an overlap, and each period has
an id of its own. Instants are UTC milliseconds since 1970, of the counter's clock.

A day, week, month or year begins when the zone's wall clock first shows its local date and hour, or a later time: if a
clock change skips that hour, right after the gap; if the hour occurs twice, at the first. It ends where the next one
begins. A local day that a zone skips (Pacific/Apia, 2011-12-30) does not exist. An hour ends when the wall clock's hour
or the UTC offset changes, so a change in the middle of an hour makes two short ones.

The first period is cut at 1970 UTC. The last one is the last whose id has a year of four digits; it lasts until year
10000 UTC.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

from daycap.errors import InvalidInput
from daycap.formats import shown

END_MS = 253_402_300_800_000
"""The first instant of year 10000 UTC: no period lasts longer."""

_DAY_S = 86_400
_HOUR_S = 3_600
_SECOND = timedelta(seconds=1)
_END_S = END_MS // 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = _EPOCH.toordinal()

_FIELDS: dict[str, tuple[str, ...]] = {
    "hour": ("zone",),
    "day": ("zone", "hour"),
    "week": ("zone", "hour", "weekday"),
    "month": ("zone", "hour", "monthday"),
    "year": ("zone", "hour"),
    "once": ("until_ms",),
}
_DEFAULTS: dict[str, object] = {"zone": "UTC", "hour": 0, "weekday": 1, "monthday": 1, "until_ms": END_MS}
_RANGES = {"hour": (0, 23), "weekday": (1, 7), "monthday": (1, 31), "until_ms": (1, END_MS)}

_LONGEST = {"day": timedelta(1), "week": timedelta(7), "month": timedelta(31), "year": timedelta(366)}
# A week is named by its fourth day.
_LAST_DAY = {"week": date.max - timedelta(3)}

# Names as the IANA database has them. They exclude paths and what depends on the host, such as `localtime`.
_ZONE = re.compile(r"[A-Z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9_+-]{1,31}){0,2}")


class Period(NamedTuple):
    """One period: from `start_ms` up to but not including `end_ms`, UTC milliseconds since 1970."""

    id: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class PeriodRule:
    """How time is divided into periods.

    - `kind`: `hour`, `day`, `week`, `month`, `year` or `once`.
    - `zone`: the IANA time zone. `once` has none.
    - `hour`: the local hour, 0 to 23, at which a day, week, month or year begins.
    - `weekday`: the day on which a week begins, from Monday, 1, to Sunday, 7.
    - `monthday`: the day on which a month begins, 1 to 31. In a month that lacks it, the last day.
    - `until_ms`: when `once` ends, if not in year 10000. After that no period contains an instant (`contains`).

    Raises `InvalidInput` for an unknown kind or zone, a number out of range, or a field that the kind does not have.
    """

    kind: str
    zone: str = "UTC"
    hour: int = 0
    weekday: int = 1
    monthday: int = 1
    until_ms: int = END_MS
    _zone: tzinfo = field(init=False, repr=False, compare=False)
    # The last answer. `at` is called for each reservation, nearly always within the same period.
    _last: Period = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_fields(self.kind, [name for name, value in _DEFAULTS.items() if getattr(self, name) != value])
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise InvalidInput(f"{name} must be an int from {low} to {high}, not {shown(value, 40)}")
        object.__setattr__(self, "_zone", _load_zone(self.zone))
        object.__setattr__(self, "_last", self._find(0))

    @classmethod
    def from_json(cls, obj: object) -> PeriodRule:
        """Return the rule that `to_json` wrote. Fields may have their default. Raises `InvalidInput`."""
        if not isinstance(obj, dict):
            raise InvalidInput(f"a period's rule must be an object, not {shown(obj, 40)}")
        fields = dict(obj)
        kind = fields.pop("period", None)
        _check_fields(kind, fields)
        return cls(kind, **fields)

    def to_json(self) -> dict[str, object]:
        """Return the kind, as `period`, and the fields that differ from their default."""
        fields = {name: getattr(self, name) for name in _DEFAULTS}
        return {"period": self.kind} | {name: value for name, value in fields.items() if value != _DEFAULTS[name]}

    def contains(self, ms: int) -> bool:
        """Return whether a period contains the instant `ms`: all but those after the end of `once`."""
        return ms < self.until_ms

    def at(self, ms: int) -> Period:
        """Return the period that contains the instant `ms`. Raises `InvalidInput` outside the years 1970 to 9999.

        Of a `once` that has ended it returns that.
        """
        last = self._last
        if last.start_ms <= ms < last.end_ms:
            return last
        if type(ms) is not int or not 0 <= ms < END_MS:
            raise InvalidInput(f"not an instant of the years 1970 to 9999, in milliseconds: {shown(ms, 40)}")
        period = self._find(ms // 1000)
        object.__setattr__(self, "_last", period)
        return period

    def named(self, period_id: str) -> Period:
        """Return the period whose id is `period_id`. Raises `InvalidInput` if this rule has none."""
        if period_id == self._last.id:
            return self._last
        try:
            for second in self._seconds_of(period_id):
                period = self.at(max(second, 0) * 1000)
                if period.id == period_id:  # The parsers accept more than one spelling.
                    return period
        except (TypeError, ValueError, OverflowError):
            pass
        raise InvalidInput(f"not the id of a period of {self.to_json()}: {shown(period_id, 40)}")

    def after(self, period: Period) -> Period:
        """Return the period that follows the one with `period`'s id; only the id counts, so the result is always later.

        Raises `InvalidInput` if this rule has no such period, and after the last one, which is `once` for that kind.
        """
        end_ms = self.named(period.id).end_ms
        if end_ms == END_MS or self.kind == "once":
            raise InvalidInput(f"no period follows {period.id}")
        return self.at(end_ms)

    def _find(self, second: int) -> Period:
        match self.kind:
            case "once":
                return Period("once", 0, self.until_ms)
            case "hour":
                return self._hour_at(second)
            case _:
                return self._dated_at(second)

    def _offset_s(self, second: int) -> int:
        """Return the zone's UTC offset at `second`, in seconds."""
        # No zone changes its offset in the last days of 9999, where local time would overflow.
        moment = _EPOCH + timedelta(seconds=min(second, _END_S - 2 * _DAY_S))
        return (moment.astimezone(self._zone).replace(tzinfo=UTC) - moment) // _SECOND

    def _wall_s(self, second: int) -> int:
        """Return what the wall clock shows at `second`, in seconds since 1970 local time."""
        return second + self._offset_s(second)

    def _hour_at(self, second: int) -> Period:
        offset = self._offset_s(second)
        wall = min(second + offset, _END_S - 1)
        wall -= wall % _HOUR_S
        start, end = wall - offset, wall - offset + _HOUR_S
        if self._offset_s(start) != offset:
            start += bisect_left(range(start, second), True, key=lambda s: self._offset_s(s) == offset)
        if wall + _HOUR_S == _END_S:
            end = _END_S
        elif self._offset_s(end - 1) != offset:
            end = second + bisect_left(range(second, end), True, key=lambda s: self._offset_s(s) != offset)
        shown_hour = (_EPOCH + timedelta(seconds=wall)).isoformat()[:13]
        return _cut(shown_hour + _format_offset(offset), start, end)

    def _dated_at(self, second: int) -> Period:
        day = date.fromordinal(
            min(
                (self._wall_s(second) - self.hour * _HOUR_S) // _DAY_S + _EPOCH_DAY,
                _LAST_DAY.get(self.kind, date.max).toordinal(),
            )
        )
        begin = self._begin_date(day)
        start = self._first_second(begin)
        # Where a clock is set back across the begin of a period, `second` may lie in the next one already.
        while (following := self._next_date(begin)) and (end := self._first_second(following)) <= second:
            begin, start = following, end
        return _cut(self._dated_id(begin), start, end if following else _END_S)

    def _begin_date(self, day: date) -> date:
        """Return the last date up to `day` on which a period begins."""
        match self.kind:
            case "day":
                return day
            case "week":
                return day - timedelta((day.isoweekday() - self.weekday) % 7)
            case "month":
                begin = self._begin_in_month(day)
                return begin if begin <= day else self._begin_in_month(day.replace(day=1) - timedelta(1))
            case _:
                return day.replace(month=1, day=1)

    def _begin_in_month(self, day: date) -> date:
        return day.replace(day=min(self.monthday, monthrange(day.year, day.month)[1]))

    def _next_date(self, begin: date) -> date | None:
        """Return the date on which the period after that of `begin` begins, or None after the last."""
        try:
            following = self._begin_date(begin + _LONGEST[self.kind])
        except OverflowError:
            return None
        return following if following <= _LAST_DAY.get(self.kind, date.max) else None

    def _dated_id(self, begin: date) -> str:
        match self.kind:
            case "day":
                return begin.isoformat()
            case "week":
                year, week, _ = (begin + timedelta(3)).isocalendar()
                return f"{year}-W{week:02}"
            case "month":
                return begin.isoformat()[:7]
            case _:
                return begin.isoformat()[:4]

    def _first_second(self, day: date) -> int:
        """Return the first second at which the wall clock shows `hour` on `day`, or a later time."""
        wall = (day.toordinal() - _EPOCH_DAY) * _DAY_S + self.hour * _HOUR_S
        local = datetime(day.year, day.month, day.day, self.hour, tzinfo=self._zone)
        # If the hour occurs twice, the first of these is the earlier one. If it is skipped, the second is.
        first, second = ((local.replace(fold=fold) - _EPOCH) // _SECOND for fold in (0, 1))
        if first <= second:
            return first
        return second + bisect_left(range(second, first), wall, key=self._wall_s)

    def _seconds_of(self, period_id: str) -> Iterable[int]:
        """Return seconds of which one lies in the period with this id, if there is one. Raises `ValueError`."""
        match self.kind:
            case "once":
                return (0,)
            case "hour":
                start = (datetime.fromisoformat(period_id) - _EPOCH) // _SECOND
                return start, start + _HOUR_S - 1
            case "day":
                begin = date.fromisoformat(period_id)
            case "week":
                fourth = (self.weekday + 2) % 7 + 1
                begin = date.fromisoformat(f"{period_id}-{fourth}") - timedelta(3)
            case "month":
                begin = self._begin_in_month(date.fromisoformat(f"{period_id}-01"))
            case _:
                begin = date.fromisoformat(f"{period_id}-01-01")
        return (self._first_second(begin),)


def _check_fields(kind: object, names: Iterable[object]) -> None:
    """Raise `InvalidInput` for an unknown kind, and for the names of fields that do not apply to it."""
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise InvalidInput(f"unknown period {shown(kind, 40)}: use one of {', '.join(_FIELDS)}")
    for name in names:
        if name not in _FIELDS[kind]:
            raise InvalidInput(f"{shown(name, 40)} does not apply to the period {kind!r}")


def _load_zone(name: object) -> tzinfo:
    """Return the time zone. Raises `InvalidInput`."""
    if name == "UTC":
        return UTC  # It needs no data.
    try:
        if isinstance(name, str) and _ZONE.fullmatch(name):
            return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        pass  # No such file, no zone's file, a directory.
    raise InvalidInput(
        f"unknown time zone {shown(name, 80)}: use an IANA name such as 'Europe/Zurich'; "
        "if the name is correct, install the package tzdata or a newer version of it"
    )


def _cut(period_id: str, start: int, end: int) -> Period:
    return Period(period_id, max(start, 0) * 1000, min(end, _END_S) * 1000)


def _format_offset(offset: int) -> str:
    """Format a UTC offset in seconds, as short as it can be: `+01`, `-0330`."""
    minutes, seconds = divmod(abs(offset), 60)
    parts = [minutes // 60, minutes % 60, seconds]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return ("-" if offset < 0 else "+") + "".join(f"{part:02}" for part in parts)


UTC_DAY = PeriodRule("day")
"""The day of every agent's own cap."""
