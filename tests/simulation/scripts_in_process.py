"""The counter's real Lua scripts without a server: run by a Lua 5.1 in this process, on dicts and a clock of ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lupa import lua51

from daycap.counters.redis import RedisCounter, Script
from daycap.protocol.counter import NOTHING_OVERDUE, AgentDay, DaySnapshot, LeaseTerms, PublishReply

Store = dict[str, dict[str, str]]


class ScriptsInProcess(RedisCounter):
    """`RedisCounter` with its connection replaced. `given_up` sums what publishes gave up, over every loss of data."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._store: Store = {}
        self._expiry: dict[str, int] = {}
        self._lua = lua51.LuaRuntime(unpack_returned_tuples=True)
        self._functions: dict[str, Any] = {}
        self.life = 1
        self.given_up: dict[tuple[str, str], int] = {}

    def publish(
        self,
        snapshots: Sequence[DaySnapshot],
        terms: LeaseTerms,
        *,
        expire_before_ms: int = 0,
        first_until_ms: int = 0,
        overdue: Mapping[AgentDay, Sequence[str]] = NOTHING_OVERDUE,
    ) -> list[PublishReply | None]:
        replies = super().publish(
            snapshots, terms, expire_before_ms=expire_before_ms, first_until_ms=first_until_ms, overdue=overdue
        )
        for snapshot, reply in zip(snapshots, replies, strict=True):
            if reply is not None:
                where = (snapshot.agent, snapshot.day)
                self.given_up[where] = self.given_up.get(where, 0) + reply.given_up_micros
        return replies

    def now_ms(self) -> int:
        return self._now_ms()

    def flush(self) -> None:
        """FLUSHALL: the same life, without any data."""
        self._store = {}

    def copy(self) -> Store:
        """What a replica, or a dump, has of the data now."""
        return copy.deepcopy(self._store)

    def restart(self, store: Store) -> None:
        """Another life of the server, with these data: none, a dump's, or those of a replica that lagged behind."""
        self._store = copy.deepcopy(store)
        self.life += 1

    def _call(self, script: Script, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        function = self._functions.get(script.sha1)
        if function is None:
            source = f"return function(KEYS, ARGV, redis) {script.source}\nend"
            function = self._functions[script.sha1] = self._lua.execute(source)
        redis = self._lua.table_from({"call": self._redis_call, "pcall": self._redis_call})
        replies = []
        for key, *rest in calls:
            words = [f"life-{self.life}", *(str(word) for word in rest)]
            reply = function(self._lua.table_from([key]), self._lua.table_from(words), redis)
            replies.append([_as_reply(reply[index + 1]) for index in range(len(reply))])
        return replies

    def _round_trip(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Scans, each in one step, lengths, and fields."""
        replies: list[Any] = []
        for command, key, *rest in commands:
            fields = self._store.get(key, {})
            words = [word for pair in fields.items() for word in pair]
            if command == "HMGET":
                replies.append([fields.get(field) for field in rest])
            else:
                replies.append(len(fields) if command == "HLEN" else ["0", words])
        return replies

    def _redis_call(self, command: str, *words: Any) -> Any:
        if command == "TIME":
            now_ms = self._now_ms()
            return self._lua.table_from([str(now_ms // 1000), str(now_ms % 1000 * 1000)])
        key, *rest = words
        if self._now_ms() >= self._expiry.get(key, 2**62):
            self._store.pop(key, None)
            self._expiry.pop(key)
        if command in ("PEXPIRE", "PEXPIREAT"):
            self._expiry[key] = int(float(rest[0])) + (self._now_ms() if command == "PEXPIRE" else 0)
            return 1
        if command == "PTTL":
            return self._expiry[key] - self._now_ms() if key in self._expiry else -1
        if command == "DEL":
            return 1 if self._store.pop(key, None) is not None else 0
        fields = self._store.get(key, {})
        if command == "HGET":
            return fields.get(rest[0], False)
        if command == "HMGET":
            return self._lua.table_from([fields.get(field, False) for field in rest])
        if command == "HGETALL":
            return self._lua.table_from([word for pair in fields.items() for word in pair])
        if command == "HDEL":
            return len([fields.pop(field) for field in rest if field in fields])
        assert command == "HSET", command
        stored = self._store.setdefault(key, {})
        stored.update({field: _as_text(value) for field, value in zip(rest[::2], rest[1::2], strict=True)})
        return 1


def _as_text(value: Any) -> str:
    """As Redis takes a word from Lua: a number becomes text, a large one inexact text, which a script must avoid."""
    return value if isinstance(value, str) else f"{value:.14g}"


def _as_reply(value: Any) -> Any:
    """As Redis makes a reply of Lua's values: numbers are cut to integers."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
