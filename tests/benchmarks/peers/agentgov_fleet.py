"""interlock-agentgov: authorize and capture, one governor a process, its ledger shared through PostgreSQL.

`trip_on_overdraft` is off: on, the first refusal halts the whole scope until somebody resets it, and no other call
of the round would be made. A scope's velocity is not limited.
"""

from __future__ import annotations

from agentgov import Authorization, BudgetExceededError, BudgetManager, CircuitBreakerError, GovernancePolicy
from callers import Refused, config, serve

POLICY = GovernancePolicy(trip_on_overdraft=False, max_calls_per_window=10**9)


def dollars(micros: int) -> str:
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}"


class AgentgovFleet:
    def __init__(self) -> None:
        self._governor = BudgetManager.open_postgres(config()["postgresql"], policy=POLICY)

    def open(self, key: str, cap: int) -> None:
        self._governor.open_root(key, dollars(cap))

    def begin(self, key: str, cap: int) -> None:
        self._key = key
        self._governor.refresh()

    def reserve(self, estimate: int) -> Authorization:
        try:
            return self._governor.authorize(self._key, dollars(estimate))
        except (BudgetExceededError, CircuitBreakerError) as error:
            raise Refused from error

    def settle(self, hold: Authorization, actual: int) -> None:
        self._governor.capture(hold, dollars(actual))

    def finish(self) -> None:
        """Everything is in the ledger already."""


if __name__ == "__main__":
    serve(AgentgovFleet())
