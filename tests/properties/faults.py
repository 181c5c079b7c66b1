"""The ways between wallets, worker and counter, each of which does to the next exchange what the test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from daycap.counters.async_redis import AsyncRedisCounter
from daycap.counters.redis import RedisCounter
from daycap.delivery.transport import Transport
from daycap.errors import CounterUnavailable
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.protocol.counter import DaySnapshot, SyncReply, SyncRequest
from daycap.protocol.wire import FinalizeEvent
from tests.properties.world import SETTINGS

if TYPE_CHECKING:
    from tests.properties.deployment import Deployment

_PATIENCE_S = 10
"""How long the sockets really wait: the machine's speed decides nothing. The guard is that of the settings."""


class FaultyCounter(RedisCounter):
    """The counter of one wallet over a network that does to the next sync what `fault` says."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment.world.server.url, _PATIENCE_S)
        self._deployment = deployment
        self.fault = ""
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens while an answer is late."""

    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        fault, self.fault = self.fault, ""
        if fault == "request late":
            self._deployment.late.append(lambda: super(FaultyCounter, self).sync(requests))
        if fault in ("request late", "request lost"):
            raise CounterUnavailable("the request was lost, or is late")
        sent_ms = self._deployment.world.ms
        replies = super().sync(requests)
        if fault == "reply lost":
            raise CounterUnavailable("the reply was lost")
        if fault == "reply late":
            self._deployment.pass_time(SETTINGS.guard_ms + 1000)
            self.meanwhile()
        else:
            self._deployment.truth.hear(sent_ms, zip(requests, replies, strict=True))
        return replies

    def read_plan(self, agent: str, day: str) -> tuple[int, str] | None:
        fault, self.fault = self.fault, ""
        if fault:
            raise CounterUnavailable("the plan was not read")
        return super().read_plan(agent, day)


class OfLoop(AsyncRedisCounter):
    """The same counter for a wallet of an event loop."""

    def __init__(self, counter: FaultyCounter) -> None:
        self._counter = counter

    async def sync(self, request: SyncRequest) -> SyncReply:
        return self._counter.sync([request])[0]


class Queue(Transport):
    """The way from every wallet to the worker: messages that the test delivers, doubles, loses and reorders."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.away = False

    def send(self, events: Sequence[FinalizeEvent]) -> None:
        if self.away:
            raise ConnectionError("the broker is away")
        self._deployment.queue.append((self._deployment.world.ms, list(events)))

    def open_day(self, agent: str, day: str) -> None:
        self._deployment.openings.append((agent, day))

    def backlog(self) -> int:
        return len(self._deployment.queue)

    def use_clock(self, counter_ms: Callable[[], int | None]) -> None:
        pass

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass


class FaultyPublisher(CounterPublisher):
    """The worker's way to the counter: the next publish is sent, lost, late or doubled as `fault` says."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(RedisCounter(deployment.world.server.url, _PATIENCE_S), SETTINGS.terms)
        self._deployment = deployment
        self.fault = ""

    def publish(self, ledger: Ledger, snapshots: Sequence[DaySnapshot], **options: Any) -> list[Any]:
        def send() -> list[Any]:
            replies = super(FaultyPublisher, self).publish(ledger, snapshots, **options)
            for snapshot, reply in zip(snapshots, replies, strict=False):
                self._deployment.truth.given_up[snapshot.agent, snapshot.day] += reply.given_up_micros
            return replies

        if self.fault == "late" or (self.fault == "doubled" and options.get("opened_at_ms") is None):
            self._deployment.late.append(send)
        return [] if self.fault in ("late", "lost") else send()
