"""interlock-agentgov with its SQLite ledger: authorize and capture."""

from __future__ import annotations

from collections.abc import Callable

from agentgov import BudgetManager, GovernancePolicy
from solo import ACTUAL, CAP, ESTIMATE, main


def dollars(micros: int) -> str:
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}"


def opened() -> BudgetManager:
    policy = GovernancePolicy(trip_on_overdraft=False, max_calls_per_window=10**9)
    return BudgetManager.open_sqlite("spend.db", policy=policy)


def open_file() -> Callable[[], None]:
    governor = opened()
    governor.open_root("agent", dollars(CAP))

    def call() -> None:
        governor.capture(governor.authorize("agent", dollars(ESTIMATE)), dollars(ACTUAL))

    return call


def read() -> int:
    return CAP - round(opened().available("agent") * 1_000_000)


if __name__ == "__main__":
    main(open_file, read)
