"""RabbitMQ as the broker, for real, over amqps://."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from collections.abc import Iterator
from typing import Any

import amqp
import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from daycap import BudgetUnavailable, Settings, Wallet
from daycap.clock import day_of, wall_ms
from daycap.counters.redis import RedisCounter, counter_key
from daycap.delivery.celery import CeleryTransport
from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK, OPEN_QUEUE
from tests.amqp.spine import AmqpSpine
from tests.events import event
from tests.in_loop import FACES
from tests.processes import LocalWorker, run_daycap
from tests.rabbitmq import RabbitMq
from tests.spine import wait_for
from tests.tls import Authority, TlsProxy


@pytest.fixture(scope="module")
def environment(rabbit: RabbitMq, authority: Authority, shared: AmqpSpine) -> dict[str, str]:
    """What runners and the command line are told: the way with TLS."""
    url = f"amqps://guest:guest@127.0.0.1:{rabbit.tls_port}//?ssl_ca_certs={authority.file}"
    return {**shared.environment, "DAYCAP_BROKER_URL": url}


@pytest.fixture(scope="module")
def worker(shared: AmqpSpine, environment: dict[str, str]) -> LocalWorker:
    """It comes over TLS too."""
    shared.worker.teardown()
    shared.environment |= environment
    shared.workers.clear()
    return shared.start_worker()


@pytest.fixture
def wallet(worker: LocalWorker, environment: dict[str, str]) -> Iterator[Wallet]:
    with Wallet.from_settings(Settings.from_env(environment)) as wallet:
        yield wallet


def rows(environment: dict[str, str], statement: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(environment["DAYCAP_LEDGER_URL"].removeprefix("sqlite:///"))
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def daycap(environment: dict[str, str], *words: str) -> Any:
    return json.loads(run_daycap(*words, "--json", environment=environment))


def test_money_is_spent_and_looked_at(wallet: Wallet, environment: dict[str, str]) -> None:
    daycap(environment, "agent", "add", "agent-1", "--cap", "5")

    wallet.reserve("agent-1", 50_000).finalize(31_200)

    assert wallet.flush(20) == ()
    assert wallet.spent("agent-1") == (31_200, "redis")
    assert daycap(environment, "audit")["differences"] == []
    assert {finding["state"] for finding in daycap(environment, "doctor")} == {"ok"}


def test_a_day_that_the_counter_lost_is_opened_when_the_runner_asks(
    wallet: Wallet, environment: dict[str, str]
) -> None:
    daycap(environment, "agent", "add", "agent-2", "--cap", "5")
    counter = RedisCounter(environment["DAYCAP_REDIS_URL"], 2)
    today = day_of(counter.now_ms())
    with redis.Redis.from_url(environment["DAYCAP_REDIS_URL"]) as client:
        client.delete(counter_key("agent-2", today))
    transport = CeleryTransport(environment["DAYCAP_BROKER_URL"])

    transport.open_day("agent-2", today)

    wait_for(lambda: counter.read([("agent-2", today)])[0])
    transport.close()
    counter.close()


def test_housekeeping_runs_and_plain_amqp_will_do(rabbit: RabbitMq, worker: LocalWorker) -> None:
    app = Celery(broker=f"amqp://guest:guest@127.0.0.1:{rabbit.port}//", set_as_current=False)
    app.send_task("daycap.expire", queue=CONTROL_QUEUE, ignore_result=True)
    wait_for(lambda: re.search(r"daycap\.expire\[.*\] succeeded in .*'days'", worker.logs()))
    app.close()


ODD: dict[str, tuple[bytes, dict[str, Any]]] = {
    "no JSON": (b"{", {}),
    "no UTF-8": (b"\xff\xfe", {}),
    "no headers": (b"[[], {}, {}]", {"application_headers": {}}),
    "no content type": (b"[[], {}, {}]", {"content_type": None}),
    "a pickle": (b"\x80\x04K\x01.", {"content_type": "application/x-python-serialize", "content_encoding": "binary"}),
    "an encoding that nobody knows": (b"[[], {}, {}]", {"content_encoding": "klingon"}),
    "an id that is a number": (b"[[], {}, {}]", {"application_headers": {"task": FINALIZE_TASK, "id": 5}}),
    "a task that nobody knows": (b"[[1], {}, {}]", {"application_headers": {"task": "os.system", "id": "one"}}),
    "a body that is a string": (b'"text"', {}),
    "a type of kombu's": (b'[[{"__type__": "x", "__value__": 1}], {}, {}]', {}),
    "deeply nested": (b"[" * 100_000, {}),
    "administration": (b"[[2], {}, {}]", {"application_headers": {"task": "daycap.set_cap", "id": "one"}}),
}


def test_whatever_arrives_becomes_a_dead_letter_and_the_worker_lives(
    rabbit: RabbitMq, worker: LocalWorker, environment: dict[str, str]
) -> None:
    daycap(environment, "agent", "add", "agent-3", "--cap", "5")
    good = json.dumps([[], {"events": [event("agent-3", day_of(wall_ms()), lease="c" * 32)]}, {}]).encode()
    headers = {"task": FINALIZE_TASK, "id": "one", "lang": "py", "eta": 5, "timelimit": "soon", "expires": "2000-01-01"}
    usual = {"content_type": "application/json", "content_encoding": "utf-8", "application_headers": headers}

    with amqp.Connection(f"127.0.0.1:{rabbit.port}") as connection, connection.channel() as channel:
        for queue in (OPEN_QUEUE, FINALIZE_QUEUE):
            for body, changes in (*ODD.values(), (good, {})):
                channel.basic_publish(amqp.Message(body, **{**usual, **changes}), routing_key=queue)

    wait_for(lambda: rows(environment, "SELECT * FROM settlements WHERE agent_account_id = 'agent-3'"), 30)
    # A good message to finalize in the queue of open_day is as odd as the others there.
    wait_for(lambda: rows(environment, "SELECT sum(times) FROM dead_letters") == [(2 * len(ODD) + 1,)])
    assert {kind for (kind,) in rows(environment, "SELECT kind FROM dead_letters")} == {"malformed"}
    assert worker.status == "running"
    assert daycap(environment, "agent", "show", "agent-3")[0]["daily_cap_micros"] == 5_000_000


def test_what_a_killed_worker_had_taken_is_settled_once_by_the_next(
    wallet: Wallet, worker: LocalWorker, environment: dict[str, str]
) -> None:
    daycap(environment, "agent", "add", "agent-4", "--cap", "5")
    holds = [wallet.reserve("agent-4", 1_000) for _ in range(20)]

    # Given a worker that is stopped, and killed with messages that the broker has handed to it
    worker.kill("SIGSTOP")
    for hold in holds:
        hold.finalize(700)
    wait_for(lambda: not wallet.stats().waiting)
    worker.kill("SIGKILL")
    worker.start()
    worker.ready()

    assert wallet.flush(30) == ()
    assert rows(environment, "SELECT count(*) FROM settlements WHERE agent_account_id = 'agent-4'") == [(20,)]
    assert wallet.stats().resent == 0


def test_a_send_ends_when_the_broker_has_the_event_and_not_before(
    rabbit: RabbitMq, wallet: Wallet, environment: dict[str, str]
) -> None:
    daycap(environment, "agent", "add", "agent-5", "--cap", "5")
    wallet.reserve("agent-5", 1_000).finalize(700)
    assert wallet.flush(20) == ()
    hold = wallet.reserve("agent-5", 1_000)

    # Given a broker that hangs: the socket of the connection takes what is written, and nobody reads it
    rabbit.signal(signal.SIGSTOP)
    try:
        hold.finalize(700)
        wait_for(lambda: wallet.stats().send_failures)
        assert wallet.stats().waiting == 1
    finally:
        rabbit.signal(signal.SIGCONT)

    assert wallet.flush(60) == ()
    assert (
        rows(environment, "SELECT charged_micros FROM settlements WHERE agent_account_id = 'agent-5'") == [(700,)] * 2
    )


def test_a_certificate_that_cannot_be_believed_is_refused(rabbit: RabbitMq, authority: Authority) -> None:
    elsewhere = TlsProxy(rabbit.port, authority.server("elsewhere.example")).start()
    server = f"amqps://guest:guest@127.0.0.1:{rabbit.tls_port}//"
    other = f"amqps://guest:guest@127.0.0.1:{elsewhere.port}//?ssl_ca_certs={authority.file}"

    for url in (server, other):
        transport = CeleryTransport(url)
        with pytest.raises(OperationalError, match="certificate verify failed"):
            transport.open_day("agent-7", "2026-01-01")
        transport.close()
    for url in (f"{server}?ssl_cert_reqs=none", f"{other}&ssl_check_hostname=false"):
        transport = CeleryTransport(url)
        assert transport.backlog() == 0
        transport.close()
    elsewhere.stop()


def test_no_password_is_shown_when_it_is_wrong(rabbit: RabbitMq) -> None:
    wrong = {"DAYCAP_BROKER_URL": f"amqp://guest:hunter2@127.0.0.1:{rabbit.port}//"}
    said = run_daycap("agent", "list", environment=wrong, status=1) + run_daycap(
        "doctor", "--json", environment=wrong, status=1
    )
    assert "ACCESS_REFUSED" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("who", "says"),
    [
        ("amqp://guest:wrong@{}//", "ACCESS_REFUSED.*check the user and password in DAYCAP_BROKER_URL, and"),
        ("amqp://nobody:guest@{}//", "ACCESS_REFUSED.*check the user and password in DAYCAP_BROKER_URL, and"),
        ("amqp://guest:guest@{}/nonesuch", "NOT_ALLOWED.*check the virtual host"),
        ("redis://{}/0", "broker of this kind"),
    ],
)
@pytest.mark.parametrize("face", FACES.values(), ids=FACES)
def test_no_money_is_held_for_a_broker_that_refuses(
    face: Any, who: str, says: str, rabbit: RabbitMq, redis_url: str
) -> None:
    settings = Settings(redis_url=redis_url, broker_url=who.format(f"127.0.0.1:{rabbit.port}"), redis_timeout_seconds=2)
    wallet = face.from_settings(settings)
    with pytest.raises(BudgetUnavailable, match=says):
        wallet.reserve("agent-7", 1)
    assert wallet.stats().live_holds == 0
    wallet.close(0)
