"""EscrowMint: its direct path, reserve and commit. A commit takes all that was reserved, so that what was too much is
topped up again."""

from __future__ import annotations

from callers import Refused, config, serve
from escrowmint import Client, InsufficientQuota, Reservation

TTL_MS = 60_000


class EscrowMintDirect:
    def __init__(self) -> None:
        self._client = Client.from_url(config()["redis"])

    def open(self, key: str, cap: int) -> None:
        self._client.top_up(key, cap)

    def begin(self, key: str, cap: int) -> None:
        self._key = key

    def reserve(self, estimate: int) -> Reservation:
        try:
            return self._client.reserve(self._key, estimate, ttl_ms=TTL_MS)
        except InsufficientQuota as error:
            raise Refused from error

    def settle(self, hold: Reservation, actual: int) -> None:
        self._client.commit(self._key, hold.reservation_id)
        if actual < hold.amount:
            self._client.top_up(self._key, hold.amount - actual)

    def finish(self) -> None:
        """Everything is in Redis already."""


if __name__ == "__main__":
    serve(EscrowMintDirect())
