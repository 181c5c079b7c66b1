"""A worker's Prometheus metrics. Served on `DAYCAP_METRICS_ADDRESS` if `DAYCAP_METRICS_PORT` is set.

`worker.health` answers `/healthz` and `/readyz` at the same port.
"""

from __future__ import annotations

import math

from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app
from sqlalchemy.exc import SQLAlchemyError

from daycap.errors import CounterUnavailable
from daycap.ledger import dead_letters
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.settle import Outcome
from daycap.protocol.counter import DaySnapshot, PublishReply
from worker import health
from worker.health import LedgerProbe

EVENTS = Counter("daycap_events", "Finalize events by outcome", ["outcome"])
CHARGED = Counter("daycap_charged_micros", "Micros booked as spent")
UNCOVERED = Counter("daycap_uncovered_micros", "Micros that calls cost beyond what was left of the cap")
UNLEASED = Counter("daycap_unleased_micros", "Micros charged to budgets of which the call had reserved nothing")
GIVEN_UP = Counter("daycap_given_up_micros", "Micros leased by dead runners, returned to remaining")
FENCES = Counter("daycap_fences", "Days that were opened behind a fence, because the counter had lost them")
DRIFT = Counter("daycap_drift", "Days whose counter differed from the ledger and was repaired")
PUBLISH_FAILURES = Counter("daycap_publish_failures", "Publishes that the counter did not answer")
LEDGER_FAILURES = Counter("daycap_ledger_failures", "Batches retried because the ledger was unavailable, busy or full")
BATCH_SECONDS = Histogram("daycap_batch_seconds", "Seconds to settle, commit and publish one batch")
DEAD_LETTERS = Gauge("daycap_dead_letters", "Dead letters in the ledger that wait for an operator")
SILENT = Gauge("daycap_loop_silent_seconds", "Seconds since the worker's loop last progressed")


def count(outcome: Outcome) -> None:
    """Add the outcome of one batch."""
    EVENTS.labels("settled").inc(outcome.settled)
    EVENTS.labels("duplicate").inc(outcome.duplicates)
    for letter in outcome.dead_letters:
        EVENTS.labels(letter.kind.value).inc()
    CHARGED.inc(outcome.charged_micros)
    UNCOVERED.inc(outcome.uncovered_micros)
    UNLEASED.inc(outcome.unleased_micros)


class CountedPublisher(CounterPublisher):
    """A `CounterPublisher` that also counts what it logs."""

    def _note_failure(self, count: int, error: CounterUnavailable) -> None:
        PUBLISH_FAILURES.inc()
        super()._note_failure(count, error)

    def _note_reply(self, snapshot: DaySnapshot, reply: PublishReply) -> None:
        if reply.opened and reply.fenced:
            FENCES.inc()
        GIVEN_UP.inc(reply.given_up_micros)
        super()._note_reply(snapshot, reply)


def serve(address: str, port: int, ledger: Ledger) -> None:
    """Serve metrics and health over HTTP. Raises `InvalidSetting` if the address cannot be bound."""
    DEAD_LETTERS.set_function(lambda: _dead_letters(ledger))
    SILENT.set_function(health.health.silent_s)
    probe, own = LedgerProbe(ledger), health.health
    checks = {"/healthz": own.alive, "/readyz": lambda: own.ready() + probe()}
    health.serve(address, "DAYCAP_METRICS_PORT", port, checks, make_wsgi_app())


def _dead_letters(ledger: Ledger) -> float:
    """Return the ledger's current count; NaN while the ledger is unavailable."""
    try:
        return dead_letters.count(ledger)
    except SQLAlchemyError:
        return math.nan
