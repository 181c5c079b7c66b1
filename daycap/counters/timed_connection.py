"""Connections to Redis on which a whole exchange ends by one deadline, not each of its reads.

redis-py's timeouts are for one read, write or connect each: a server that answers a byte at a time would hold its
caller for as long as it likes. Here everything counts: connecting, the TLS handshake, AUTH, loading the scripts, the
command and its answer. Only looking up a host's name cannot be interrupted: the resolver's own timeouts hold there.
"""

from __future__ import annotations

import threading
import time
from functools import cache
from typing import Any

from redis.connection import AbstractConnection


class _Exchange(threading.local):
    """The deadline of what this thread does now, on the monotonic clock."""

    ends_s = 0.0


_exchange = _Exchange()
_TIME_IS_UP = "the time for this exchange is up"


class exchange_within:  # noqa: N801 - a context manager; contextlib's takes as long as a system call
    """In this block everything on timed connections ends `timeout_s` from now, or raises `TimeoutError`."""

    __slots__ = ("_before_s", "_timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        self._before_s = _exchange.ends_s
        _exchange.ends_s = time.monotonic() + self._timeout_s

    def __exit__(self, *exc_info: object) -> None:
        _exchange.ends_s = self._before_s  # A signal's handler may have made an exchange in the middle of another.


def _left_s() -> float:
    left_s = _exchange.ends_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError(_TIME_IS_UP)
    return left_s


class _TimedSocket:
    """A socket that waits until the exchange's deadline at most, however many reads and writes that takes."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.fileno = sock.fileno
        self.pending = getattr(sock, "pending", int)  # Only TLS has bytes of its own; int() is 0.
        self._waits = True
        self._set_to_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, timeout_s: float | None) -> None:
        """0 as for any socket; what else redis-py sets is for one read, and does not count."""
        self._waits = timeout_s != 0

    def recv(self, size: int, *flags: int) -> bytes:
        self._set_timeout()
        data: bytes = self._sock.recv(size, *flags)
        return data

    def recv_into(self, buffer: Any) -> int:
        """For hiredis."""
        self._set_timeout()
        many: int = self._sock.recv_into(buffer)
        return many

    def sendall(self, data: bytes) -> None:
        # Not the socket's own: with TLS it waits for each part anew.
        self._set_timeout()
        sent = self._sock.send(data)
        while sent < len(data):
            self._set_timeout()
            sent += self._sock.send(memoryview(data)[sent:])

    def _set_timeout(self) -> None:
        left_s = _exchange.ends_s - time.monotonic() if self._waits else 0.0
        if left_s <= 0 and self._waits:
            raise TimeoutError(_TIME_IS_UP)
        # Setting it is a system call. Where nobody is slow, what was set for the last exchange still is right.
        if not left_s * 0.95 <= self._set_to_s <= left_s * 1.05:
            self._sock.settimeout(left_s)
            self._set_to_s = left_s


class _Timed(AbstractConnection):
    """Mixed into redis-py's connections. They read these timeouts before each connect and before the handshake."""

    socket_connect_timeout = property(lambda _: _left_s(), lambda _, __: None)
    socket_timeout = property(lambda _: _left_s(), lambda _, __: None)

    def _connect(self) -> Any:
        return _TimedSocket(super()._connect())  # type: ignore[no-untyped-call, safe-super]


@cache
def timed(kind: type[Any]) -> type[Any]:
    """The class of connections `kind`, with one deadline for each exchange; see `exchange_within`."""
    return type(kind.__name__, (_Timed, kind), {})
