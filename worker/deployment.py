"""The parts that a worker's tasks share: made once in each process, when the first task needs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from daycap.counters.redis import RedisCounter
from daycap.errors import InvalidSetting
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.settings import Settings
from worker.metrics import CountedPublisher

_PUBLISH_TIMEOUT_S = 5
"""A worker can wait longer for the counter than a runner: a slow publish is better than a missed one."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The ledger and the counter that this worker serves."""

    settings: Settings
    ledger: Ledger
    publisher: CounterPublisher

    @classmethod
    def from_settings(cls, settings: Settings) -> Deployment:
        """Raises `InvalidSetting` where one is missing that a worker needs."""
        if not settings.ledger_url:
            raise InvalidSetting("a worker needs DAYCAP_LEDGER_URL, for example sqlite:///daycap.sqlite3")
        counter = RedisCounter(settings.redis_url, _PUBLISH_TIMEOUT_S) if settings.redis_url else None
        return cls(settings, Ledger(settings.ledger_url), CountedPublisher(counter, settings.terms))


@lru_cache(maxsize=1)
def deployment() -> Deployment:
    """This process's deployment, as the environment says."""
    return Deployment.from_settings(Settings.from_env())
