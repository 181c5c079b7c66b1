"""The parts that a worker's tasks share: made once in each process, when the first task needs them."""

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
"""A worker can wait longer for the counter than a runner: a slow publish is better than a missed one."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The ledger and the counter that this worker serves."""

    settings: Settings
    ledger: Ledger
    publisher: CounterPublisher
    lock: LedgerLock | None = None
    """Held until the process ends; None where the ledger is no SQLite file."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Deployment:
        """Raises `InvalidSetting` where one is missing that a worker needs."""
        if not settings.ledger_url:
            raise InvalidSetting("a worker needs DAYCAP_LEDGER_URL, for example sqlite:///daycap.sqlite3")
        counter = RedisCounter(settings.redis_url, _PUBLISH_TIMEOUT_S) if settings.redis_url else None
        file = sqlite_file(settings.ledger_url)
        lock = LedgerLock(file, shared=True) if file is not None else None
        return cls(settings, Ledger(settings.ledger_url), CountedPublisher(counter, settings.terms), lock)

    def take_ledger(self) -> None:
        """Check the ledger's tables, keep embedded wallets out, and settle what a killed one left beside the file.

        Raises `LedgerInUse` while such a wallet lends, `LedgerUnavailable`, and the database's error.
        """
        self.ledger.check_tables()
        file = sqlite_file(self.settings.ledger_url)
        if self.lock is not None and file is not None and self.lock.take():
            settle_outbox(self.ledger, outbox_beside(file), open_days(self.settings, self.publisher.last_heard_ms()))


@lru_cache(maxsize=1)
def deployment() -> Deployment:
    """This process's deployment, as the environment says."""
    return Deployment.from_settings(Settings.from_env())
