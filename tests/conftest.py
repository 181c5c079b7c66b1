"""Real servers for the tests: each is a process of its own on 127.0.0.1, ended when the session ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from worker.local_server import LocalServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[LocalServer]:
    """One redis-server for the whole session."""
    server = LocalServer().start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: LocalServer) -> str:
    """An empty database on the session's server."""
    with redis.Redis.from_url(redis_server.url()) as client:
        client.flushall()
    return redis_server.url()
