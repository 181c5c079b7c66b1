"""daycap with a SQLite file of its own."""

from __future__ import annotations

from collections.abc import Callable

from solo import ACTUAL, CAP, ESTIMATE, main

from daycap import Settings, Wallet


def opened() -> Wallet:
    return Wallet.from_settings(Settings(ledger_url="sqlite:///spend.db"))


def open_file() -> Callable[[], None]:
    wallet = opened()
    wallet.add_agent("agent", CAP)
    return lambda: wallet.reserve("agent", ESTIMATE).finalize(ACTUAL)


def read() -> int:
    with opened() as wallet:
        return wallet.spent("agent").micros


if __name__ == "__main__":
    main(open_file, read)
