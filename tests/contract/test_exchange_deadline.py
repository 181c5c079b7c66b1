"""P8: an exchange with the counter ends in the time that is set, however the answer comes; on both faces."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from redis.connection import _RESP2Parser  # type: ignore[attr-defined]

from daycap import CounterUnavailable
from daycap.clock import day_of, wall_ms
from daycap.counters.redis import MAX_PER_ROUND_TRIP, RedisCounter, exchange_s
from daycap.protocol.counter import Answer, SyncRequest
from demo.local_server import LocalServer
from tests.contract.test_redis_counter import Asked, OfALoop
from tests.faults.proxy import Proxy
from tests.spine import wait_for
from tests.tls import Authority, TlsProxy

TIMEOUT_S = 0.5
TRICKLE_S = 0.1
LATER_S = 1.0
"""How much more a busy machine may take to notice. Byte by byte an answer takes four seconds."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    server = LocalServer(directory=tmp_path_factory.mktemp("server")).start()
    yield server.port
    server.stop()


@pytest.fixture
def proxy(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    yield proxy
    proxy.close()


class WithoutHiredis(RedisCounter):
    """redis-py reads by another parser where hiredis is not installed."""

    def _make_pool(self) -> redis.ConnectionPool:
        pool = super()._make_pool()
        pool.connection_kwargs["parser_class"] = _RESP2Parser
        return pool


KINDS: dict[str, Callable[[str, float], Asked]] = {
    "threads": RedisCounter,
    "threads without hiredis": WithoutHiredis,
    "loop": OfALoop,
}


@pytest.fixture(params=KINDS)
def asked(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[Asked]:
    asked: Asked = KINDS[request.param](f"redis://127.0.0.1:{proxy.port}/0", TIMEOUT_S)
    yield asked
    asked.close()


def question(agent: str = "agent-7") -> SyncRequest:
    return SyncRequest(agent, day_of(wall_ms()), "a" * 26, 0, 0, 10, 10)


def unanswered(asked: Asked, within_s: float = TIMEOUT_S) -> None:
    """A question that gets no answer, in time."""
    begun_s = time.monotonic()
    with pytest.raises(CounterUnavailable):
        asked.sync([question()])
    assert time.monotonic() - begun_s < within_s + LATER_S


def answered(asked: Asked) -> None:
    """A busy machine may take too long at first."""
    for tries in range(10):
        try:
            assert [reply.answer for reply in asked.sync([question()])] == [Answer.NOT_OPEN]
        except CounterUnavailable:
            assert tries < 9
        else:
            return


def clients(port: int) -> set[str]:
    """The connections that the server knows, but for the one that asks."""
    with redis.Redis(port=port, decode_responses=True) as operator:
        mine = str(operator.client_id())
        return {client["id"] for client in operator.client_list()} - {mine}


def connected(proxy: Proxy) -> bool:
    """Whether this process has a connection to the proxy that its peer has not ended."""
    ours = (each for each in psutil.Process().net_connections("tcp") if each.raddr and each.raddr.port == proxy.port)
    return any(each.status == psutil.CONN_ESTABLISHED for each in ours)


def test_a_trickling_answer_ends_in_time(asked: Asked, proxy: Proxy, port: int) -> None:
    """And its connection is never used again: what is still to come of the answer is none to another question."""
    answered(asked)
    before = clients(port)
    proxy.trickle(TRICKLE_S)

    unanswered(asked)

    proxy.heal()
    answered(asked)
    assert len(before) == 1
    assert not before & clients(port)


@pytest.mark.parametrize("how", ["killed", "proxied away"])
def test_a_connection_closed_while_idle_is_replaced(asked: Asked, proxy: Proxy, port: int, how: str) -> None:
    answered(asked)
    if how == "killed":
        with redis.Redis(port=port) as operator:
            operator.client_kill_filter(_type="normal", skipme=True)
    else:
        proxy.cut()
    wait_for(lambda: not connected(proxy))  # The end has come through the proxy.

    assert [reply.answer for reply in asked.sync([question()])] == [Answer.NOT_OPEN]


@pytest.mark.parametrize("how", ["trickle", "silence"])
def test_connecting_counts(asked: Asked, proxy: Proxy, how: str) -> None:
    """INFO, which tells the run id, and the scripts: each of their answers is made of many bytes."""
    proxy.silence() if how == "silence" else proxy.trickle(TRICKLE_S)

    unanswered(asked)

    proxy.heal()
    answered(asked)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_handshakes_count(kind: type, tmp_path: Path) -> None:
    """TLS and AUTH."""
    server = LocalServer(directory=tmp_path / "server").start()
    with redis.Redis(port=server.port) as operator:
        operator.config_set("requirepass", "secret")
    authority = Authority(tmp_path)
    inner = TlsProxy(server.port, authority.server("127.0.0.1")).start()
    proxy = Proxy(inner.port)
    asked: Asked = kind(f"rediss://:secret@127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.file}", TIMEOUT_S)
    try:
        proxy.trickle(TRICKLE_S / 10)
        unanswered(asked)
        proxy.heal()
        answered(asked)
        proxy.trickle(TRICKLE_S)
        unanswered(asked)
    finally:
        proxy.close()
        inner.stop()
        asked.close()  # After its peer: asyncio closes TLS only when that has answered.
        server.stop()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_unix_socket_has_the_deadline(kind: type, port: int, tmp_path: Path) -> None:
    proxy = Proxy(port, path=tmp_path / "socket")
    asked: Asked = kind(f"unix://{tmp_path / 'socket'}", TIMEOUT_S)
    try:
        answered(asked)
        proxy.trickle(TRICKLE_S)
        unanswered(asked)
    finally:
        asked.close()
        proxy.close()


def test_every_verb_has_the_deadline(port: int, proxy: Proxy) -> None:
    counter = RedisCounter(f"redis://127.0.0.1:{proxy.port}/0", TIMEOUT_S)
    verbs: list[Callable[[], object]] = [
        counter.now_ms,
        counter.info,
        lambda: counter.read([("agent-7", "2026-11-24")]),
    ]
    for verb in verbs:
        verb()
        proxy.trickle(TRICKLE_S)
        begun_s = time.monotonic()
        with pytest.raises(CounterUnavailable):
            verb()
        assert time.monotonic() - begun_s < TIMEOUT_S + LATER_S
        proxy.heal()
    counter.close()


def test_many_commands_have_four_times_as_long() -> None:
    assert [exchange_s(0.25, many) for many in (1, 51, MAX_PER_ROUND_TRIP)] == [0.25, 0.5, 1.0]


def test_a_request_that_nobody_reads_ends_in_time(tmp_path: Path) -> None:
    """Renewals of many leases fill the buffers of a server that is stopped."""
    server = LocalServer(directory=tmp_path).start()
    assert server.process is not None
    counter = RedisCounter(server.url(), 0.1)
    try:
        counter.now_ms()
        server.process.send_signal(signal.SIGSTOP)
        begun_s = time.monotonic()
        with pytest.raises(CounterUnavailable):
            counter._round_trip([("PING", "x" * 1_000_000)] * 20)
        assert time.monotonic() - begun_s < exchange_s(0.1, 20) + LATER_S
    finally:
        server.process.send_signal(signal.SIGCONT)
        counter.close()
        server.stop()
