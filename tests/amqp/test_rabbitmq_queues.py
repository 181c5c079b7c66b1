"""Queues and users that an operator made, and queues that RabbitMQ 4 would take."""

from __future__ import annotations

from typing import Any

import amqp
import pytest
from celery import Celery

from daycap.delivery.celery import CeleryTransport
from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE, OPEN_QUEUE
from tests.amqp.spine import AmqpSpine
from tests.faults.ledger import LockedLedger
from tests.faults.load import spend
from tests.in_loop import FACES
from tests.spine import wait_for
from worker.queue import note_unsettled, settled_before_ms

OURS = (FINALIZE_QUEUE, OPEN_QUEUE, CONTROL_QUEUE)


@pytest.fixture(autouse=True)
def no_queues_of_ours(spine: AmqpSpine) -> None:
    with amqp.Connection(f"127.0.0.1:{spine.rabbit.port}") as connection:
        for name in OURS:
            connection.channel().queue_delete(name)
            connection.channel().exchange_delete(name)
        connection.channel().queue_delete("daycap.unsettled")


def made(spine: AmqpSpine, **arguments: Any) -> None:
    with amqp.Connection(f"127.0.0.1:{spine.rabbit.port}") as connection:
        for name in OURS:
            connection.channel().queue_declare(name, durable=True, auto_delete=False, arguments=arguments)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("first", ["worker", "runner"])
def test_quorum_queues_are_taken_as_they_are(spine: AmqpSpine, face: str, first: str) -> None:
    made(spine, **{"x-queue-type": "quorum"})
    wallet = spine.wallet(FACES[face].from_settings)
    if first == "worker":
        spine.start_worker()
        spine.add("agent-1")
    else:
        transport = CeleryTransport(spine.rabbit.url)
        transport.open_day("agent-1", "2026-01-01")
        transport.close()
        spine.start_worker()
        spine.add("agent-1")

    spend(wallet, "agent-1", 300)

    assert wallet.flush(30) == ()
    assert spine.settled("agent-1") == 300
    assert not [name for name in spine.rabbit.messages() if name.startswith("celery_delayed")]


def test_quorum_queue_keeps_what_is_refused(spine: AmqpSpine) -> None:
    """It drops what was given back more often than its limit."""
    made(spine, **{"x-queue-type": "quorum", "x-delivery-limit": 1})
    spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet()

    with LockedLedger(str(spine.ledger)):
        spend(wallet, "agent-1", 3)
        wait_for(lambda: spine.said("not settled") >= 2, 40)

    assert wallet.flush(30) == ()
    assert wallet.stats().resent == 0
    assert spine.settled("agent-1") == 3


def test_limits_of_an_operator_stay(spine: AmqpSpine) -> None:
    made(spine, **{"x-max-length": 10_000, "x-overflow": "reject-publish"})
    spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet()

    spend(wallet, "agent-1", 20)

    assert wallet.flush(30) == ()


def test_a_runner_may_only_write(spine: AmqpSpine) -> None:
    spine.start_worker()
    spine.add("agent-1")
    spine.rabbit.control("add_user", "runner", "secret")
    writes = r"^(daycap\.(finalize|open)|celeryev)$"
    spine.rabbit.control("set_permissions", "runner", "^$", writes, "^$")
    wallet = spine.wallet(DAYCAP_BROKER_URL=spine.rabbit.url.replace("guest:guest", "runner:secret"))

    spend(wallet, "agent-1", 5)

    assert wallet.flush(30) == ()
    assert wallet.stats().send_failures == 0
    spine.rabbit.control("delete_user", "runner")


def test_a_queue_that_goes_is_made_again(spine: AmqpSpine) -> None:
    spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet()
    spend(wallet, "agent-1", 5)
    assert wallet.flush(30) == ()

    with amqp.Connection(f"127.0.0.1:{spine.rabbit.port}") as connection:
        connection.channel().queue_delete(FINALIZE_QUEUE)
    spend(wallet, "agent-1", 5)

    assert wallet.flush(30) == ()
    assert spine.settled("agent-1") == 10


def test_no_queue_is_one_that_rabbitmq_4_refuses(spine: AmqpSpine) -> None:
    """Neither durable nor exclusive."""
    spine.start_worker()
    spine.add("agent-1")
    assert spine.daycap("agent", "list")

    said = spine.rabbit.evaluate(
        'lists:flatten([io_lib:format("~s ", [element(4, N)]) || [{name, N}, {durable, false}, {exclusive, false}] <- '
        'rabbit_amqqueue:info_all(<<"/">>, [name, durable, exclusive])])'
    )
    assert said.strip('"[] \n') == ""


def test_nothing_is_given_up_while_events_are_refused(spine: AmqpSpine) -> None:
    """RabbitMQ shows no other worker what one has taken."""
    app = Celery(broker=spine.rabbit.url, set_as_current=False)
    app.conf.broker_heartbeat = 1
    worker = spine.start_worker()
    spine.add("agent-1")
    assert settled_before_ms(app, 1_000_000) == 998_000

    with LockedLedger(str(spine.ledger)):
        spend(spine.wallet(), "agent-1", 1)
        wait_for(lambda: "not settled" in worker.logs())
        assert spine.rabbit.messages()[FINALIZE_QUEUE] == (0, 1)
        assert spine.rabbit.messages()["daycap.unsettled"] == (1, 0)
    with amqp.Connection(f"127.0.0.1:{spine.rabbit.port}") as connection:
        connection.channel().queue_delete("daycap.unsettled")
    assert settled_before_ms(app, 1_000_000) == 998_000

    note_unsettled(app)
    assert settled_before_ms(app, 1_000_000) == 0
    wait_for(lambda: settled_before_ms(app, 1_000_000) == 998_000)  # When the note is as old as a message may be.
    app.close()
