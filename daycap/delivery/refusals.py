"""Tell transient broker failures from those that last until someone acts."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import redis
from amqp import exceptions as amqp
from kombu.exceptions import InconsistencyError, KombuError

from daycap.errors import Unavailable

_PASSING_ANSWERS = ("BUSY", "LOADING", "MISCONF", "NOREPLICAS", "UNBLOCKED", "max number of clients")
"""Prefixes of transient Redis errors that redis-py has no class for."""

_PASSING = (OSError, redis.RedisError, amqp.AMQPError, KombuError, InconsistencyError, Unavailable)
"""What a broker that is down, starting, restarting or full may cause. Anything else is not the broker's fault."""


def refusal(error: BaseException) -> str | None:
    """Return why nothing can be sent until someone acts, and what to do; None if `error` may pass by itself."""
    for link in _chain(error):
        if advice := _advice(link):
            return f"the broker cannot be used: {type(link).__name__}: {link}; {advice}"
    if isinstance(error, _PASSING):
        return None
    # Only its type: its text might show part of the URL.
    return f"events cannot be sent: {type(error).__name__}, which is not the broker's fault; please report it"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes: kombu and redis-py wrap them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _advice(error: BaseException) -> str | None:
    """Return what to do about an error that lasts; None if it may pass or has no advice."""
    match error:
        case ImportError():
            return "install daycap with all its dependencies"
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | ssl.SSLSyscallError():
            return None  # The server went away during the handshake.
        case ssl.SSLError():
            return "check the certificate and the TLS options of DAYCAP_BROKER_URL"
        case redis.AuthenticationError() | redis.exceptions.AuthenticationWrongNumberOfArgsError():
            return "check the user and password in DAYCAP_BROKER_URL"
        case redis.exceptions.NoPermissionError():
            return "grant its user the permissions that a runner needs"
        case amqp.AccessRefused():
            return "check the user and password in DAYCAP_BROKER_URL, and the user's permissions"
        case amqp.NotAllowed():
            return "check the virtual host in DAYCAP_BROKER_URL and the user's permissions"
        case amqp.PreconditionFailed():
            return "a queue exists with other properties: delete it or use another virtual host"
        case amqp.NotFound() | amqp.InternalError():
            return None  # The next connection declares it again.
        case amqp.IrrecoverableConnectionError() | amqp.IrrecoverableChannelError() | redis.InvalidResponse():
            return "check that DAYCAP_BROKER_URL points to a broker of this kind"
        case redis.ResponseError() if not _may_pass(error):
            return "check the database and the server in DAYCAP_BROKER_URL"
    return None


def _may_pass(error: redis.ResponseError) -> bool:
    passing = (
        redis.ReadOnlyError,
        redis.OutOfMemoryError,
        redis.exceptions.ExecAbortError,
        redis.exceptions.ClusterDownError,
        redis.exceptions.TryAgainError,
    )
    return isinstance(error, passing) or str(error).startswith(_PASSING_ANSWERS)
