"""A broker that will not have a runner: nothing is held for events that cannot be sent, and it is said what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from daycap import BudgetUnavailable, Settings
from daycap.clock import day_of
from daycap.counters.redis import RedisCounter
from daycap.protocol.counter import ACTIVE, DaySnapshot
from daycap.protocol.wire import FINALIZE_QUEUE
from demo.local_server import LocalServer, free_port
from tests.in_loop import FACES
from tests.spine import wait_for
from tests.tls import Authority, TlsProxy

CAP = 1_000_000

on_both_faces = pytest.mark.parametrize("face", FACES.values(), ids=FACES)


@pytest.fixture
def counter(redis_url: str) -> Iterator[RedisCounter]:
    """A counter in which agent-7 has its cap of today."""
    counter = RedisCounter(redis_url, timeout_s=5)
    now_ms = counter.now_ms()
    today = DaySnapshot("agent-7", day_of(now_ms), 1, ACTIVE, CAP, 0)
    counter.publish([today], Settings().terms, first_until_ms=now_ms + 10_000)
    yield counter
    counter.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[LocalServer]:
    server = LocalServer("--databases", "2").start()
    yield server
    server.stop()


@pytest.fixture
def admin(broker: LocalServer) -> Iterator[redis.Redis]:
    """A client of the broker's; the broker lets everybody in again afterwards, and is empty."""
    with redis.Redis(port=broker.port, username="admin", password="admin") as client:
        with redis.Redis(port=broker.port) as default:
            default.acl_setuser("admin", enabled=True, passwords=["+admin"], commands=["+@all"], keys=["*"])
        yield client
        let_in(client)
        client.flushall()


def let_in(admin: redis.Redis) -> None:
    admin.execute_command("ACL", "SETUSER", "default", "reset", "on", "nopass", "~*", "&*", "+@all")


def leased(counter: RedisCounter) -> int:
    (reading,) = counter.read([("agent-7", day_of(counter.now_ms()))])
    assert reading is not None
    return reading.leased_micros


@contextmanager
def wallet_of(face: Any, url: str, broker: str, **settings: Any) -> Iterator[Any]:
    wallet = face.from_settings(Settings(redis_url=url, broker_url=broker, redis_timeout_seconds=2, **settings))
    try:
        yield wallet
    finally:
        wallet.close(0)


# --- before any money is held -----------------------------------------------------------------------------


def refuse_nothing(_: redis.Redis) -> None: ...


def ask_for_a_password(admin: redis.Redis) -> None:
    admin.execute_command("ACL", "SETUSER", "default", "resetpass", ">right")


@pytest.mark.parametrize(
    ("url", "makes", "says"),
    [
        ("redis://{}/0", ask_for_a_password, "AuthenticationError.*check the user and password in DAYCAP_BROKER_URL"),
        ("redis://:wrong@{}/0", ask_for_a_password, "AuthenticationError.*check the user and password"),
        ("redis://nobody:x@{}/0", refuse_nothing, "AuthenticationError.*check the user and password"),
        ("redis://{}/7", refuse_nothing, "DB index is out of range.*check the database"),
    ],
)
@on_both_faces
def test_no_money_is_held_for_a_broker_that_refuses(
    face: Any, url: str, makes: Any, says: str, redis_url: str, counter: RedisCounter, broker: LocalServer, admin: Any
) -> None:
    makes(admin)
    with wallet_of(face, redis_url, url.format(f"127.0.0.1:{broker.port}")) as wallet:
        for _ in range(2):
            with pytest.raises(BudgetUnavailable, match=says) as refused:
                wallet.reserve("agent-7", 1)
        assert "wrong" not in str(refused.value)
        assert leased(counter) == 0


@on_both_faces
def test_strange_certificate_holds_no_money(
    face: Any, redis_url: str, counter: RedisCounter, broker: LocalServer, tmp_path: Path
) -> None:
    proxy = TlsProxy(broker.port, Authority(tmp_path).server("127.0.0.1")).start()
    try:
        with (
            wallet_of(face, redis_url, f"rediss://127.0.0.1:{proxy.port}/0") as wallet,
            pytest.raises(BudgetUnavailable, match=r"certificate verify failed.*check the certificate"),
        ):
            wallet.reserve("agent-7", 1)
        assert leased(counter) == 0
    finally:
        proxy.stop()


@on_both_faces
def test_a_broker_that_is_away_stops_nobody(face: Any, redis_url: str, counter: RedisCounter) -> None:
    with wallet_of(face, redis_url, f"redis://127.0.0.1:{free_port()}/0") as wallet:
        for _ in range(3):
            wallet.reserve("agent-7", 1).finalize(1)
            wait_for(lambda: wallet.stats().send_failures)
        assert wallet.stats().unsettled == 3


# --- in the middle of work --------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["password", "right", "wrong type"])
@on_both_faces
def test_refusing_broker_stops_warm_runners(
    face: Any, by: str, redis_url: str, counter: RedisCounter, broker: LocalServer, admin: Any, caplog: Any
) -> None:
    with wallet_of(face, redis_url, f"redis://127.0.0.1:{broker.port}/0", slice_seconds=60) as wallet:
        # Given a runner that works, with money of its own in memory
        for _ in range(3):
            wallet.reserve("agent-7", 1_000).finalize(1_000)
        wallet.reserve("agent-7", 100_000).release()
        wait_for(lambda: wallet.stats().waiting == 0)
        held, longer = wallet.reserve("agent-7", 1_000), wallet.reserve("agent-7", 50_000)
        sent = admin.llen(FINALIZE_QUEUE)

        # When the broker refuses it, and it finds out by the next event
        if by == "password":
            ask_for_a_password(admin)
            admin.client_kill_filter(_type="normal", skipme=True)
        elif by == "right":
            admin.execute_command("ACL", "SETUSER", "default", "-lpush")
        else:
            admin.rename(FINALIZE_QUEUE, "kept")
            admin.set(FINALIZE_QUEUE, "no list")
        held.finalize(1_000)
        wait_for(lambda: wallet._sender.refused)

        # Then not even memory gives money away, at once, and what lies free there is handed back
        with pytest.raises(BudgetUnavailable, match=r"check|grant its user the permissions"):
            wallet.reserve("agent-7", 1)
        wallet._renewer.renew()
        assert leased(counter) == 54_000, "what was spent, and what a call that is under way holds"
        longer.release()
        with pytest.raises(BudgetUnavailable, match=r"check|permissions"):
            wallet.reserve("agent-7", 1)
        assert [record.levelno for record in caplog.records if "nothing is reserved" in record.message] == [
            logging.ERROR
        ]

        # And when it is mended, what was spent is sent and money is there again
        if by == "wrong type":
            admin.rename("kept", FINALIZE_QUEUE)
        let_in(admin)
        wait_for(lambda: wallet._sender.refused is None)
        assert admin.llen(FINALIZE_QUEUE) == sent + 1
        wallet.reserve("agent-7", 1).release()
        asked = wallet._sender.failures
        assert wallet.reserve("agent-7", 1).held_micros == 1
        assert wallet._sender.failures == asked
