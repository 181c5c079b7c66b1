"""The counter's way to a real server: its connections, and what becomes of an answer that is late, lost or an error.

What a runner's call may wait for is there twice, for threads and for an event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis

from daycap import CounterUnavailable
from daycap.clock import DAY_MS, day_of, wall_ms
from daycap.counters.async_redis import AsyncRedisCounter, _Line
from daycap.counters.redis import MAX_PER_ROUND_TRIP, RedisCounter
from daycap.protocol.counter import ACTIVE, Answer, DaySnapshot, LeaseTerms, SyncReply, SyncRequest
from demo.local_server import LocalServer
from tests.fake_clock import AVAILABLE, FakeClock
from tests.processes import LocalRedis
from tests.spine import wait_for

TERMS = LeaseTerms(ttl_ms=30_000, guard_ms=1_000, grace_ms=10_000)
TIMEOUT_S = 0.5
MANAGED = ("--rename-command", "CONFIG", "", "--rename-command", "HELLO", "")
"""What a provider or a proxy does not let through."""


class Server:
    """A server of one test's own, and what its operator sees."""

    def __init__(self, local: LocalServer) -> None:
        self.local = local
        self.operator = redis.Redis(port=local.port, protocol=2, decode_responses=True)
        self.operator.ping()

    @property
    def connections(self) -> int:
        """How many others have made."""
        return len(self.operator.client_list()) - 1

    def close(self) -> None:
        self.operator.close()
        self.local.stop()


@pytest.fixture
def options() -> tuple[str, ...]:
    return ()


@pytest.fixture
def server(options: tuple[str, ...], tmp_path: Path) -> Iterator[Server]:
    server = Server(LocalServer(*options, directory=tmp_path / "server").start())
    yield server
    server.close()


@pytest.fixture
def counter(server: Server) -> Iterator[RedisCounter]:
    counter = RedisCounter(server.local.url(), TIMEOUT_S)
    yield counter
    counter.close()


class Asked(Protocol):
    """What a runner asks, of whichever kind."""

    def sync(self, requests: list[SyncRequest]) -> list[SyncReply]: ...
    def close(self) -> None: ...


class OfALoop:
    """An AsyncRedisCounter that is asked by tasks of one event loop, which runs while it is asked."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.counter = AsyncRedisCounter(url, timeout_s)
        self.loop = asyncio.new_event_loop()

    def sync(self, requests: list[SyncRequest]) -> list[SyncReply]:
        asking = self.loop.create_task(self._all(requests))
        try:
            return self.loop.run_until_complete(asking)
        except KeyboardInterrupt:
            self.loop.run_until_complete(asyncio.wait([asking], timeout=10))
            assert isinstance(asking.exception(), CounterUnavailable), "whoever asked is answered"
            raise

    async def _all(self, requests: list[SyncRequest]) -> list[SyncReply]:
        return await asyncio.gather(*map(self.counter.sync, requests))

    def close(self) -> None:
        self.loop.run_until_complete(self.counter.close())
        self.loop.close()


@pytest.fixture(params=[RedisCounter, OfALoop], ids=["threads", "loop"])
def asked(request: pytest.FixtureRequest, server: Server) -> Iterator[Asked]:
    asked: Asked = request.param(server.local.url(), TIMEOUT_S)
    yield asked
    asked.close()


@pytest.fixture
def of_a_loop(server: Server) -> Iterator[OfALoop]:
    of_a_loop = OfALoop(server.local.url(), TIMEOUT_S)
    yield of_a_loop
    of_a_loop.close()


@pytest.fixture
def today(server: Server) -> str:
    """An open day; the connection that opened it is gone."""
    counter = RedisCounter(server.local.url(), TIMEOUT_S)
    today = open_day(counter)
    counter.close()
    wait_for(lambda: server.connections == 0)
    return today


def open_day(counter: RedisCounter) -> str:
    today = day_of(counter.now_ms())
    counter.publish([DaySnapshot("agent", today, 1, ACTIVE, 100, 0)], TERMS, first_until_ms=counter.now_ms() + 10_000)
    return today


def has_left(server: Server, asked: Asked) -> bool:
    """Whether it has no connection any more; a loop ends its own when it has its next turn."""
    if isinstance(asked, OfALoop):
        asked.loop.run_until_complete(asyncio.sleep(0))
    return server.connections == 0


def question(today: str, agent: str = "agent") -> SyncRequest:
    return SyncRequest(agent, today, "a" * 32, 0, 0, 1, 1)


def take(asked: Asked, today: str) -> Answer:
    (reply,) = asked.sync([question(today)])
    return reply.answer


def test_one_thread_or_loop_needs_one_connection_however_often_it_asks(
    server: Server, asked: Asked, today: str
) -> None:
    for _ in range(5):
        asked.sync([question(today)] * 5)
    assert server.connections == 1


def test_closed_counter_connects_anew(server: Server, counter: RedisCounter) -> None:
    before_ms = counter.now_ms()
    counter.close()
    wait_for(lambda: server.connections == 0)
    assert counter.now_ms() >= before_ms


def test_the_scripts_are_there_before_the_first_question(server: Server, asked: Asked) -> None:
    """To be told that they are not would be one exchange more, each of which may take the whole timeout."""
    asked.sync([question("2026-11-24")])
    assert "errorstat_NOSCRIPT" not in server.operator.info("errorstats")


def test_scripts_that_someone_flushed_are_loaded_again(server: Server, asked: Asked, today: str) -> None:
    take(asked, today)
    server.operator.script_flush()
    assert take(asked, today) is Answer.OK


def test_more_days_than_one_exchange_may_carry_are_answered_in_order(server: Server, counter: RedisCounter) -> None:
    today = day_of(counter.now_ms())
    snapshots = [DaySnapshot(f"agent-{number}", today, 1, ACTIVE, number, 0) for number in range(1_001)]

    counter.publish(snapshots, TERMS)

    found = counter.read([(snapshot.agent, today) for snapshot in snapshots])
    assert [each.cap_micros for each in found if each is not None] == list(range(1_001))
    assert server.operator.dbsize() == 1_001


def test_the_fence_and_what_was_repaired_are_told(counter: RedisCounter) -> None:
    today = day_of(counter.now_ms())
    (opened,) = counter.publish([DaySnapshot("agent", today, 1, ACTIVE, 100, 0)], TERMS)
    (repaired,) = counter.publish([DaySnapshot("agent", today, 1, ACTIVE, 100, 7, repairs=True)], TERMS)
    (level,) = counter.publish([DaySnapshot("agent", today, 1, ACTIVE, 100, 7, repairs=True)], TERMS)

    assert [(each.opened, each.fenced, each.repaired) for each in (opened, repaired, level) if each is not None] == [
        (True, True, False),
        (False, True, True),
        (False, True, False),
    ]
    (reading,) = counter.read([("agent", today)])
    assert reading is not None
    assert reading.fenced


@pytest.mark.skipif(not AVAILABLE, reason="needs libfaketime")
@pytest.mark.parametrize("ms", [0, 1, 999])
def test_server_time_has_milliseconds(tmp_path: Path, ms: int) -> None:
    now_ms = wall_ms() // DAY_MS * DAY_MS + ms
    clock = FakeClock(tmp_path / "clock")
    clock.stop_at(now_ms)
    server = LocalRedis(tmp_path, clock)
    server.ready()
    counter = RedisCounter(server.url, timeout_s=5)

    assert counter.now_ms() == now_ms
    (reply,) = counter.sync([SyncRequest("agent", day_of(now_ms), "a" * 32, 0, 0)])
    assert reply.now_ms == now_ms

    counter.close()
    server.teardown()


@pytest.mark.parametrize("options", [MANAGED])
def test_a_server_that_lets_few_commands_through_is_enough(counter: RedisCounter) -> None:
    assert take(counter, open_day(counter)) is Answer.OK
    info = counter.info()
    assert info["maxmemory_policy"] == "noeviction"
    assert len(info["run_id"]) == 40
    assert info["executable"].startswith("/")


def test_a_connection_is_tried_once(asked: Asked, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait is longer than the timeout, and a client that tries again by itself would wait that long once more."""
    server.local.stop()
    tried: list[Any] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        tried.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)

    with pytest.raises(CounterUnavailable, match="did not answer: ConnectionError: Error 111"):
        take(asked, "2026-11-24")

    assert len(tried) == 1


def test_connection_with_a_late_answer_is_dropped(server: Server, asked: Asked, today: str) -> None:
    """The late answer would be taken for that to the next question."""
    take(asked, today)
    assert server.local.process is not None
    server.local.process.send_signal(signal.SIGSTOP)

    with pytest.raises(CounterUnavailable, match="did not answer: TimeoutError"):
        asked.sync([question(today, "another")])

    server.local.process.send_signal(signal.SIGCONT)
    wait_for(lambda: has_left(server, asked))
    assert take(asked, today) is Answer.OK


def test_interrupted_exchange_leaves_no_stale_answer(server: Server, asked: Asked, today: str) -> None:
    """Ctrl-C comes where it likes: here it has sent, and has not begun to read."""
    take(asked, today)

    def interrupt(frame: Any, event: str, _: object) -> None:
        if frame.f_code.co_name == "read_response":
            sys.settrace(before)
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    with pytest.raises(KeyboardInterrupt):
        asked.sync([question(today, "another")])
    sys.settrace(before)

    wait_for(lambda: has_left(server, asked))
    assert take(asked, today) is Answer.OK


def test_a_server_that_has_become_a_replica_is_said_to_be_one_and_left(
    server: Server, asked: Asked, today: str
) -> None:
    """Its address may lead to the new master by now."""
    take(asked, today)
    server.operator.replicaof("127.0.0.1", 1)

    with pytest.raises(CounterUnavailable, match="is a replica"):
        take(asked, today)

    wait_for(lambda: has_left(server, asked))
    server.operator.replicaof("NO", "ONE")
    assert take(asked, today) is Answer.OK


def test_what_the_server_refuses_to_do_is_no_answer(server: Server, asked: Asked, today: str) -> None:
    take(asked, today)
    server.operator.config_set("maxmemory", 1)

    with pytest.raises(CounterUnavailable, match="OutOfMemoryError"):
        take(asked, today)

    server.operator.config_set("maxmemory", 0)
    assert take(asked, today) is Answer.OK
    assert server.connections == 1, "the connection is as good as before"


def test_a_forked_child_has_connections_of_its_own(server: Server, counter: RedisCounter) -> None:
    today = open_day(counter)
    if (child := os.fork()) == 0:
        signal.alarm(10)  # It ends, come what may.
        try:
            counter.forget()
            os._exit(take(counter, today) is not Answer.OK)
        finally:
            os._exit(2)

    assert os.waitpid(child, 0)[1] == 0
    assert take(counter, today) is Answer.OK, "the parent's are still its own"
    assert server.connections == 1


def test_many_tasks_get_their_own_answers(server: Server, of_a_loop: OfALoop, today: str) -> None:
    agents = [f"agent-{number}" for number in range(MAX_PER_ROUND_TRIP)]
    agents.insert(250, "agent")
    answers = of_a_loop.sync([question(today, agent) for agent in agents])
    assert [number for number, each in enumerate(answers) if each.answer is Answer.OK] == [250]
    assert {each.answer for each in answers} == {Answer.OK, Answer.NOT_OPEN}
    assert server.connections == 1


def test_none_of_them_waits_for_ever_whatever_goes_wrong(
    of_a_loop: OfALoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("nobody thought of it")

    monkeypatch.setattr(_Line, "_round_trip", fail)

    async def ask_all() -> list[Any]:
        asking = [of_a_loop.counter.sync(question("2026-11-24")) for _ in range(MAX_PER_ROUND_TRIP + 1)]
        return await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 10)

    assert {type(each) for each in of_a_loop.loop.run_until_complete(ask_all())} == {CounterUnavailable}
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "the counter's answer cannot be read",
        "the counter's answer cannot be read",
    ]


def test_closing_a_loops_counter_answers_the_waiting(server: Server, of_a_loop: OfALoop, today: str) -> None:
    async def main() -> list[SyncReply]:
        asking = [asyncio.create_task(of_a_loop.counter.sync(question(today))) for _ in range(MAX_PER_ROUND_TRIP + 1)]
        await asyncio.sleep(0)
        await of_a_loop.counter.close()
        return await asyncio.wait_for(asyncio.gather(*asking), 10)

    assert len(of_a_loop.loop.run_until_complete(main())) == MAX_PER_ROUND_TRIP + 1
    wait_for(lambda: server.connections == 0)


def test_stopped_loop_blocks_no_other(server: Server, today: str) -> None:
    counter = AsyncRedisCounter(server.local.url(), TIMEOUT_S)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    asking = first.create_task(counter.sync(question(today)))
    first.run_until_complete(asyncio.sleep(0))

    for loop, asked in [(second, counter.sync(question(today))), (first, asking)]:
        reply = loop.run_until_complete(asyncio.wait_for(asked, 10))
        assert reply.answer is Answer.OK
    assert server.connections == 2, "each has its own"

    for loop in (first, second):
        loop.run_until_complete(counter.close())
        loop.close()


def test_what_is_of_a_loop_that_ended_is_let_go_of(server: Server) -> None:
    counter = AsyncRedisCounter(server.local.url(), TIMEOUT_S)

    async def ask() -> None:
        await counter.sync(question("2026-11-24"))
        assert len(counter._lines._all) == 1
        await counter.close()

    for _ in range(3):
        asyncio.run(ask())
