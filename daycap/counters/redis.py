"""The counter in Redis: one hash per agent and day, one script per verb.

Commands go to a connection that this module picks, and the client library never resends them. A reply that is late is
an error; the next sync or publish carries the same totals. Each connection reads the server's run id when it connects,
because its answers hold only within one life of one server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from daycap.counters.timed_connection import exchange_within, timed
from daycap.errors import CounterUnavailable
from daycap.protocol.counter import (
    NOTHING_OVERDUE,
    AgentDay,
    Answer,
    Counter,
    CounterLease,
    DayReading,
    DaySnapshot,
    LeaseKey,
    LeaseTerms,
    LeaseTotals,
    PublishReply,
    SyncReply,
    SyncRequest,
    span_of,
)

MAX_PER_ROUND_TRIP = 500

_SCANNED_AT_ONCE = 500
"""Fields per step of a scan: a fraction of a millisecond, in which the server does nothing else."""


class Script(NamedTuple):
    """A script of `daycap/counters/scripts`: its source, and its SHA-1 for EVALSHA."""

    source: str
    sha1: str

    @classmethod
    def load(cls, verb: str) -> Script:
        source = files("daycap.counters").joinpath("scripts", f"{verb}.lua").read_text("utf-8")
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


SYNC, PUBLISH, READ = Script.load("sync"), Script.load("publish"), Script.load("read")


def counter_key(agent: str, day: str) -> str:
    """Return the key of an agent's day or a budget's period. The braces keep an owner's together in a cluster."""
    return f"daycap:{{{agent}}}:{day}"


Call = tuple[Any, ...]
"""The arguments of a script: the key, then what follows the run id."""


def sync_call(request: SyncRequest) -> Call:
    """Return the arguments of `SYNC` for this request."""
    return (
        counter_key(request.agent, request.day),
        *span_of(request.day, request.span),
        request.lease,
        request.granted_micros,
        request.returned_micros,
        request.need_micros,
        request.want_micros,
        *(() if request.farewell is None else (request.farewell,)),
    )


def sync_reply(reply: Sequence[Any]) -> SyncReply:
    """Decode the reply of `SYNC`. Raises `CounterUnavailable` for a reply that it never gives."""
    try:
        answer, *rest = reply
        if len(rest) == 1:
            return SyncReply(Answer(answer), rest[0])
        *totals, recall, plan = rest
        return SyncReply._make([Answer(answer), *totals, recall == 1, plan])
    except (TypeError, ValueError) as error:
        raise CounterUnavailable(f"the counter's reply did not come from its script: {reply!r:.80}") from error


class RedisCounter(Counter):
    """The counter behind `url` (redis://, rediss://, unix://).

    An exchange of one command takes at most `timeout_s`, from connecting to the complete reply; see `exchange_s`.
    """

    tier = "redis"

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._pool = self._make_pool()
        # redis-py imports modules for its first connection. Do that now: a child forked during the import would hang.
        self._idle: list[Any] = [self._pool.make_connection()]

    def _make_pool(self) -> redis.ConnectionPool:
        """Create the pool that makes connections. It does not keep them: its lock and statistics are too slow."""
        pool = redis.ConnectionPool.from_url(
            self._url,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=_learn_run_id,
            **pool_options(self._timeout_s),
        )
        pool.connection_class = timed(pool.connection_class)
        return pool

    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        return [sync_reply(reply) for reply in self._call(SYNC, [sync_call(request) for request in requests])]

    def publish(
        self,
        snapshots: Sequence[DaySnapshot],
        terms: LeaseTerms,
        *,
        expire_before_ms: int = 0,
        first_until_ms: int = 0,
        overdue: Mapping[AgentDay, Sequence[str]] = NOTHING_OVERDUE,
    ) -> list[PublishReply | None]:
        calls = [
            (
                counter_key(each.agent, each.day),
                *span_of(each.day, each.span),
                each.seq,
                each.status,
                each.cap_micros,
                each.spent_micros,
                each.drawn_micros,
                each.plan,
                each.plan_text or "",
                _base(each),
                terms.ttl_ms,
                terms.guard_ms,
                terms.grace_ms,
                expire_before_ms,
                first_until_ms,
                len(each.leases),
                len(each.folded),
                *(value for totals in each.leases for value in totals),
                *each.folded,
                *overdue.get((each.agent, each.day), ()),
            )
            for each in snapshots
        ]
        return [_publish_reply(*reply) for reply in self._call(PUBLISH, calls)]

    def read(self, agent_days: Sequence[AgentDay]) -> list[DayReading | None]:
        calls = [(counter_key(agent, day),) for agent, day in agent_days]
        return [
            DayReading._make([*reply[:8], reply[8] == 1]) if len(reply) > 1 else None
            for reply in self._call(READ, calls)
        ]

    def read_plan(self, agent: str, day: str) -> tuple[int, str] | None:
        (fields,) = self._commands([("HMGET", counter_key(agent, day), "plan", "plan_text")])
        plan, text = fields or (None, None)
        return None if plan is None or text is None else (int(plan), text)

    def sizes(self, agent_days: Sequence[AgentDay]) -> list[int]:
        return [size or 0 for size in self._commands([("HLEN", counter_key(*where)) for where in agent_days])]

    def leases(self, agent_days: Sequence[AgentDay]) -> list[dict[str, CounterLease]]:
        fields: list[dict[str, str]] = [{} for _ in agent_days]
        cursors = dict.fromkeys(range(len(agent_days)), "0")
        while cursors:
            commands = [
                ("HSCAN", counter_key(*agent_days[place]), cursor, "COUNT", _SCANNED_AT_ONCE)
                for place, cursor in cursors.items()
            ]
            replies = self._commands(commands)
            scanned = dict(zip(cursors, replies, strict=True))
            cursors = {}
            for place, reply in scanned.items():
                cursor, flat = reply or ("0", [])
                fields[place].update(zip(flat[::2], flat[1::2], strict=True))
                if cursor != "0":
                    cursors[place] = cursor
        return [_leases(each) for each in fields]

    def read_leases(self, leases: Sequence[LeaseKey]) -> list[LeaseTotals | None]:
        calls = [(counter_key(agent, day), lease) for agent, day, lease in leases]
        return [
            LeaseTotals(lease.lease, *reply[9:]) if len(reply) > 1 else None
            for lease, reply in zip(leases, self._call(READ, calls), strict=True)
        ]

    def now_ms(self) -> int:
        seconds, micros = self._round_trip([("TIME",)])[0]
        return int(seconds) * 1000 + int(micros) // 1000

    def info(self) -> dict[str, str]:
        """Return the server's INFO."""
        (info,) = self._round_trip([("INFO",)])
        return _parse_info(info)

    def forget(self) -> None:
        self._idle = []

    def close(self) -> None:
        # A new list, so that a thread that uses a connection closes it afterwards. Closed connections reconnect.
        idle, self._idle = self._idle, []
        with suppress(IndexError):
            while True:
                connection = idle.pop()
                connection.disconnect()
                self._idle.append(connection)

    def _call(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run `script` once per call."""
        return self._commands([command_of(script, call) for call in calls])

    def _commands(self, commands: Sequence[Call]) -> list[Any]:
        replies: list[Any] = []
        for start in range(0, len(commands), MAX_PER_ROUND_TRIP):
            replies += self._round_trip(list(commands[start : start + MAX_PER_ROUND_TRIP]))
        return replies

    def _round_trip(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        with exchange_within(exchange_s(self._timeout_s, len(commands))):
            return self._exchange(commands)

    def _exchange(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        idle = self._idle
        try:
            connection = idle.pop()
        except IndexError:
            connection = self._pool.make_connection()
        try:
            _connect(connection)
            replies = _exchange(connection, commands)
            if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
                # The scripts were flushed while this connection was open; none of the commands ran.
                _load_scripts(connection)
                replies = _exchange(connection, commands)
            if any(isinstance(reply, redis.ReadOnlyError) for reply in replies):
                connection.disconnect()
        except BaseException as error:
            connection.disconnect()  # Unless all replies were read, the connection is not reused.
            if isinstance(error, redis.RedisError | OSError):
                raise unavailable(error) from error
            raise
        finally:
            if idle is not self._idle:  # Closed meanwhile.
                connection.disconnect()
            idle.append(connection)
        try:
            return without_errors(replies)
        except redis.RedisError as error:
            raise unavailable(error) from error


def _leases(fields: dict[str, str]) -> dict[str, CounterLease]:
    """Parse the leases among a day's fields. What cannot be parsed is left to the next publish."""
    leases: dict[str, CounterLease] = {}
    for name, value in fields.items():
        kind, _, lease = name.partition(":")
        if kind == "lease":
            with suppress(ValueError):
                granted, returned, drawn, _, _, deadline_ms = map(int, value.split())
                farewell = fields.get(f"farewell:{lease}")
                outstanding = max(0, granted - returned - drawn)
                leases[lease] = CounterLease(outstanding, deadline_ms, None if farewell is None else int(farewell))
    return leases


def _base(snapshot: DaySnapshot) -> int:
    if snapshot.base_seq is not None:
        return snapshot.base_seq
    return -2 if snapshot.repairs else -1


def _publish_reply(
    answer: str, now_ms: int, seq: int, opened: int, fenced: int, repaired: int, leased: int, given_up: int
) -> PublishReply | None:
    if answer == Answer.UNKNOWN_AGENT:
        return None
    if answer == "BEHIND":
        return PublishReply(now_ms, seq, behind=seq)
    return PublishReply(now_ms, seq, opened == 1, fenced == 1, repaired == 1, leased, given_up)


def exchange_s(timeout_s: float, commands: int) -> float:
    """Return how long an exchange may take. Many commands get up to four times as long: later replies are too old."""
    return timeout_s * min(1 + (commands - 1) / 50, 4)


_RUN_ID = object()
"""A placeholder in a command for the run id of its connection."""


def pool_options(timeout_s: float) -> dict[str, Any]:
    """Return the options of connections to the counter, for threads and event loops."""
    return {
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "max_connections": 2**31,  # One per concurrent call: redis-py refuses more than a hundred by default.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "decode_responses": True,
    }


def command_of(script: Script, call: Call) -> Call:
    """Return the command that runs `script`."""
    key, *rest = call
    return ("EVALSHA", script.sha1, 1, key, _RUN_ID, *rest)


def packed(connection: Any, commands: Iterable[Call]) -> Any:
    """Encode `commands` for `connection`, with its run id."""
    run_id = connection.daycap_run_id
    return connection.pack_commands([[run_id if word is _RUN_ID else word for word in each] for each in commands])


def unavailable(error: BaseException) -> CounterUnavailable:
    """Convert the error of a failed exchange."""
    if isinstance(error, CounterUnavailable):
        return error
    if isinstance(error, redis.ReadOnlyError):
        return CounterUnavailable(f"the counter's server is a replica: {error}")
    return CounterUnavailable(f"the counter did not answer: {type(error).__name__}: {error}")


def _connect(connection: Any) -> None:
    """Connect, or reconnect if the connection was closed or has unread data."""
    connection.connect()
    try:
        if connection.can_read():
            raise redis.ConnectionError("unexpected data from the server")
    except redis.ConnectionError:  # Raised above, or the server closed the idle connection.
        connection.disconnect()
        connection.connect()


def _exchange(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    """Send all commands, then read all replies."""
    connection.send_packed_command(packed(connection, commands))
    return [_read(connection) for _ in commands]


def without_errors(replies: list[Any]) -> list[Any]:
    """Return the replies of one exchange, or raise the first that is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _read(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            return None  # Someone else wrote there: nothing of ours is. (The scripts see to it themselves.)
        return error


def _learn_run_id(connection: Any) -> None:
    try:
        connection.on_connect()
        (info,) = _plain(connection, [("INFO", "server")])
        connection.daycap_run_id = run_id_in(info)
        _load_scripts(connection)
    except BaseException:  # Otherwise redis-py keeps a half-made connection that a signal handler interrupted.
        connection.disconnect()
        raise


def run_id_in(info: str) -> str:
    """Return the server's run id from its INFO."""
    run_id = _parse_info(info).get("run_id")
    if run_id is None:
        raise redis.exceptions.InvalidResponse("INFO has no run_id of the server")
    return run_id


def _load_scripts(connection: Any) -> None:
    _plain(connection, [("SCRIPT", "LOAD", script.source) for script in (SYNC, PUBLISH, READ)])


def _plain(connection: Any, commands: list[tuple[str, ...]]) -> list[Any]:
    connection.send_packed_command(connection.pack_commands(commands))
    return without_errors([_read(connection) for _ in commands])


def _parse_info(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value for name, colon, value in pairs if colon}
