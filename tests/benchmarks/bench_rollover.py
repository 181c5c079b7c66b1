"""How long midnight takes: `python -m tests.benchmarks.bench_rollover --agents 100000`.

A ledger in SQLite and a real server; each verb goes through all agents' days slice by slice, as a worker's tasks do.
Printed are the time for all, the longest slice, which is how long an event may have to wait, and the number of slices.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.redis_counter import RedisCounter
from daycap.settings import Settings
from tests.migrated import migrated_sqlite
from worker import housekeeping, opening, retention
from worker.ledger import Ledger
from worker.local_server import LocalServer
from worker.publish import CounterPublisher
from worker.schema import agent_accounts, lease_totals, settlements
from worker.slices import Place, Slice, slice_of

SETTINGS = Settings()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    agents = parser.parse_args().agents
    with tempfile.TemporaryDirectory() as directory:
        ledger = Ledger(f"sqlite:///{migrated_sqlite(Path(directory) / 'ledger.sqlite3')}")
        server = LocalServer(directory=Path(directory)).start()
        publisher = CounterPublisher(RedisCounter(server.url(), 5), SETTINGS.terms)
        try:
            add_accounts(ledger, agents)
            print(f"{agents:,} agents")
            measure_all(ledger, publisher)
        finally:
            publisher.close()
            server.stop()
            ledger.close()


def measure_all(ledger: Ledger, publisher: CounterPublisher) -> None:
    measure("rollover, today", lambda place: opening.rollover(ledger, publisher, 0, place))
    measure("rollover, the next day", lambda place: opening.rollover(ledger, publisher, DAY_MS, place))
    measure("rollover, nothing missing", lambda place: opening.rollover(ledger, publisher, DAY_MS, place))
    measure("expire", lambda place: housekeeping.expire(ledger, publisher, lambda now_ms: now_ms, place))
    measure("reconcile", lambda place: housekeeping.reconcile(ledger, publisher, place))
    now_ms = publisher.authoritative_ms()
    add_settlements(ledger, day_of(now_ms))
    later_ms = now_ms + (SETTINGS.books_days + 2) * DAY_MS
    measure("prune", lambda place: retention.prune(ledger, SETTINGS, later_ms, place))


def measure(name: str, step: Callable[[Place], Slice]) -> None:
    """Take every slice and print what it took."""
    slices, counts, place = [], dict[str, int](), list[Any]()
    at: Place | None = place
    while at is not None:
        start_s = time.perf_counter()
        done = slice_of(step, at)
        slices.append(time.perf_counter() - start_s)
        counts = {key: counts.get(key, 0) + done.counts.get(key, 0) for key in counts | done.counts}
        at = done.place
    took = f"{sum(slices):6.1f} s, longest slice {max(slices) * 1000:4.0f} ms of {len(slices)}"
    print(f"{name:<26} {took}   {', '.join(f'{key} {count:,}' for key, count in counts.items() if count)}")


def add_accounts(ledger: Ledger, agents: int) -> None:
    row = {"daily_cap_micros": 5_000_000, "status": "active", "created_at": 1, "updated_at": 1}
    rows = [{"agent_account_id": f"agent-{number:07d}", **row} for number in range(agents)]
    with ledger.writing() as connection:
        connection.execute(sa.insert(agent_accounts), rows)


def add_settlements(ledger: Ledger, day: str) -> None:
    """One lease and one settlement for each agent, to be pruned."""
    days = sa.table("daily_agent_spending", sa.column("agent_account_id"), sa.column("spending_date"))
    agent, date = days.c.agent_account_id, days.c.spending_date
    one: Any = sa.literal_column("1")
    of_day = sa.select("lease-" + agent, agent, date, one.label("a"), one.label("b"), one.label("c"))
    with ledger.writing() as connection:
        connection.execute(sa.insert(lease_totals).from_select(lease_totals.c.keys(), of_day.where(date == day)))
        charged = sa.select(
            "lease-" + agent + "-1", agent, date, "lease-" + agent, *(one.label(name) for name in "abcd")
        )
        connection.execute(sa.insert(settlements).from_select(settlements.c.keys(), charged.where(date == day)))


if __name__ == "__main__":
    main()
