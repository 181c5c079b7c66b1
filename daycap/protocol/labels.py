"""Labels: what kind of call it is. A budget's scope can be narrowed to calls with certain labels."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from daycap.errors import InvalidInput
from daycap.formats import shown

Labels = tuple[tuple[str, str], ...]
"""A call's labels, sorted by key: at most `MOST_LABELS` pairs."""

RUN = "run"
"""The label of calls that belong to a run: its id."""

MOST_LABELS = 8
_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,31}", re.ASCII)
_LONGEST_VALUE = 128


def call_labels(labels: object) -> Labels:
    """Return `labels`, a mapping from text to text, as a sorted tuple. Raises `InvalidInput`.

    A key is 1..32 characters of `[a-z0-9_.-]` and begins with a letter; a value is 1..128 printable characters.
    """
    if not isinstance(labels, Mapping):
        raise InvalidInput(f"labels are a mapping from text to text, not {shown(labels, 80)}")
    try:
        return _checked(tuple(labels.items()))
    except TypeError:  # Unhashable.
        return _checked.__wrapped__(tuple(labels.items()))


@functools.lru_cache(maxsize=1000)
def _checked(labels: tuple[tuple[object, object], ...]) -> Labels:
    """Return the labels sorted, once they are checked. Cached, because a process makes many calls of a kind."""
    if len(labels) > MOST_LABELS:
        raise InvalidInput(f"a call has at most {MOST_LABELS} labels, not {len(labels)}")
    checked = []
    for key, value in labels:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InvalidInput(f"not a label's key (1..32 characters of a-z 0-9 _ . -): {shown(key, 80)}")
        if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_VALUE or not value.isprintable():
            raise InvalidInput(f"label {key} is not 1..{_LONGEST_VALUE} printable characters: {shown(value, 80)}")
        checked.append((key, value))
    return tuple(sorted(checked))


Patterns = tuple[tuple[str, tuple[str, ...]], ...]
"""What a scope is narrowed to, sorted by key: for each key the values that count, which may contain `*`."""


def scope_patterns(patterns: object) -> Patterns:
    """Return `patterns`, a mapping from a key to one or several values, as sorted tuples. Raises `InvalidInput`."""
    if not isinstance(patterns, Mapping):
        raise InvalidInput(f"a scope's labels are a mapping, not {shown(patterns, 80)}")
    each = {key: [values] if isinstance(values, str) else values for key, values in patterns.items()}
    for key, values in each.items():
        if not isinstance(values, list | tuple) or not values:
            raise InvalidInput(f"label {shown(key, 40)} needs a value or a list of values, not {shown(values, 80)}")
        for value in values:
            call_labels({key: value})
    if len(each) > MOST_LABELS:
        raise InvalidInput(f"a scope has at most {MOST_LABELS} labels, not {len(each)}")
    return tuple(sorted((key, tuple(sorted(set(values)))) for key, values in each.items()))


def covers(patterns: Patterns, labels: Mapping[str, str]) -> bool:
    """Return whether a call with `labels` has one of the values for each key of the scope. `*` stands for any text."""
    return all(key in labels and any(_matches(labels[key], pattern) for pattern in values) for key, values in patterns)


def _matches(value: str, pattern: str) -> bool:
    # Only `*` is special: an escaped `[` and `?` stand for themselves.
    return fnmatchcase(value, re.sub(r"([?\[])", r"[\1]", pattern))
