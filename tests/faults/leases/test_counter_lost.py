"""Redis forgets: all of it, one key, or what happened last (P4, P6, P8). Nobody but the fence stands in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.faults.conftest import made
from tests.faults.leases.conftest import GRACE_S, LeaseSpine
from tests.faults.proxy import Proxy
from tests.processes import LocalBeat, LocalRedis
from tests.runner import Said
from tests.spine import wait_for


class Loss:
    """A way to lose what the counter knows: `prepare` while little is lent, `lose` when more is."""

    def __init__(self, server: LocalRedis, proxy: Proxy, directory: Path) -> None:
        self.server, self.proxy, self.directory = server, proxy, directory

    def prepare(self, key: str) -> None:
        self.key = key

    def lose(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Let go of what it started."""

    def client(self, server: LocalRedis) -> redis.Redis:
        return redis.Redis.from_url(server.url, decode_responses=True)


class Flushed(Loss):
    def lose(self) -> None:
        with self.client(self.server) as client:
            client.flushall()


class KeyEvicted(Loss):
    def lose(self) -> None:
        with self.client(self.server) as client:
            assert client.delete(self.key) == 1


class RestartedEmpty(Loss):
    def lose(self) -> None:
        self.server.kill()
        self.server.restart()


class RestartedWithOldData(Loss):
    def prepare(self, key: str) -> None:
        super().prepare(key)
        with self.client(self.server) as client:
            client.save()

    def lose(self) -> None:
        self.server.kill()
        self.server.restart()
        with self.client(self.server) as client:
            assert client.exists(self.key), "the old data is there"


class FailedOverToAStaleReplica(Loss):
    def prepare(self, key: str) -> None:
        super().prepare(key)
        # Given a replica, which is cut off from here on
        self.line = Proxy(self.server.port)
        self.replica = LocalRedis(made(self.directory / "replica"))
        self.replica.ready()
        with self.client(self.server) as master, self.client(self.replica) as replica:
            master.config_set("repl-diskless-sync-delay", 0)
            replica.replicaof("127.0.0.1", self.line.port)
            wait_for(lambda: replica.exists(key))
        self.line.silence()

    def lose(self) -> None:
        self.server.kill()
        with self.client(self.replica) as replica:
            replica.replicaof("NO", "ONE")
        self.proxy.redirect(self.replica.port)

    def end(self) -> None:
        self.line.close()
        self.replica.teardown()


@pytest.fixture(params=[Flushed, KeyEvicted, RestartedEmpty, RestartedWithOldData, FailedOverToAStaleReplica])
def loss(request: pytest.FixtureRequest, counter_server: LocalRedis, proxy: Proxy, tmp_path: Path) -> Iterator[Loss]:
    loss = request.param(counter_server, proxy, tmp_path)
    yield loss
    loss.end()


def answered(what: Callable[[], bool]) -> bool:
    """`what`, or no as long as the server is on its way back."""
    try:
        return what()
    except Exception:
        return False


def test_lost_counter_is_fenced_until_leases_return(spine: LeaseSpine, loss: Loss) -> None:
    agent, a, b = spine.add("agent-7", 100), spine.runner(), spine.runner()
    first = a.reserve(agent, 10)
    loss.prepare(spine.key(agent))
    # Given 20 spent and 30 lent, of which what comes back knows 10 at most
    spent, second, third = a.reserve(agent, 20), b.reserve(agent, 5), b.reserve(agent, 15)
    a.finalize(spent, 20)
    spine.settled(agent, 20)
    spine.wait_for(lambda: spine.leased(agent) == 30)

    loss.lose()

    # Then runners go on within their leases, and nothing new is lent
    second, c = b.reserve_again(second), spine.runner(open_timeout_seconds=0.1)
    for _ in range(3):
        with pytest.raises(Said, match="BudgetUnavailable"):
            c.reserve_once(agent, 1)
    # And the leases are put back, all of them
    spine.wait_for(lambda: answered(lambda: spine.leased(agent) == 30))
    reading = spine.reading(agent)
    assert (reading.fenced, reading.spent_micros, reading.remaining_micros) == (True, 20, 0)
    with pytest.raises(Said, match=r"BudgetUnavailable.*lost its data"):
        c.reserve_once(agent, 1)
    # And when ttl, guard and grace are over, what is free is lent again, to a micro
    fence_until_ms = int(spine.redis.hget(spine.key(agent), "fence_until_ms") or 0)
    spine.wait_for(lambda: spine.expire() > 0)
    assert spine.counter.now_ms() > fence_until_ms + GRACE_S * 1000
    assert spine.leased(agent) == 30
    with pytest.raises(Said, match="CapExceeded"):
        c.reserve(agent, 51)
    rest = c.reserve(agent, 50)
    # And all that was truly spent is the cap
    for runner, hold, actual in ((a, first, 10), (b, second, 5), (b, third, 15), (c, rest, 50)):
        runner.finalize(hold, actual)
    spine.check_all_ended(agent)
    row = spine.day_row(agent)
    assert (row["spent_micros"], row["uncovered_micros"]) == (100, 0)


def test_of_a_key_that_is_lost_nobody_else_hears(spine: LeaseSpine) -> None:
    agent, other, a = spine.add("agent-7", 100), spine.add("agent-8", 100), spine.runner()
    hold = a.reserve(agent, 10)

    spine.redis.delete(spine.key(agent))

    a.release(a.reserve_once(other, 100))
    spine.wait_for(lambda: spine.is_open(agent))
    assert spine.reading(agent).fenced
    assert not spine.reading(other).fenced
    a.release(hold)
    spine.check_all_ended(agent, other)


def test_lost_counter_recovers_by_itself(spine: LeaseSpine, tmp_path: Path) -> None:
    """P4: what was lent to a runner that died can not be put back; all that the fence gives free is given up."""
    beat = LocalBeat(tmp_path, spine.environment)
    agent, a, b, c = spine.add("agent-7", 100), spine.runner(), spine.runner(), spine.runner()
    held, _lost = a.reserve(agent, 10), b.reserve(agent, 20)
    b.kill()

    spine.redis.flushall()

    # When nothing is done but to try again
    taken = c.reserve(agent, 90)
    assert 90 <= spine.given_up <= 100
    with pytest.raises(Said, match="CapExceeded"):
        c.reserve(agent, 1)
    a.finalize(held, 10)
    c.finalize(taken, 90)
    beat.teardown()
    spine.check_all_ended(agent)
    assert spine.day_row(agent)["spent_micros"] == 100
