"""How long midnight takes: `python -m tests.benchmarks.bench_rollover --agents 100000 --budgets`.

A ledger in SQLite and a real server; each verb goes through all agents' days slice by slice, as a worker's tasks do.
Printed are the time for all, the longest slice, which is how long an event may have to wait, and the number of slices.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.ledger import opening, retention
from daycap.ledger.engine import Ledger, given_columns
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import Place, Slice, slice_of
from daycap.ledger.tables import budgets, lease_totals, settlements
from daycap.periods import PeriodRule
from daycap.settings import Settings
from tests.benchmarks.place import place
from worker import housekeeping

SETTINGS = Settings()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--budgets", action="store_true", help="three for each agent: an hour, a week, a month")
    given = parser.parse_args()
    with place(given.agents) as here:
        print(f"{given.agents:,} agents{', three budgets each' if given.budgets else ''}")
        if given.budgets:
            add_budgets(here.ledger, here.agents)
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


def add_budgets(ledger: Ledger, agents: list[str]) -> None:
    """As if each had been added long ago. Agents have no plan of them: that is drift."""
    row = {"labels": "{}", "mode": "enforce", "cap_micros": 1, "created_at": 1, "updated_at": 1}
    rules = {"h": ("hour", "Europe/Zurich"), "w": ("week", "Asia/Tokyo"), "m": ("month", "America/New_York")}
    with ledger.writing() as connection:
        for name, (kind, zone) in rules.items():
            period = json.dumps(PeriodRule(kind, zone).to_json())
            ids = [
                {"budget_id": f"{name}-{each}/1", "name": f"{name}-{each}", "agent_account_id": each} for each in agents
            ]
            connection.execute(sa.insert(budgets), [{**row, **each, "period": period} for each in ids])


def add_settlements(ledger: Ledger, day: str) -> None:
    """One lease and one settlement for each agent, to be pruned."""
    days = sa.table("daily_agent_spending", sa.column("agent_account_id"), sa.column("spending_date"))
    agent, date = days.c.agent_account_id, days.c.spending_date
    one: Any = sa.literal_column("1")
    of_day = sa.select("lease-" + agent, agent, date, *(one.label(name) for name in "abcde"))
    with ledger.writing() as connection:
        connection.execute(sa.insert(lease_totals).from_select(lease_totals.c.keys(), of_day.where(date == day)))
        charged = sa.select("lease-" + agent + "-1", agent, date, *(one.label(name) for name in "abcde"))
        charged = charged.where(date == day)
        connection.execute(sa.insert(settlements).from_select(given_columns(settlements), charged))


if __name__ == "__main__":
    main()
