"""Which failures of a broker pass by themselves, and which last until somebody acts."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import redis
from amqp import exceptions as amqp
from kombu.exceptions import InconsistencyError, KombuError

from daycap.errors import Unavailable

_PASSING_ANSWERS = ("BUSY", "LOADING", "MISCONF", "NOREPLICAS", "UNBLOCKED", "max number of clients")
"""How answers of Redis begin that redis-py has no class for and that a server gives for a while."""

_PASSING = (OSError, redis.RedisError, amqp.AMQPError, KombuError, InconsistencyError, Unavailable)
"""What a broker that is away, starts, restarts or is full may cause. All else is not the broker's fault."""


def refusal(error: BaseException) -> str | None:
    """Why nothing can be sent before somebody acts, and what to do; None if `error` may pass by itself."""
    for link in _chain(error):
        if advice := _advice(link):
            return f"the broker cannot be used: {type(link).__name__}: {link}; {advice}"
    if isinstance(error, _PASSING):
        return None
    # Only its name: its text might show a part of the URL.
    return f"events cannot be sent: {type(error).__name__}, which is no fault of the broker's; please report it"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: kombu and redis-py wrap the cause."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _advice(error: BaseException) -> str | None:
    """What to do about an error that lasts."""
    match error:
        case ImportError():
            return "install daycap with everything that it depends on"
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | ssl.SSLSyscallError():
            return None  # A server that went away in the middle of it.
        case ssl.SSLError():
            return "check certificate and TLS options of DAYCAP_BROKER_URL"
        case redis.AuthenticationError() | redis.exceptions.AuthenticationWrongNumberOfArgsError():
            return "check user and password in DAYCAP_BROKER_URL"
        case redis.exceptions.NoPermissionError():
            return "give its user the rights that a runner needs"
        case amqp.AccessRefused():
            return "check user, password and rights at the broker of DAYCAP_BROKER_URL"
        case amqp.NotAllowed():
            return "check the virtual host in DAYCAP_BROKER_URL and its user's rights"
        case amqp.PreconditionFailed():
            return "a queue exists with other properties: delete it, or name another virtual host"
        case amqp.NotFound() | amqp.InternalError():
            return None  # Declared anew with the next connection.
        case amqp.IrrecoverableConnectionError() | amqp.IrrecoverableChannelError() | redis.InvalidResponse():
            return "check that DAYCAP_BROKER_URL leads to a broker of this kind"
        case redis.ResponseError() if not _may_pass(error):
            return "check the database, and the server that DAYCAP_BROKER_URL leads to"
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
