"""The broker of the campaign, Redis or RabbitMQ: what its faults and its end of a round ask of it."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import amqp
import redis

from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK, OPEN_QUEUE
from demo.local_server import LocalServer
from tests.rabbitmq import RabbitMq, rabbitmq_program

QUEUES = (FINALIZE_QUEUE, OPEN_QUEUE, CONTROL_QUEUE)


class Broker(Protocol):
    """A broker that runs. What it cannot be asked, because it is away, raises an error of its client's."""

    port: int
    errors: tuple[type[Exception], ...]

    def url(self, port: int) -> str:
        """Its URL behind a proxy at `port`."""

    def start(self) -> Any: ...

    def kill(self) -> None: ...

    def close(self) -> None:
        """End it for good."""

    def stand_still(self) -> None: ...

    def go_on(self) -> None: ...

    def flush(self) -> None:
        """Lose every message that waits."""

    def lose(self, count: int) -> None:
        """Lose some."""

    def double_and_shuffle(self, rng: random.Random) -> None: ...

    def nothing_waits(self) -> bool:
        """No event is in a queue or with a worker."""


class RedisBroker:
    """A Redis; a restart loses all that it had."""

    errors = (redis.RedisError,)

    def __init__(self, directory: Path) -> None:
        self._server = LocalServer(directory=directory)
        self.port = self._server.port

    def url(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}/0"

    def start(self) -> RedisBroker:
        self._server.start()
        return self

    def kill(self) -> None:
        self._server.kill()

    close = kill

    def stand_still(self) -> None:
        self._server.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._server.process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        with self._client() as client:
            client.flushall()

    def lose(self, count: int) -> None:
        with self._client() as client:
            for _ in range(count):
                client.rpop(FINALIZE_QUEUE)

    def double_and_shuffle(self, rng: random.Random) -> None:
        with self._client() as client:
            waiting = client.lrange(FINALIZE_QUEUE, 0, -1)
            if waiting:
                again = rng.sample(waiting, len(waiting) // 2)
                client.rpush(FINALIZE_QUEUE, *rng.sample(waiting + again, len(waiting + again)))

    def nothing_waits(self) -> bool:
        with self._client() as client:
            waiting = client.llen(FINALIZE_QUEUE)
            return not waiting and FINALIZE_TASK.encode() not in b"".join(client.hvals("unacked"))

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url(self.port), socket_timeout=1)


class RabbitBroker:
    """A RabbitMQ; its queues are durable, so that a restart loses nothing."""

    errors = (amqp.AMQPError, OSError)

    def __init__(self, directory: Path) -> None:
        program = rabbitmq_program()
        if program is None:
            raise SystemExit("no rabbitmq-server on PATH")
        directory.mkdir()
        self._rabbit = RabbitMq(directory, program)
        self.port = self._rabbit.port

    def url(self, port: int) -> str:
        return f"amqp://guest:guest@127.0.0.1:{port}//"

    def start(self) -> RabbitBroker:
        self._rabbit.start()
        return self

    def kill(self) -> None:
        self._rabbit.kill()

    def close(self) -> None:
        self._rabbit.stop()

    def stand_still(self) -> None:
        self._rabbit.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._rabbit.signal(signal.SIGCONT)

    def flush(self) -> None:
        with self._channel() as channel:
            for queue in QUEUES:
                channel.queue_purge(queue)

    def lose(self, count: int) -> None:
        with self._channel() as channel:
            for _ in range(count):
                channel.basic_get(FINALIZE_QUEUE, no_ack=True)

    def double_and_shuffle(self, rng: random.Random) -> None:
        with self._channel() as channel:
            waiting = list(iter(lambda: channel.basic_get(FINALIZE_QUEUE, no_ack=True), None))
            again = rng.sample(waiting, len(waiting) // 2)
            for message in rng.sample(waiting + again, len(waiting + again)):
                channel.basic_publish(amqp.Message(message.body, **message.properties), routing_key=FINALIZE_QUEUE)

    def nothing_waits(self) -> bool:
        return not any(any(self._rabbit.messages().get(queue, ())) for queue in QUEUES)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        with amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=1, read_timeout=3) as connection:
            yield connection.channel()


BROKERS: dict[str, Callable[[Path], Any]] = {"redis": RedisBroker, "rabbitmq": RabbitBroker}
