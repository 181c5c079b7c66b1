"""The real counters against the model's: the same random questions, the same answers, so that none drifts away."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import pytest
import redis

from daycap.clock import DAY_MS, day_of, day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.counters.redis import RedisCounter, counter_key
from daycap.protocol.counter import ACTIVE, PAUSED, Answer, Counter, DaySnapshot, LeaseTerms, LeaseTotals, SyncRequest
from tests.model import counter as model
from tests.simulation.scripts_in_process import ScriptsInProcess

DAY = "2026-11-24"
BEGIN_MS, END_MS = day_start_ms(DAY), day_start_ms(DAY) + DAY_MS
LEASES = ("a" * 32, "b" * 32, "c" * 32)
SHORT = LeaseTerms(ttl_ms=30, guard_ms=5, grace_ms=7)
LONG = LeaseTerms(ttl_ms=10**8, guard_ms=10**7, grace_ms=10**7)
STEPS = 40


class Both:
    """The model's counter and a real one, which are asked the same. `margin_ms` is what times are away from now."""

    def __init__(self, real: Counter, terms: LeaseTerms, day: str, agent: str = "agent", margin_ms: int = 1) -> None:
        self.real, self.real_terms, self.day, self.agent, self.margin_ms = real, terms, day, agent, margin_ms
        self.begin_ms = day_start_ms(day)
        self.terms = model.Terms(terms.ttl_ms, terms.guard_ms, terms.grace_ms, share=8)
        self.counter: model.Counter | None = None
        self.run = 1

    def sync(self, random: Random, now_ms: int) -> None:
        lease = random.randrange(3)
        known = self.counter.leases[lease] if self.counter is not None else model.NEW
        # Mostly what a runner would say, or said a while ago; at times anything.
        granted = random.choice((known.granted, known.granted, random.randint(0, 30)))
        returned = random.choice((known.returned, known.returned, random.randint(0, granted)))
        need = random.choice((0, random.randint(1, 20)))
        want = need + random.choice((0, random.randint(0, 20))) if need else 0
        farewell = model.NEVER if need or random.random() < 0.8 else lease
        request = model.Request(lease, self.run, granted, returned, need, want, farewell=farewell)

        today = self.begin_ms <= now_ms < self.begin_ms + DAY_MS
        self.counter, expected = model.sync(self.counter, self.terms, now_ms, request, today=today)
        said = None if farewell == model.NEVER else farewell
        (reply,) = self.real.sync(
            [SyncRequest(self.agent, self.day, LEASES[lease], granted, returned, need, want, said)]
        )
        if said is not None and expected == model.Reply("OK"):
            assert reply.answer is Answer.OK
            return
        assert (str(reply.answer), *reply[2:6], *reply[7:10], int(reply.recall)) == expected

    def publish(self, random: Random, now_ms: int) -> None:
        seq, status = random.randint(0, 5), random.choice((model.ACTIVE, model.ACTIVE, model.ACTIVE, model.PAUSED))
        totals = tuple(
            (random.randint(0, 12), random.randint(1, 3), random.randint(1, 3)) if random.random() < 0.4 else ()
            for _ in LEASES
        )
        base = random.choice((model.WHOLE, model.REPAIR, model.REPAIR, *range(seq + 1)))
        folded = tuple(
            number for number, each in enumerate(totals) if base != model.WHOLE and not each and random.random() < 0.1
        )
        cap, spent = random.randint(0, 60), random.randint(0, 20)
        expire_before_ms = random.choice((0, now_ms + random.randint(-60, 30) * self.margin_ms))
        first_until_ms = random.choice((0, 0, now_ms + random.randint(-5, 5) * self.margin_ms))
        # Only of a delta the worker says which leases may have to be given up.
        chosen = tuple(number for number in range(3) if base < 0 or random.random() < 0.7)
        said = model.Snapshot(
            self.run, seq, status, cap, spent, totals, expire_before_ms, first_until_ms, chosen, base, 0, folded
        )
        said = said._replace(drawn=self.likely_drawn(random, said))

        ahead, over = now_ms + self.terms.ttl < self.begin_ms, now_ms >= self.begin_ms + DAY_MS
        self.counter, expected = model.publish(self.counter, self.terms, now_ms, said, ahead=ahead, over=over)
        snapshot = DaySnapshot(
            self.agent,
            self.day,
            seq,
            PAUSED if status == model.PAUSED else ACTIVE,
            cap,
            spent,
            said.drawn,
            tuple(LeaseTotals(name, *each) for name, each in zip(LEASES, totals, strict=True) if each),
            None if base < 0 else base,
            tuple(LEASES[number] for number in folded),
            base == model.REPAIR,
        )
        (reply,) = self.real.publish(
            [snapshot],
            self.real_terms,
            expire_before_ms=expire_before_ms,
            first_until_ms=first_until_ms,
            overdue={(self.agent, self.day): [LEASES[number] for number in chosen]},
        )
        assert reply is not None
        assert reply.behind == expected.behind
        if expected.behind is None:
            assert (reply.opened, reply.fenced, reply.leased_micros, reply.given_up_micros) == expected[:4]

    def likely_drawn(self, random: Random, said: model.Snapshot) -> int:
        """Mostly the sum that the counter would have, so that it takes what is said."""
        named = sum(each[0] for each in said.totals if each)
        if self.counter is None or random.random() < 0.3:
            return named + random.choice((0, 0, random.randint(0, 20)))
        return max(named, model._told_changes(self.counter, self.terms, said).drawn)

    def look(self) -> None:
        """What both keep is the same, too."""
        (reading,) = self.real.read([(self.agent, self.day)])
        counter = self.counter
        if counter is None or counter.run != self.run:
            assert reading is None
            return
        assert reading is not None
        assert tuple(reading)[1:] == (
            counter.seq,
            PAUSED if counter.status == model.PAUSED else ACTIVE,
            counter.cap,
            counter.spent,
            counter.drawn,
            model.leased(counter.leases, self.terms),
            counter.given_up,
            counter.fence_until > 0,
        )
        (leases,) = self.real.leases([(self.agent, self.day)])
        expected = {
            LEASES[number]: (model.outstanding(lease, self.terms), lease.farewell)
            for number, lease in enumerate(counter.leases)
            if lease.known
        }
        never = model.NEVER
        assert expected == {
            name: (each.outstanding_micros, never if each.farewell is None else each.farewell)
            for name, each in leases.items()
        }


class Clock:
    """Begins before, in, or at the end of the day."""

    def __init__(self, random: Random) -> None:
        self.ms = random.choice((BEGIN_MS - 500, BEGIN_MS - 20, BEGIN_MS + DAY_MS // 2, END_MS - 30))

    def now_ms(self) -> int:
        return self.ms

    def wait(self, random: Random) -> None:
        self.ms += random.randint(1, 40)


def compare(both: Both, random: Random, now_ms: Callable[[], int], others: dict[str, Callable[[], None]]) -> None:
    """Take random steps with both; `others` are those that are not the protocol's."""
    names = ["sync"] * 6 + ["publish"] * 3 + list(others)
    for name in random.choices(names, k=STEPS):
        if name in others:
            others[name]()
        else:
            getattr(both, name)(random, now_ms())
        both.look()


@pytest.mark.parametrize("hundreds", range(10))
def test_the_counter_in_memory_is_the_models(hundreds: int) -> None:
    for seed in range(100 * hundreds, 100 * hundreds + 100):
        random = Random(seed)
        clock = Clock(random)
        counter = MemoryCounter(clock.now_ms)
        both = Both(counter, SHORT, DAY)

        def flush(both: Both = both, counter: MemoryCounter = counter) -> None:
            counter.flush()
            both.counter = None

        compare(both, random, clock.now_ms, {"flush": flush, "wait": partial(clock.wait, random)})


@pytest.mark.parametrize("hundreds", range(10))
def test_the_scripts_are_the_models(hundreds: int) -> None:
    for seed in range(100 * hundreds, 100 * hundreds + 100):
        random = Random(seed)
        clock = Clock(random)
        counter = ScriptsInProcess(clock.now_ms)
        both = Both(counter, SHORT, DAY)

        def flush(both: Both = both, counter: ScriptsInProcess = counter) -> None:
            counter.flush()
            both.counter = None

        def another_life_of_the_server(both: Both = both, counter: ScriptsInProcess = counter) -> None:
            counter.restart(counter.copy())
            both.run += 1

        wait = partial(clock.wait, random)
        others: dict[str, Callable[[], None]] = {"flush": flush, "life": another_life_of_the_server, "wait": wait}
        compare(both, random, clock.now_ms, others)


@pytest.fixture(scope="module")
def server(redis_server: Any) -> Iterator[tuple[RedisCounter, redis.Redis]]:
    counter = RedisCounter(redis_server.url(), timeout_s=5)
    client = redis.Redis.from_url(redis_server.url())
    yield counter, client
    counter.close()
    client.close()


_agents = itertools.count()


@pytest.mark.parametrize("tens", range(10))
def test_the_counter_in_redis_is_the_models(server: tuple[RedisCounter, redis.Redis], tens: int) -> None:
    """A server's clock is not ours: the terms are so long that no time passes here which matters."""
    counter, client = server
    for seed in range(10 * tens, 10 * tens + 10):
        begin_ms = counter.now_ms()
        both = Both(counter, LONG, day_of(begin_ms), f"model-{next(_agents)}", margin_ms=10**7)
        key = counter_key(both.agent, both.day)

        def flush(both: Both = both, key: str = key) -> None:
            client.delete(key)
            both.counter = None

        def old_copy(both: Both = both, key: str = key) -> None:
            if both.counter is not None and both.counter.run == both.run:
                client.hset(key, "run_id", "another life")
                both.counter = both.counter._replace(run=0)

        compare(both, Random(seed), partial(int, begin_ms), {"flush": flush, "old copy": old_copy})
