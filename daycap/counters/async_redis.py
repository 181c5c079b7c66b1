"""The counter in Redis for an event loop: only `sync`, which a runner's call may await.

`daycap.counters.redis` encodes requests and decodes replies; this module only waits. All tasks of a loop share one
connection: requests that arrive during an exchange go together in the next one, however many there are.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import redis
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from daycap.counters.per_loop import PerLoop
from daycap.counters.redis import (
    MAX_PER_ROUND_TRIP,
    SYNC,
    command_of,
    exchange_s,
    packed,
    pool_options,
    run_id_in,
    sync_call,
    sync_reply,
    unavailable,
    without_errors,
)
from daycap.errors import CounterUnavailable
from daycap.protocol.counter import AsyncCounter, SyncReply, SyncRequest

logger = logging.getLogger("daycap")

Asked = tuple[SyncRequest, "asyncio.Future[SyncReply]"]


class AsyncRedisCounter(AsyncCounter):
    """The counter behind `url`; an exchange takes at most as long as with `RedisCounter`.

    Several event loops may use it, one after the other or each in its own thread.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self.forget()

    def forget(self) -> None:
        self._lines = PerLoop(lambda: _Line(self._url, self._timeout_s))

    async def sync(self, request: SyncRequest) -> SyncReply:
        return await self._lines.get().sync(request)

    async def close(self) -> None:
        await self._lines.get().close()


class _Line:
    """One event loop's connection, and its tasks' requests."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._pool: Any = ConnectionPool.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=_learn_run_id,
            **pool_options(timeout_s),
        )
        self._timeout_s = timeout_s
        self._asked: list[Asked] = []
        self._sending: asyncio.Task[None] | None = None

    async def sync(self, request: SyncRequest) -> SyncReply:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[SyncReply] = loop.create_future()
        self._asked.append((request, answer))
        if self._sending is None:
            self._sending = loop.create_task(self._send_all(), name="daycap-sync")
        return await answer

    async def close(self) -> None:
        if self._sending is not None:
            await asyncio.wait([self._sending])
        await self._pool.disconnect()

    async def _send_all(self) -> None:
        try:
            while self._asked:
                # Skip requests whose task was cancelled meanwhile.
                batch = [each for each in self._asked[:MAX_PER_ROUND_TRIP] if not each[1].done()]
                del self._asked[:MAX_PER_ROUND_TRIP]
                try:
                    replies = await self._round_trip([request for request, _ in batch])
                except BaseException as error:  # Otherwise the tasks would wait forever.
                    for _, answer in batch:
                        _give(answer, unavailable(error))
                    if not isinstance(error, Exception):
                        raise
                    logger.error("the counter's answer cannot be read", exc_info=error)
                    continue
                for (_, answer), reply in zip(batch, replies, strict=True):
                    _give(answer, reply)
        finally:
            self._sending = None

    async def _round_trip(self, requests: list[SyncRequest]) -> list[SyncReply | CounterUnavailable]:
        """Return each request's reply or error."""
        try:
            async with asyncio.timeout(exchange_s(self._timeout_s, len(requests))):
                return await self._exchange(requests)
        except TimeoutError as error:
            return [unavailable(error) for _ in requests]

    async def _exchange(self, requests: list[SyncRequest]) -> list[SyncReply | CounterUnavailable]:
        connection: Any = None
        try:
            connection = await self._pool.get_connection()
            try:
                replies = await _exchange(connection, requests)
            except redis.exceptions.NoScriptError:
                # The scripts were flushed while this connection was open; none of the commands ran.
                await _plain(connection, "SCRIPT", "LOAD", SYNC.source)
                replies = await _exchange(connection, requests)
            return [sync_reply(reply) for reply in replies]
        except (redis.RedisError, OSError, CounterUnavailable) as error:
            if isinstance(error, redis.ReadOnlyError):
                await connection.disconnect()
            return [unavailable(error) for _ in requests]
        finally:
            if connection is not None:
                await self._pool.release(connection)


def _give(answer: asyncio.Future[SyncReply], reply: SyncReply | CounterUnavailable) -> None:
    if answer.done():
        return
    if isinstance(reply, CounterUnavailable):
        answer.set_exception(reply)
    else:
        answer.set_result(reply)


async def _exchange(connection: Any, requests: list[SyncRequest]) -> list[Any]:
    """Send all requests, then read all replies. Drops the connection unless every reply was read."""
    commands = [command_of(SYNC, sync_call(request)) for request in requests]
    try:
        await connection.send_packed_command(packed(connection, commands))
        replies = [await _read(connection) for _ in commands]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return without_errors(replies)


async def _read(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except redis.ResponseError as error:
        return error


async def _learn_run_id(connection: Any) -> None:
    try:
        await connection.on_connect()
        connection.daycap_run_id = run_id_in(await _plain(connection, "INFO", "server"))
        await _plain(connection, "SCRIPT", "LOAD", SYNC.source)
    except BaseException:  # Otherwise redis-py keeps a half-made connection whose task was cancelled.
        await connection.disconnect(nowait=True)
        raise


async def _plain(connection: Any, *command: str) -> Any:
    await connection.send_packed_command(connection.pack_command(*command))
    return await connection.read_response()
