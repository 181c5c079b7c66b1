"""How long midnight takes: `python -m tests.benchmarks.bench_rollover --agents 100000`.

A ledger in SQLite and a real server; each verb goes through all agents' days slice by slice, as a worker's tasks do.
Printed are the time for all, the longest slice, which is how long an event may have to wait, and the number of slices.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.ledger import opening, retention
from daycap.ledger.engine import Ledger, given_columns
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import Place, Slice, slice_of
from daycap.ledger.tables import lease_totals, settlements
from daycap.settings import Settings
from tests.benchmarks.place import place
from worker import housekeeping

SETTINGS = Settings()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    agents = parser.parse_args().agents
    with place(agents) as here:
        print(f"{agents:,} agents")
        measure_all(here.ledger, here.publisher)


def measure_all(ledger: Ledger, publisher: CounterPublisher) -> None:
    measure("rollover, today", lambda at: opening.rollover(ledger, publisher, 0, at))
    measure("rollover, the next day", lambda at: opening.rollover(ledger, publisher, DAY_MS, at))
    measure("rollover, nothing missing", lambda at: opening.rollover(ledger, publisher, DAY_MS, at))
    measure("expire", lambda at: housekeeping.expire(ledger, publisher, lambda now_ms: now_ms, at))
    measure("reconcile", lambda at: housekeeping.reconcile(ledger, publisher, at))
    now_ms = publisher.authoritative_ms()
    add_settlements(ledger, day_of(now_ms))
    later_ms = now_ms + (SETTINGS.books_days + 2) * DAY_MS
    measure("prune", lambda at: retention.prune(ledger, SETTINGS, later_ms, at))


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


def add_settlements(ledger: Ledger, day: str) -> None:
    """One lease and one settlement for each agent, to be pruned."""
    days = sa.table("daily_agent_spending", sa.column("agent_account_id"), sa.column("spending_date"))
    agent, date = days.c.agent_account_id, days.c.spending_date
    one: Any = sa.literal_column("1")
    of_day = sa.select("lease-" + agent, agent, date, one.label("a"), one.label("b"), one.label("c"))
    with ledger.writing() as connection:
        connection.execute(sa.insert(lease_totals).from_select(lease_totals.c.keys(), of_day.where(date == day)))
        charged = sa.select("lease-" + agent + "-1", agent, date, *(one.label(name) for name in "abcd"))
        charged = charged.where(date == day)
        connection.execute(sa.insert(settlements).from_select(given_columns(settlements), charged))


if __name__ == "__main__":
    main()
