"""RabbitMQ answers, with an error, or stops reading: the worker waits, says so once, and goes on by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import amqp
import pytest

from daycap.protocol.wire import FINALIZE_QUEUE
from demo.local_server import free_port
from tests.amqp.spine import AmqpSpine
from tests.faults.load import spend
from tests.probed import Probed
from tests.rabbitmq import RabbitMq
from tests.spine import wait_for

Trouble = Callable[[RabbitMq], AbstractContextManager[None]]


@contextmanager
def other_password(rabbit: RabbitMq) -> Iterator[None]:
    rabbit.control("change_password", "guest", "changed")
    rabbit.control("close_all_connections", "new password")
    yield
    rabbit.control("change_password", "guest", "guest")


@contextmanager
def no_virtual_host(rabbit: RabbitMq) -> Iterator[None]:
    rabbit.control("delete_vhost", "/")
    yield
    rabbit.control("add_vhost", "/")
    rabbit.control("set_permissions", "guest", ".*", ".*", ".*")


@contextmanager
def no_permission(rabbit: RabbitMq) -> Iterator[None]:
    rabbit.control("set_permissions", "guest", "^$", "^$", "^$")
    rabbit.control("close_all_connections", "new rights")
    yield
    rabbit.control("set_permissions", "guest", ".*", ".*", ".*")


@contextmanager
def connections_closed(rabbit: RabbitMq) -> Iterator[None]:
    for _ in range(2):
        rabbit.control("close_all_connections", "maintenance")
    yield


@contextmanager
def channel_error(rabbit: RabbitMq) -> Iterator[None]:
    """The queue is deleted while a worker listens to it."""
    with amqp.Connection(f"127.0.0.1:{rabbit.port}") as connection:
        connection.channel().queue_delete(FINALIZE_QUEUE)
    yield


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "password": (other_password, "ACCESS_REFUSED"),
    "virtual host": (no_virtual_host, "NOT_ALLOWED|INTERNAL_ERROR|CONNECTION_FORCED"),
    "permission": (no_permission, "ACCESS_REFUSED"),
    "connections": (connections_closed, "CONNECTION_FORCED|ConnectionForced"),
    "queue": (channel_error, "ConsumerCancelled"),
}


@pytest.fixture
def own_settings() -> dict[str, str]:
    return {"DAYCAP_METRICS_PORT": str(free_port())}


@pytest.mark.parametrize("what", TROUBLES)
def test_worker_waits_until_it_is_over(spine: AmqpSpine, what: str) -> None:
    trouble, words = TROUBLES[what]
    worker = spine.start_worker()
    spine.add("agent-1")
    said, probed = len(worker.logs()), Probed(int(spine.environment["DAYCAP_METRICS_PORT"]))
    probed.becomes_ready()

    with trouble(spine.rabbit):
        wait_for(lambda: re.search(f"(is failing|Cannot connect).*({words})", worker.logs()[said:]))
        probed.becomes_unready("broker: ")
        probed.waits_for(2)  # Tries enough to be talkative about.
        assert worker.status == "running"
    wait_for(lambda: "the broker recovered" in worker.logs()[said:])
    probed.becomes_ready()

    wallet = spine.wallet()
    spend(wallet, "agent-1", 5)
    assert wallet.flush(20) == ()
    assert spine.settled("agent-1") == 5
    lines = worker.logs()[said:].splitlines()
    assert len([line for line in lines if "ERROR" in line or "CRITICAL" in line]) <= 5, lines


def test_worker_that_starts_waits(spine: AmqpSpine) -> None:
    spine.rabbit.control("change_password", "guest", "changed")
    try:
        worker = spine.make_worker()
        wait_for(lambda: "ACCESS_REFUSED" in worker.logs())
        assert worker.status == "running"
    finally:
        spine.rabbit.control("change_password", "guest", "guest")
    worker.ready()


def test_alarm_stops_senders_not_the_worker(spine: AmqpSpine) -> None:
    """Short of memory, RabbitMQ reads no more from connections that send."""
    worker = spine.start_worker()
    spine.add("agent-1")
    wallet = spine.wallet()
    spend(wallet, "agent-1", 5)
    assert wallet.flush(20) == ()
    hold = wallet.reserve("agent-1", 1_000)

    spine.rabbit.control("set_vm_memory_high_watermark", "0.00001")
    try:
        hold.finalize(700)
        wait_for(lambda: wallet.stats().send_failures)
        assert worker.status == "running"
    finally:
        spine.rabbit.control("set_vm_memory_high_watermark", "0.4")

    assert wallet.flush(40) == ()
    assert spine.settled("agent-1") == 6
