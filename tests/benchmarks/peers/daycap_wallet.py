"""daycap: a wallet for each process, shared by its threads; a worker settles meanwhile."""

from __future__ import annotations

import subprocess
import sys

from callers import Refused, Unavailable, serve

from daycap import BudgetUnavailable, CapExceeded, Hold, Wallet, format_usd


class DaycapWallet:
    def __init__(self) -> None:
        self._wallet = Wallet.from_env()

    def open(self, key: str, cap: int) -> None:
        dollars = format_usd(cap).lstrip("$").replace(",", "")
        subprocess.run(
            [sys.executable, "-m", "daycap", "agent", "add", key, "--cap", dollars],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def begin(self, key: str, cap: int) -> None:
        self._key = key

    def reserve(self, estimate: int) -> Hold:
        try:
            return self._wallet.reserve(self._key, estimate)
        except CapExceeded as error:
            raise Refused from error
        except BudgetUnavailable as error:
            raise Unavailable from error

    def settle(self, hold: Hold, actual: int) -> None:
        hold.finalize(actual)

    def finish(self) -> None:
        left = self._wallet.flush(60)
        assert not left, f"{len(left)} events are not settled"


if __name__ == "__main__":
    serve(DaycapWallet())
