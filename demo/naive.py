"""A naive budget beside daycap, on the same calls: one Redis counter per agent and day; check, then charge.

Many programs do this: GET the spending, compare it plus the estimate with the cap, make the call, then INCRBY the
cost. This one is careful where it can be: it includes the estimate, retries as redis-py does, and makes no call while
Redis does not answer. Still, two concurrent calls may both see room, and what Redis loses is spent again.
"""

from __future__ import annotations

import threading
from collections import Counter as Count
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import redis

from daycap.clock import day_of, wall_ms
from daycap.settings import Settings
from demo.journal import End, Entry
from demo.plan import Outcome, PlannedCall

_KEYS = "naive:spent"
_TIMEOUT_S = 2.0


class NaiveBudget:
    """The naive counter. Its keys are `naive:spent:<day>:<agent>`, its caps are micros."""

    def __init__(self, url: str, caps: Mapping[str, int]) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        self._caps = caps

    def take(self, call: PlannedCall, stop: threading.Event) -> Entry:
        """Make the call if the counter has room for its estimate, then charge what it cost."""
        day = day_of(wall_ms())
        key = f"{_KEYS}:{day}:{call.agent}"
        try:
            spent = int(self._redis.get(key) or 0)
        except redis.RedisError:
            return Entry(End.UNAVAILABLE, call.agent, call.estimate_micros, 1)
        if spent + call.estimate_micros > self._caps[call.agent]:
            return Entry(End.REFUSED, call.agent, call.estimate_micros, stopped_micros=call.cost_micros)
        if call.outcome is Outcome.NOT_SENT:
            return Entry(End.RELEASED, call.agent, call.estimate_micros, day=day)
        stop.wait(call.duration_s)
        with suppress(redis.RedisError):  # The call was made, but its cost is not recorded.
            self._redis.incrby(key, call.cost_micros)
        return Entry(End.FINALIZED, call.agent, call.estimate_micros, day=day, actual_micros=call.cost_micros)

    def remembered_micros(self, days: Sequence[tuple[str, str]]) -> int:
        """Return the spending that the counter has for these agents' days."""
        values = self._redis.mget([f"{_KEYS}:{day}:{agent}" for agent, day in days]) if days else []
        return sum(int(value or 0) for value in values)


class Outlay(NamedTuple):
    """What calls truly cost, by how much how many agents exceeded their caps, and what is missing in the books.

    `unanswered` calls were not made, because their budget could not be checked in time.
    """

    spent_micros: int
    over_micros: int
    agents_over: int
    forgotten_micros: int
    unanswered: int


class Comparison(NamedTuple):
    """The same calls under a naive counter and under daycap."""

    naive: Outlay
    daycap: Outlay


def naive_journal_of(journal: Path) -> Path:
    """Return the path of the naive counter's journal, beside the runner's own."""
    return journal.with_suffix(".naive")


def naive_outlay(entries: Sequence[Entry], caps: Mapping[str, int], settings: Settings) -> Outlay:
    """Compare the calls that the naive counter allowed with the caps, and with what it remembers."""
    days = sorted(spent_by_day(entries))
    return outlay(entries, caps, NaiveBudget(settings.redis_url, caps).remembered_micros(days))


def outlay(entries: Sequence[Entry], caps: Mapping[str, int], remembered_micros: int) -> Outlay:
    """Sum up the calls that were made. The books have `remembered_micros` of their cost."""
    spent = spent_by_day(entries)
    over = {agent_day: micros - caps[agent_day[0]] for agent_day, micros in spent.items()}
    return Outlay(
        spent.total(),
        sum(max(0, micros) for micros in over.values()),
        len({agent for (agent, _), micros in over.items() if micros > 0}),
        spent.total() - remembered_micros,
        sum(entry.end is End.UNAVAILABLE for entry in entries),
    )


def spent_by_day(entries: Sequence[Entry]) -> Count[tuple[str, str]]:
    """Return the true cost of finalized calls by agent and day, in micros."""
    spent = Count[tuple[str, str]]()
    for entry in entries:
        if entry.end is End.FINALIZED:
            spent[entry.agent, entry.day] += entry.actual_micros
    return spent
