"""Connections to Redis with one deadline for a whole exchange.

redis-py's timeouts apply to each read, write or connect: a server that sends a byte at a time could block its caller
forever. Here one deadline covers connecting, the TLS handshake, AUTH, loading the scripts, the command and its reply.
Only the host name lookup cannot be interrupted: the resolver's own timeouts apply there.
"""

from __future__ import annotations

import threading
import time
from functools import cache
from typing import Any

from redis.connection import AbstractConnection


class _Exchange(threading.local):
    """The deadline of this thread's current exchange, on the monotonic clock."""

    ends_s = 0.0


_exchange = _Exchange()
_TIME_IS_UP = "the exchange with the server timed out"


class exchange_within:  # noqa: N801 - a context manager; contextlib's takes as long as a system call
    """Limit everything on timed connections in this block to `timeout_s`; after that, raise `TimeoutError`."""

    __slots__ = ("_before_s", "_timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        self._before_s = _exchange.ends_s
        _exchange.ends_s = time.monotonic() + self._timeout_s

    def __exit__(self, *exc_info: object) -> None:
        _exchange.ends_s = self._before_s  # A signal handler may exchange during another exchange.


def _left_s() -> float:
    left_s = _exchange.ends_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError(_TIME_IS_UP)
    return left_s


class _TimedSocket:
    """A socket that waits at most until the exchange's deadline, over any number of reads and writes."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.fileno = sock.fileno
        self.pending = getattr(sock, "pending", int)  # Only TLS buffers bytes; int() is 0.
        self._waits = True
        self._set_to_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, timeout_s: float | None) -> None:
        """Accept 0 (non-blocking); ignore other values, which redis-py means for one read."""
        self._waits = timeout_s != 0

    def recv(self, size: int, *flags: int) -> bytes:
        self._set_timeout()
        data: bytes = self._sock.recv(size, *flags)
        return data

    def recv_into(self, buffer: Any) -> int:
        """Receive into `buffer`, for hiredis."""
        self._set_timeout()
        size: int = self._sock.recv_into(buffer)
        return size

    def sendall(self, data: bytes) -> None:
        # Not the socket's own sendall: with TLS its timeout restarts for each part.
        self._set_timeout()
        sent = self._sock.send(data)
        while sent < len(data):
            self._set_timeout()
            sent += self._sock.send(memoryview(data)[sent:])

    def _set_timeout(self) -> None:
        left_s = _exchange.ends_s - time.monotonic() if self._waits else 0.0
        if left_s <= 0 and self._waits:
            raise TimeoutError(_TIME_IS_UP)
        # Setting the timeout is a system call. While the server is fast, the last value is still close enough.
        if not left_s * 0.95 <= self._set_to_s <= left_s * 1.05:
            self._sock.settimeout(left_s)
            self._set_to_s = left_s


class _Timed(AbstractConnection):
    """A mixin for redis-py's connections, which read these timeouts before each connect and handshake."""

    socket_connect_timeout = property(lambda _: _left_s(), lambda _, __: None)
    socket_timeout = property(lambda _: _left_s(), lambda _, __: None)

    def _connect(self) -> Any:
        return _TimedSocket(super()._connect())  # type: ignore[no-untyped-call, safe-super]


@cache
def timed(kind: type[Any]) -> type[Any]:
    """Return connection class `kind` with one deadline per exchange; see `exchange_within`."""
    return type(kind.__name__, (_Timed, kind), {})
