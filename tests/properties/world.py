"""What outlives the examples: the server, the ledger and the time, which only the test moves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import redis

from daycap import Settings
from daycap.clock import day_start_ms
from daycap.ledger.engine import Ledger
from daycap.ledger.tables import metadata
from tests.fake_clock import FakeClock
from tests.processes import LocalRedis

AGENT = "agent"
MIDNIGHT_MS = day_start_ms("2026-03-03")
SETTINGS = Settings(lease_ttl_seconds=30, grace_seconds=5, redis_timeout_seconds=0.25)

_PATIENCE_S = 10


class World:
    """The server and the ledger, which outlive the examples, and the time."""

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self.clock = FakeClock(directory / "clock")
        self.ledger = ledger
        self.broken = False
        """Whether a promise was: the steps that did it first are shrunk, for half a minute, others are not."""
        self.random = Random(0)
        self.ms = MIDNIGHT_MS
        self.clock.stop_at(self.ms)
        self.server = LocalRedis(directory, self.clock)
        self.server.ready()
        self.client = redis.Redis.from_url(self.server.url)

    def pass_time(self, ms: int) -> None:
        """Returns when the server's scripts see the new time: a busy server may go on with the old one for a moment."""
        self.ms += ms
        self.clock.stop_at(self.ms)
        end_s = time.monotonic() + _PATIENCE_S
        while abs(self._scripts_ms() - self.ms) > 1:
            assert time.monotonic() < end_s, "the server does not follow its clock"

    def _scripts_ms(self) -> int:
        seconds, micros = self.client.eval("return redis.call('TIME')", 0)
        return int(seconds) * 1000 + int(micros) // 1000

    def begin(self, seconds_left: int) -> None:
        """Empty all for the next example, which begins so long before midnight."""
        self.random = Random(0)
        self.ms = MIDNIGHT_MS - seconds_left * 1000
        self.pass_time(0)
        self.client.flushall()
        with self.ledger.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())

    def restart(self, kept: dict[bytes, bytes]) -> None:
        """A new life of the server, with `kept` as its data: none, or as old as it may be."""
        self.client.flushall()
        self.client.connection_pool.disconnect()
        self.server.restart()
        for key, dumped in kept.items():
            self.client.restore(key, 0, dumped)
        self.pass_time(0)

    def close(self) -> None:
        self.client.close()
        self.server.teardown()


class Waiting:
    """In the place of `time` where a reserve waits for an answer: it waits in no time, and the worker goes on."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, _seconds: float) -> None:
        self._now_s += SETTINGS.open_timeout_seconds / 3
        self.meanwhile()

    async def sleep_in_loop(self, seconds: float) -> None:
        self.sleep(seconds)
