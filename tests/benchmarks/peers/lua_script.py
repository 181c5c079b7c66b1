"""A plain Lua script: check and reserve in one EVALSHA, and give back what was too much by one INCRBY."""

from __future__ import annotations

import redis
from callers import Refused, config, serve

CHECK_AND_RESERVE = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return 0 end
redis.call('INCRBY', KEYS[1], ARGV[1])
return 1
"""


class LuaScript:
    def __init__(self) -> None:
        self._redis = redis.Redis.from_url(config()["redis"])
        self._script = self._redis.register_script(CHECK_AND_RESERVE)

    def open(self, key: str, cap: int) -> None:
        """The cap travels with each question."""

    def begin(self, key: str, cap: int) -> None:
        self._key, self._cap = key, cap

    def reserve(self, estimate: int) -> int:
        if not self._script(keys=[self._key], args=[estimate, self._cap]):
            raise Refused
        return estimate

    def settle(self, hold: int, actual: int) -> None:
        if actual != hold:
            self._redis.incrby(self._key, actual - hold)

    def finish(self) -> None:
        """Everything is in Redis already."""


if __name__ == "__main__":
    serve(LuaScript())
