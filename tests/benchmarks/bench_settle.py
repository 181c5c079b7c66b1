"""Settling: from the queue to the durable ledger and to Redis, by one worker process."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

import sqlalchemy as sa
from celery import Celery

from daycap import Wallet
from daycap.clock import wall_ms
from daycap.delivery.celery import CeleryTransport
from daycap.ledger import budgets, groups
from daycap.ledger.tables import agent_accounts
from daycap.periods import PeriodRule
from daycap.protocol.wire import CONTROL_QUEUE, FinalizeEvent, Share, new_lease_id
from tests.benchmarks.figures import Figure, interleaved
from tests.benchmarks.no_op import NO_OP_TASK
from tests.benchmarks.place import CAP_MICROS, Place, batches, place, rate
from tests.percentile import percentile

_BATCHED, _SINGLE, _SLOW = 40_000, 6_000, 300


def figures() -> Iterator[Figure]:
    """Full messages, messages of one event, and what one event waits where there are few."""
    with place() as here:
        here.open_days()
        floor, settled = interleaved(3, lambda: _floor(here), lambda: _settle(here, _BATCHED, 500))
        against = "events/s: rows by executemany, 500 a transaction"
        yield Figure("settle, 500 events a message", settled, "events/s", against, floor, at_least=0.5)
        yield Figure("settle, 500 events a message: rate", settled, "events/s", at_least=20_000)
        nothing, singles = interleaved(3, lambda: no_op(here), lambda: settle_singles(here))
        against = "messages/s: a task that does nothing"
        yield Figure("settle, 1 event a message", singles, "events/s", against, nothing, at_least=0.8)
        with place() as team:
            team.open_days()
            further = _budgets(team)
            alone, shared = interleaved(
                3, lambda: _settle(here, _BATCHED, 500), lambda: _settle(team, _BATCHED, 500, *further)
            )
            against = "events/s with the agent's own day alone"
            yield Figure("settle, 4 budgets", shared, "events/s", against, alone, at_least=0.5)
        waits_ms = _latencies_ms(here)
        yield Figure("finalize to settled, few events, p50", percentile(waits_ms, 0.5), "ms")
        yield Figure("finalize to settled, few events, p99", percentile(waits_ms, 0.99), "ms", at_most=50)


def _budgets(here: Place) -> tuple[tuple[Share, ...], int]:
    """Have all agents share three budgets. Returns what each call then has of them, and the plan."""
    groups.add(here.ledger, here.publisher, "all", here.agents, [], "bench")
    shares = []
    for name, period in (("brake", "hour"), ("team", "month"), ("firm", "year")):
        facts = {"group": "all", "cap_micros": CAP_MICROS, "period": {"period": period}}
        found = budgets.add(here.ledger, here.publisher, name, facts, "bench")
        where = found.budget, PeriodRule(period).at(wall_ms()).id
        shares.append(Share(*where, new_lease_id(*where, bytes(16))))
    with here.ledger.reading() as connection:
        plan = connection.scalar(sa.select(sa.func.max(agent_accounts.c.plan_id)))
    return tuple(shares), int(plan or 0)


def _settle(here: Place, events: int, each: int, also: tuple[Share, ...] = (), plan: int = 0) -> float:
    """Events a second, from the first commit to the last."""
    transport = CeleryTransport(here.settings.broker_url)
    for batch in batches(here.agents, events, each):
        transport.send([event._replace(also=also, plan=plan) for event in batch])
    transport.close()
    before = here.settled()
    with here.worker():
        return rate(lambda: here.settled() - before, events)


def settle_singles(here: Place) -> float:
    """Events a second where each message has one."""
    return _settle(here, _SINGLE, 1)


def no_op(here: Place, *options: str) -> float:
    """Messages a second that the same worker takes and acknowledges when there is nothing to do."""
    app = Celery(broker=here.settings.broker_url, set_as_current=False)
    events = [batch[0].to_wire() for batch in batches(here.agents, _SINGLE, 1)]
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for event in events:
            app.send_task(
                NO_OP_TASK, kwargs={"events": [event]}, queue=CONTROL_QUEUE, producer=producer, ignore_result=True
            )
    app.close()

    def done() -> int:
        return _SINGLE - int(here.broker.llen(CONTROL_QUEUE)) - int(here.broker.hlen("unacked"))

    with here.worker("-I", "tests.benchmarks.no_op", *options):
        return rate(done, _SINGLE)


def _latencies_ms(here: Place) -> list[float]:
    """From the return of each finalize, some 50 a second, until another process can read it in the ledger."""
    connection = sqlite3.connect(here.ledger_path, isolation_level=None)
    waits = []
    with here.worker() as worker, Wallet.from_settings(here.settings) as wallet:
        worker.ready()
        for number in range(_SLOW):
            hold = wallet.reserve(here.agents[number % 100], 10)
            hold.finalize(10)
            began = time.perf_counter()
            while not connection.execute("SELECT 1 FROM settlements WHERE reservation_id = ?", (hold.id,)).fetchone():
                if time.perf_counter() - began > 30:
                    raise RuntimeError("an event was not settled within 30 s")
                time.sleep(0.0005)
            waits.append((time.perf_counter() - began) * 1000)
            time.sleep(0.01)
    connection.close()
    return waits


def _floor(here: Place) -> float:
    """The same rows, written by nothing but SQLite, as durably: settlements, lease totals, days."""
    connection = sqlite3.connect(here.ledger_path, isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    made = batches(here.agents, _BATCHED, 500)
    began_s = time.perf_counter()
    for batch in made:
        _write(connection, batch)
    seconds = time.perf_counter() - began_s
    connection.close()
    return _BATCHED / seconds


def _write(connection: sqlite3.Connection, batch: list[FinalizeEvent]) -> None:
    leases: dict[str, list[FinalizeEvent]] = {}
    for event in batch:
        leases.setdefault(event.lease, []).append(event)
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        f"INSERT INTO daily_agent_spending VALUES (?, ?, {CAP_MICROS}, ?, 0, ?, 1, 1, ?, 1) ON CONFLICT DO UPDATE"
        " SET spent_micros = spent_micros + excluded.spent_micros, drawn_micros = drawn_micros + excluded.drawn_micros,"
        " settled_count = settled_count + excluded.settled_count, seq = seq + 1, drawn_seq = seq + 1",
        [
            (
                some[0].agent,
                some[0].day,
                sum(e.actual_micros for e in some),
                len(some),
                sum(e.drawn_micros for e in some),
            )
            for some in leases.values()
        ],
    )
    connection.executemany(
        "INSERT INTO lease_totals VALUES (?, ?, ?, ?, ?, ?, 1, 0) ON CONFLICT DO UPDATE SET"
        " drawn_micros = drawn_micros + excluded.drawn_micros, events = events + excluded.events,"
        " last_event = excluded.last_event, changed_seq = changed_seq + 1",
        [
            (lease, some[0].agent, some[0].day, sum(e.drawn_micros for e in some), len(some), some[-1].number)
            for lease, some in leases.items()
        ],
    )
    connection.executemany(
        "INSERT INTO settlements VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
        [(e.reservation, e.agent, e.day, e.held_micros, e.actual_micros, e.actual_micros, e.at_ms) for e in batch],
    )
    connection.execute("COMMIT")
