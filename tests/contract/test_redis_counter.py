"""The counter's way to a real server: its connections, and what becomes of an answer that is late, lost or an error."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from daycap import CounterUnavailable
from daycap.clock import DAY_MS, day_of, wall_ms
from daycap.counter import ACTIVE, Answer, DaySnapshot, LeaseTerms, SyncRequest
from daycap.redis_counter import RedisCounter
from tests.fake_clock import AVAILABLE, FakeClock
from tests.processes import LocalRedis
from tests.spine import wait_for
from worker.local_server import LocalServer

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


def open_day(counter: RedisCounter) -> str:
    today = day_of(counter.now_ms())
    counter.publish([DaySnapshot("agent", today, 1, ACTIVE, 100, 0)], TERMS, first_until_ms=counter.now_ms() + 10_000)
    return today


def take(counter: RedisCounter, today: str) -> Answer:
    (reply,) = counter.sync([SyncRequest("agent", today, "a" * 32, 0, 0, 1, 1)])
    return reply.answer


def test_one_thread_needs_one_connection_however_often_it_asks(server: Server, counter: RedisCounter) -> None:
    for _ in range(5):
        counter.now_ms()
    assert server.connections == 1


def test_closing_ends_the_connections_and_the_next_question_connects_anew(
    server: Server, counter: RedisCounter
) -> None:
    before_ms = counter.now_ms()
    counter.close()
    wait_for(lambda: server.connections == 0)
    assert counter.now_ms() >= before_ms


def test_the_scripts_are_there_before_the_first_question(server: Server, counter: RedisCounter) -> None:
    """To be told that they are not would be one exchange more, each of which may take the whole timeout."""
    counter.read([("agent", "2026-11-24")])
    assert "errorstat_NOSCRIPT" not in server.operator.info("errorstats")


def test_scripts_that_someone_flushed_are_loaded_again(server: Server, counter: RedisCounter) -> None:
    today = open_day(counter)
    server.operator.script_flush()
    assert take(counter, today) is Answer.OK


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
    (repaired,) = counter.publish([DaySnapshot("agent", today, 1, ACTIVE, 100, 7)], TERMS)
    (level,) = counter.publish([DaySnapshot("agent", today, 1, ACTIVE, 100, 7)], TERMS)

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
def test_the_servers_time_is_told_to_the_millisecond_as_its_scripts_see_it(tmp_path: Path, ms: int) -> None:
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


def test_a_connection_is_tried_once(counter: RedisCounter, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait is longer than the timeout, and a client that tries again by itself would wait that long once more."""
    server.local.stop()
    tried: list[Any] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        tried.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)

    with pytest.raises(CounterUnavailable, match="did not answer: ConnectionError: Error 111"):
        counter.now_ms()

    assert len(tried) == 1


def test_a_connection_whose_answer_is_late_is_never_used_again(server: Server, counter: RedisCounter) -> None:
    """The late answer would be taken for that to the next question."""
    counter.now_ms()
    assert server.local.process is not None
    server.local.process.send_signal(signal.SIGSTOP)

    with pytest.raises(CounterUnavailable, match="did not answer: TimeoutError"):
        counter.now_ms()

    server.local.process.send_signal(signal.SIGCONT)
    wait_for(lambda: server.connections == 0)
    assert counter.info()["run_id"] == server.operator.info("server")["run_id"]


def test_an_interrupt_between_question_and_answer_leaves_no_answer_for_the_next_question(
    server: Server, counter: RedisCounter
) -> None:
    """Ctrl-C comes where it likes: here it has sent, and has not begun to read."""
    counter.now_ms()

    def interrupt(frame: Any, event: str, _: object) -> None:
        if frame.f_code.co_name == "read_response":
            sys.settrace(before)
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    with pytest.raises(KeyboardInterrupt):
        counter.now_ms()
    sys.settrace(before)

    wait_for(lambda: server.connections == 0)
    assert counter.info()["run_id"] == server.operator.info("server")["run_id"]


def test_a_server_that_has_become_a_replica_is_said_to_be_one_and_left(server: Server, counter: RedisCounter) -> None:
    """Its address may lead to the new master by now."""
    today = open_day(counter)
    server.operator.replicaof("127.0.0.1", 1)

    with pytest.raises(CounterUnavailable, match="is a replica"):
        take(counter, today)

    wait_for(lambda: server.connections == 0)
    server.operator.replicaof("NO", "ONE")
    assert take(counter, today) is Answer.OK


def test_what_the_server_refuses_to_do_is_no_answer(server: Server, counter: RedisCounter) -> None:
    today = open_day(counter)
    server.operator.config_set("maxmemory", 1)

    with pytest.raises(CounterUnavailable, match="OutOfMemoryError"):
        take(counter, today)

    server.operator.config_set("maxmemory", 0)
    assert take(counter, today) is Answer.OK
    assert server.connections == 1, "the connection is as good as before"


def test_a_forked_child_has_connections_of_its_own(server: Server, counter: RedisCounter) -> None:
    """Also where, at the moment of the fork, another thread of the parent is at its connections."""
    today = open_day(counter)
    is_there, leave = threading.Event(), threading.Event()

    def be_there() -> None:
        with counter._pool._lock:
            is_there.set()
            leave.wait()

    thread = threading.Thread(target=be_there)
    thread.start()
    is_there.wait()
    if (child := os.fork()) == 0:
        signal.alarm(10)  # It ends, come what may.
        try:
            counter.forget()
            os._exit(take(counter, today) is not Answer.OK)
        finally:
            os._exit(2)
    leave.set()
    thread.join()

    assert os.waitpid(child, 0)[1] == 0
    assert take(counter, today) is Answer.OK, "the parent's are still its own"
    assert server.connections == 1
