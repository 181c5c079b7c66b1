"""Read the fields of a usage object of any class by name, and detect unread ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from numbers import Number
from typing import Any

from daycap.errors import InvalidInput
from daycap.formats import shown
from daycap.money import MAX_MICROS

_DEEPEST = 8
"""The deepest nesting of a usage that is merged. Deeper ones are refused."""


def merged(before: Mapping[str, Any], after: Mapping[str, Any], *, depth: int = 0) -> dict[str, Any]:
    """Merge the usages of two events of a stream. Counts are cumulative, so the larger one wins.

    A later 0 or null does not reset a count: providers send them for what an earlier event reported. For anything
    else (text, lists) the later event wins.
    """
    whole = dict(before)
    for name, value in after.items():
        whole[name] = _later(before.get(name), value, depth)
    return {name: value for name, value in whole.items() if value is not None}


def _later(before: Any, after: Any, depth: int) -> Any:
    if isinstance(before, Mapping) and isinstance(after, Mapping) and depth < _DEEPEST:
        return merged(before, after, depth=depth + 1)
    if _is_count(before) and _is_count(after):
        return max(before, after)
    if after is None or after == [] or (_is_number(before) and not _is_count(before)):
        return before  # Keep an invalid count, so that it is refused later.
    return after


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_number(value) and value >= 0  # type: ignore[operator]


class Fields:
    """The fields of an object or a mapping, in snake_case or camelCase, with their path.

    It remembers which fields were read, so that `refuse_unread` finds the other counts.
    """

    def __init__(self, source: object, path: str) -> None:
        if source is not None and isinstance(source, str | bytes | int | float | list | tuple):
            raise InvalidInput(f"{path} is {shown(source, 40)}, not an object with fields")
        self._source = source
        self._mapping = source if isinstance(source, Mapping) else None
        self._path = path
        self._read: set[str] = set()
        self._inside: list[Fields] = []

    def has(self, name: str) -> bool:
        """Return whether this field has a value."""
        return self._get(name) is not None

    def lacks(self, name: str) -> bool:
        """Return whether this field is absent, not just empty."""
        if self._mapping is not None:
            return name not in self._mapping and _camel(name) not in self._mapping
        return not hasattr(self._source, name)

    def count(self, *names: str) -> int:
        """Return the count under any of these names, else 0. Raises `InvalidInput` if they contradict each other."""
        counts = [value for name in names if (value := self.optional(name))]
        return agreed(*counts) if counts else 0

    def required(self, name: str) -> int:
        """Return a count. Raises `InvalidInput` if it is missing."""
        value = self.optional(name)
        if value is None:
            raise InvalidInput(f"{self._path} has no {name}, so the call's cost is unknown")
        return value

    def optional(self, name: str) -> int | None:
        """Return a count, or None if it has no value. Raises `InvalidInput` if it is not a count."""
        value = self._take(name)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value <= MAX_MICROS:
            raise InvalidInput(f"{self._path}.{name} must be an int from 0 to 2**53 - 1, not {shown(value, 40)}")
        return value

    def value(self, name: str) -> object:
        """Return the raw value, or None."""
        return self._take(name)

    def text(self, name: str) -> str:
        """Return a string or an enum's value, in lower case, or an empty string."""
        value = self._take(name)
        value = getattr(value, "value", value)
        return value.lower() if isinstance(value, str) else ""

    def ignore(self, *names: str) -> None:
        """Mark these as read: they add no cost."""
        for name in names:
            self._take(name)

    def inside(self, *names: str) -> Fields:
        """Return the fields of the first of these that has a value."""
        name = next((name for name in names if self.has(name)), names[0])
        return self._child(self._take(name), f"{self._path}.{name}")

    def each(self, name: str) -> Iterator[Fields]:
        """Yield the fields of each item of a list."""
        listed = self._take(name)
        if listed is not None and (isinstance(listed, str | bytes) or not isinstance(listed, Sequence)):
            raise InvalidInput(f"{self._path}.{name} is {shown(listed, 40)}, not a list")
        for item in listed or ():
            yield self._child(item, f"{self._path}.{name}[]")

    def refuse_unread(self) -> None:
        """Raise `InvalidInput` for an unread count, here or deeper: the call may cost more because of it."""
        if self._source is None:
            return
        unread = [(name, value) for name, value in _items(self._source) if value and name not in self._read]
        in_json = {_camel(name) for name in self._read} if unread else ()
        for name, value in unread:
            if name not in in_json and (unknown := _uncounted(name, value)):
                raise InvalidInput(
                    f"{self._path}.{unknown} is an unknown count, so the call's cost is unknown; it is "
                    f"{shown(value, 60)}"
                )
        for each in self._inside:
            each.refuse_unread()

    def _child(self, source: object, path: str) -> Fields:
        child = Fields(source, path)
        self._inside.append(child)
        return child

    def _take(self, name: str) -> object:
        self._read.add(name)
        return self._get(name)

    def _get(self, name: str) -> object:
        if self._mapping is None:
            return getattr(self._source, name, None)
        return self._mapping[name] if name in self._mapping else self._mapping.get(_camel(name))


def agreed(*counts: int) -> int:
    """Return a count that is reported in several places. Raises `InvalidInput` if two that are not 0 differ."""
    distinct = {each for each in counts if each}
    if len(distinct) > 1:
        raise InvalidInput(f"usage contradicts itself: one count is {' and '.join(map(str, sorted(distinct)))}")
    return max(distinct, default=0)


def _items(source: object) -> Iterator[tuple[str, object]]:
    """Yield the public fields of a mapping or an object, as far as the object lists them."""
    if isinstance(source, Mapping):
        yield from ((name, value) for name, value in source.items() if isinstance(name, str))
        return
    names = dict.fromkeys(getattr(source, "__dict__", ()))
    names.update(dict.fromkeys(getattr(source, "__pydantic_extra__", None) or ()))
    for cls in type(source).__mro__:
        slots = vars(cls).get("__slots__", ())
        names.update(dict.fromkeys((slots,) if isinstance(slots, str) else slots))
    # Protobuf messages, bare or wrapped by proto-plus.
    message = getattr(source, "_pb", source)
    names.update((field.name, None) for field in getattr(getattr(message, "DESCRIPTOR", None), "fields", ()))
    yield from ((name, getattr(source, name, None)) for name in names if not name.startswith("_"))


_MEASURE = re.compile(r"(?:^|_)(?:cost|latency|ms|per|price|rate|speed|time|times)(?:_|$)", re.IGNORECASE)
"""Numbers that are not billed: Groq's times, SambaNova's tokens per second."""


def _uncounted(name: str, value: object, depth: int = 0) -> str:
    """Return the path of the first count in `value`, or an empty string."""
    if isinstance(value, bool) or not value:
        return ""
    if isinstance(value, Number):
        return "" if _MEASURE.search(name) else name
    if isinstance(value, str):
        return name if value.strip().isdecimal() and int(value) else ""
    if isinstance(value, Mapping) or hasattr(value, "__dict__"):
        parts = [(f"{name}.{each}", what) for each, what in _items(value)]
    else:
        parts = [(name, item) for item in value] if isinstance(value, Sequence) else []
    if parts and depth == _DEEPEST:
        return name
    return next((path for each, what in parts if (path := _uncounted(each, what, depth + 1))), "")


@cache
def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))
