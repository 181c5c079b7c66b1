"""The model's counter and the real ones give the same answers to the same random questions.

On the scripts in this process and in memory, whose clocks the test sets: a tick of the model is a second.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from daycap.clock import day_of, day_start_ms
from daycap.counter import ACTIVE, PAUSED, Counter, DaySnapshot, LeaseTerms, LeaseTotals, SyncRequest
from daycap.memory_counter import MemoryCounter
from tests.model import counter as model
from tests.simulation.scripts_in_process import ScriptsInProcess

START_MS = day_start_ms("2026-03-02")
DAY = day_of(START_MS)
TTL, GUARD, GRACE = 6, 1, 2
LEASES = ("a" * 32, "b" * 32, "c" * 32)
STATUS = {model.ACTIVE: ACTIVE, model.PAUSED: PAUSED}

Made = Callable[[Callable[[], int]], Counter]


@pytest.mark.parametrize("make", [ScriptsInProcess, MemoryCounter], ids=["scripts", "memory"])
@pytest.mark.parametrize("seed", range(60))
def test_the_same_questions_get_the_same_answers(make: Made, seed: int) -> None:
    rng, now = random.Random(seed), [1]
    real = make(lambda: START_MS + now[0] * 1000)
    terms = model.Terms(ttl=TTL, guard=GUARD, grace=GRACE, share=8)
    real_terms = LeaseTerms(TTL * 1000, GUARD * 1000, GRACE * 1000)
    modelled: model.Counter | None = None
    totals = {lease: [0, 0, 0] for lease in LEASES}
    seq = 0

    for _ in range(60):
        now[0] += rng.choice([0, 0, 1, 1, 3, 7])
        chance = rng.random()
        if chance < 0.6:
            number = rng.randrange(len(LEASES))
            granted = rng.randrange(30)
            need = rng.choice([0, 0, 1, 5, 20])
            want = need + rng.choice([0, 3])
            request = model.Request(number, 1, granted, rng.randrange(granted + 1), need, want)
            modelled, reply = model.sync(modelled, terms, now[0], request)
            (said,) = real.sync(
                [SyncRequest("agent", DAY, LEASES[number], request.granted, request.returned, need, want)]
            )
            assert said.answer == reply.answer
            if said.answer.taken:
                told = (said.granted_micros, said.drawn_micros, said.events, said.last_event, said.cap_micros)
                assert told == (reply.granted, reply.drawn, reply.events, reply.last_event, reply.cap)
                assert (said.spent_micros, said.leased_micros, int(said.recall)) == (
                    reply.spent,
                    reply.leased,
                    reply.recall,
                )
        elif chance < 0.95:
            lease = rng.choice(LEASES)
            totals[lease] = [value + rng.randrange(4) for value in totals[lease]]
            seq += rng.choice([0, 1, 1])
            old = max(0, seq - rng.choice([0, 0, 0, 1]))
            status, cap, spent = (
                rng.choice([model.ACTIVE] * 4 + [model.PAUSED]),
                rng.choice([10, 60]),
                rng.randrange(30),
            )
            expire_before = rng.choice([0, now[0]])
            first_until = rng.choice([0, 0, now[0] + 5])
            snapshot = model.Snapshot(
                1,
                old,
                status,
                cap,
                spent,
                tuple(map(tuple, totals.values())),
                expire_before,
                first_until,  # type: ignore[arg-type]
            )
            modelled, done = model.publish(modelled, terms, now[0], snapshot)
            leases = tuple(LeaseTotals(name, *values) for name, values in totals.items())
            (published,) = real.publish(
                [DaySnapshot("agent", DAY, old, STATUS[status], cap, spent, leases)],
                real_terms,
                expire_before_ms=START_MS + expire_before * 1000 if expire_before else 0,
                first_until_ms=START_MS + first_until * 1000 if first_until else 0,
            )
            assert published is not None
            assert (published.opened, published.fenced) == (done.opened, done.fenced)
            assert (published.leased_micros, published.given_up_micros) == (done.leased, done.given_up)
        elif isinstance(real, ScriptsInProcess | MemoryCounter):
            real.flush()
            modelled = None
