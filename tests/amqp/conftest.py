"""A RabbitMQ for all tests here; a worker, a counter and a ledger for each module or test. No message may be left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.local_server import LocalServer
from tests.amqp.spine import AmqpSpine
from tests.rabbitmq import RabbitMq, rabbitmq_program
from tests.tls import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def rabbit(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    program = rabbitmq_program()
    if program is None:
        pytest.skip("no rabbitmq-server on PATH")
    directory = tmp_path_factory.mktemp("rabbitmq")
    rabbit = RabbitMq(directory, program, authority.file, *authority.files(directory, "127.0.0.1"))
    rabbit.start()
    yield rabbit
    rabbit.stop()


def made_spine(rabbit: RabbitMq, directory: Path, ledger: Path, **settings: str) -> AmqpSpine:
    copy = shutil.copy(ledger, directory / "ledger.sqlite3")
    counter = LocalServer().start()
    environment = {
        "DAYCAP_REDIS_URL": counter.url(),
        "DAYCAP_BROKER_URL": rabbit.url,
        "DAYCAP_LEDGER_URL": f"sqlite:///{copy}",
        "DAYCAP_RESEND_SECONDS": "1000",
        **settings,
    }
    return AmqpSpine(rabbit, directory, environment, counter)


@pytest.fixture(scope="module")
def shared(rabbit: RabbitMq, empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AmqpSpine]:
    """One for a module's tests that break nothing."""
    made = made_spine(rabbit, tmp_path_factory.mktemp("amqp"), empty_ledger)
    made.start_worker()
    yield made
    made.close()


@pytest.fixture
def spine(rabbit: RabbitMq, empty_ledger: Path, tmp_path: Path, own_settings: dict[str, str]) -> Iterator[AmqpSpine]:
    """One of the test's own, to be broken."""
    made = made_spine(rabbit, tmp_path, empty_ledger, **own_settings)
    yield made
    made.close()


@pytest.fixture
def own_settings() -> dict[str, str]:
    """Overridden by modules."""
    return {}


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test, no message is ready and none is unacknowledged."""
    running = [request.getfixturevalue(name) for name in ("shared", "spine") if name in request.fixturenames]
    yield
    for each in running:
        each.all_acknowledged()
