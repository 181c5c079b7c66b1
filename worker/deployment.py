"""What a worker's tasks share: one set per process, created when the first task needs it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from daycap.counters.redis import RedisCounter
from daycap.delivery.embedded import outbox_beside, settle_outbox
from daycap.errors import InvalidSetting
from daycap.ledger.engine import Ledger
from daycap.ledger.lock import LedgerLock, sqlite_file
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import open_days
from daycap.settings import Settings
from worker.metrics import CountedPublisher

_PUBLISH_TIMEOUT_S = 5
"""Longer than a runner's timeout: in a worker, a slow publish is better than a missed one."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The ledger and the counter that this worker serves."""

    settings: Settings
    ledger: Ledger
    publisher: CounterPublisher
    lock: LedgerLock | None = None
    """Held until the process ends; None if the ledger is not a SQLite file."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Deployment:
        """Raises `InvalidSetting` if a setting that a worker needs is missing."""
        if not settings.ledger_url:
            raise InvalidSetting("a worker needs DAYCAP_LEDGER_URL, for example sqlite:///daycap.sqlite3")
        counter = RedisCounter(settings.redis_url, _PUBLISH_TIMEOUT_S) if settings.redis_url else None
        file = sqlite_file(settings.ledger_url)
        lock = LedgerLock(file, shared=True) if file is not None else None
        return cls(settings, Ledger(settings.ledger_url), CountedPublisher(counter, settings.terms), lock)

    def take_ledger(self) -> None:
        """Check the ledger's tables, lock out embedded wallets, and settle the outbox that a killed one left.

        Raises `LedgerInUse` while an embedded wallet uses the ledger, `LedgerUnavailable`, and the database's error.
        """
        self.ledger.check_tables()
        file = sqlite_file(self.settings.ledger_url)
        if self.lock is not None and file is not None and self.lock.take():
            settle_outbox(self.ledger, outbox_beside(file), open_days(self.settings, self.publisher.last_heard_ms()))


@lru_cache(maxsize=1)
def get_deployment() -> Deployment:
    """Return this process's deployment, configured by the environment."""
    return Deployment.from_settings(Settings.from_env())
