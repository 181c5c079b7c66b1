"""limits: a limit of the cap a day, hit with the estimate as its cost. There is nothing to settle."""

from __future__ import annotations

from callers import Refused, config, serve
from limits import RateLimitItemPerDay
from limits.storage import storage_from_string
from limits.strategies import STRATEGIES


class LimitsWindow:
    def __init__(self) -> None:
        self._storage = storage_from_string(config()["redis"])

    def open(self, key: str, cap: int) -> None:
        """The limit travels with each question."""

    def begin(self, key: str, cap: int, *, strategy: str) -> None:
        self._limiter = STRATEGIES[strategy](self._storage)
        self._key, self._limit = key, RateLimitItemPerDay(cap)

    def reserve(self, estimate: int) -> None:
        if not self._limiter.hit(self._limit, self._key, cost=estimate):
            raise Refused

    def settle(self, hold: None, actual: int) -> None:
        """What was too much cannot be given back."""

    def finish(self) -> None:
        """Everything is in Redis already."""


if __name__ == "__main__":
    serve(LimitsWindow())
