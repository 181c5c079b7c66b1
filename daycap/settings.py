"""The settings of runners and workers. No other module of the library reads the environment."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from daycap.errors import InvalidInput, InvalidSetting
from daycap.identity import identity_anchor
from daycap.protocol.counter import LeaseTerms
from daycap.urls import check_url

logger = logging.getLogger("daycap")

_OF_THE_PROCFILE = ("DAYCAP_LOG_LEVEL",)
"""Settings that only a shell reads."""

_KUBERNETES_NAME = re.compile(
    r"DAYCAP_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)", re.ASCII
)
_KUBERNETES_PORT = re.compile(r"(tcp|udp|sctp)://\S+:\d+")

_SQLITE_HOME = re.compile(r"(sqlite(?:\+\w+)?:///)(~[^/?]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings; each field `x` is read from `DAYCAP_X`. Times are seconds. URLs may contain passwords, so the repr
    leaves them out."""

    # --- Runners and workers

    redis_url: str = field(default="", repr=False)
    """The counter: `redis://`, `rediss://` or `unix://`. Empty: the counter is in this process's memory."""
    broker_url: str = field(default="", repr=False)
    """Celery's broker: `redis://`, `rediss://`, `amqp://` or `amqps://`. Empty: events are settled in this process."""
    ledger_url: str = field(default="", repr=False)
    """The ledger: `sqlite:///path` (`sqlite:///~/spend.db` is in the home directory) or `postgresql://...`. The worker
    owns it; a runner need not read it. A SQLite file without Redis and broker is a runner's own: it settles by itself,
    as the only process on that file."""
    redis_timeout_seconds: float = 0.25
    """How long one exchange with Redis may take before `reserve` raises `BudgetUnavailable`; the same everywhere."""

    # --- Runners

    identity_anchor: str = ""
    """Serve only the agent with this identity anchor. Needs `DAYCAP_LEDGER_URL`. Empty: serve any agent."""
    outbox: str = ""
    """A directory that keeps events until they are settled, so that they survive a killed runner. The runners of one
    user on a host may share it. It is created with mode 0700; with 1777 each user's runners read their own events only.
    Empty: none, or `<file>-outbox` beside a SQLite ledger that is a runner's own."""
    outbox_megabytes: int = 64
    """How much each process may keep in the outbox before `reserve` raises `OutboxFull`."""
    prices_file: str = ""
    """A file with your own prices, TOML or JSON. They take precedence over those of genai-prices."""
    slice_seconds: float = 2.0
    """How many seconds of an agent's use to lease ahead; 0 leases exactly what each reserve needs."""
    open_timeout_seconds: float = 2.0
    """How long a reserve waits for a worker to open the day."""
    resend_seconds: float = 15.0
    """How long events may go without progress before they are sent again; doubled after each try without effect."""
    trace_holds: bool = False
    """1: when a hold is dropped without being ended, log the line that reserved it."""

    # --- Workers

    lease_ttl_seconds: float = 30.0
    """How long a lease lives without a renewal; runners renew after a third of it."""
    grace_seconds: float = 10.0
    """How long after a lease's deadline its money is given up, once the queue has caught up."""
    close_after_days: int = 7
    """How many days after its end a day can still be charged; later events become dead letters."""
    retention_days: int = 400
    """How many days the ledger keeps a settlement after its day, and a dead letter after it was last seen."""
    books_days: int = 3650
    """How many days the ledger keeps what each agent spent on a day. Accounts and their changes stay for good."""
    open_ahead_hours: float = 2
    """How many hours before midnight the next day is opened for every active agent."""
    metrics_port: int = 0
    """The port for a worker's Prometheus metrics, `/healthz` and `/readyz`; 0: none."""
    metrics_address: str = "127.0.0.1"
    """The address for a worker's metrics and health, and for beat's health."""
    beat_port: int = 0
    """The port for beat's `/healthz` and `/readyz`; 0: none."""

    # --- Flower

    flower_address: str = "127.0.0.1"
    """The address that Flower listens on."""
    flower_port: int = 5555
    """The port that Flower listens on."""

    def __post_init__(self) -> None:
        self._check_servers()
        for name in ("outbox", "prices_file"):
            # The process may change its directory later, as a daemon does.
            object.__setattr__(self, name, _absolute(f"DAYCAP_{name.upper()}", getattr(self, name)))
        object.__setattr__(self, "ledger_url", _with_home(self.ledger_url))
        if self.identity_anchor:
            try:
                identity_anchor(self.identity_anchor)
            except InvalidInput as error:
                raise InvalidSetting(f"DAYCAP_IDENTITY_ANCHOR: {error}") from error
        for name in ("lease_ttl_seconds", "redis_timeout_seconds", "open_timeout_seconds", "resend_seconds"):
            if not getattr(self, name) > 0:
                raise InvalidSetting(f"DAYCAP_{name.upper()} must be more than 0")
        for name in ("slice_seconds", "grace_seconds"):
            if not getattr(self, name) >= 0:
                raise InvalidSetting(f"DAYCAP_{name.upper()} must be 0 or more")
        if self.lease_ttl_seconds * 1000 < 3 * self.guard_ms:
            raise InvalidSetting(
                f"DAYCAP_LEASE_TTL_SECONDS={self.lease_ttl_seconds:g} is too short for "
                f"DAYCAP_REDIS_TIMEOUT_SECONDS={self.redis_timeout_seconds:g}: a lease must outlive 12 timeouts"
            )
        if self.close_after_days < 3:
            raise InvalidSetting("DAYCAP_CLOSE_AFTER_DAYS must be 3 or more: the counter keeps a day for two")
        if not self.close_after_days <= self.retention_days <= self.books_days:
            raise InvalidSetting(
                "DAYCAP_CLOSE_AFTER_DAYS, DAYCAP_RETENTION_DAYS and DAYCAP_BOOKS_DAYS must be in ascending order: "
                f"{self.close_after_days}, {self.retention_days}, {self.books_days}"
            )

    def _check_servers(self) -> None:
        for name in ("redis_url", "broker_url", "ledger_url"):
            if url := getattr(self, name):
                check_url(f"DAYCAP_{name.upper()}", url)
        for name in ("metrics_port", "beat_port", "flower_port"):
            if getattr(self, name) > 65_535:
                raise InvalidSetting(f"DAYCAP_{name.upper()} must be a port, 0 to 65535")

    @property
    def guard_ms(self) -> int:
        """How long before the counter's deadline a runner stops using its lease: four timed-out exchanges."""
        return max(1, round(self.redis_timeout_seconds * 4000))

    @property
    def embedded(self) -> bool:
        """Whether one process settles into a SQLite file of its own: no Redis, no broker."""
        return self.ledger_url.startswith("sqlite") and not (self.redis_url or self.broker_url)

    @property
    def terms(self) -> LeaseTerms:
        """The terms of every lease, which the worker publishes."""
        return LeaseTerms(
            ttl_ms=round(self.lease_ttl_seconds * 1000),
            guard_ms=self.guard_ms,
            grace_ms=round(self.grace_seconds * 1000),
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read `DAYCAP_...`. Raises `InvalidSetting` that names the variable and its valid values.

        Every process checks every variable, including those that only other processes read: a deployment has one
        environment, and its first process reports what is wrong. An unknown name is refused, because the setting
        that a misspelt name was meant for would silently keep its default.
        """
        environ = os.environ if environ is None else environ
        ours = {
            name: value.strip()
            for name, value in environ.items()
            if name.startswith("DAYCAP_") and not _is_of_kubernetes(name, value)
        }
        parsers = {f"DAYCAP_{each.name.upper()}": _PARSERS[str(each.type)] for each in fields(cls)}
        _refuse_unknown(ours.keys() - parsers.keys(), [*parsers, *_OF_THE_PROCFILE])
        return cls(
            **{
                name.removeprefix("DAYCAP_").lower(): parsers[name](name, text)
                for name, text in ours.items()
                if text and name in parsers
            }
        )


def _is_of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes set this variable, as it does in every pod for a service whose name begins with `daycap`.

    For a service `daycap-metrics` it sets DAYCAP_METRICS_PORT=tcp://10.0.0.7:9100.
    """
    found = _KUBERNETES_NAME.fullmatch(name) or (name.endswith("_PORT") and _KUBERNETES_PORT.fullmatch(value.strip()))
    if found:
        logger.debug("ignoring %s: Kubernetes set it for a service", name)
    return bool(found)


def _refuse_unknown(names: set[str], known: list[str]) -> None:
    for name in sorted(names.difference(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise InvalidSetting(f"there is no setting {name:.60}; did you mean {near[0]}?")


def _absolute(variable: str, path: str) -> str:
    """Expand `~` and make `path` absolute; an empty one stays empty."""
    try:
        return path and str(Path(path).expanduser().absolute())
    except (OSError, RuntimeError) as error:
        raise InvalidSetting(f"{variable}={path!r:.200} cannot be made absolute: {error}") from error


def _with_home(ledger_url: str) -> str:
    """Expand `~` at the beginning of a SQLite file's path."""
    found = _SQLITE_HOME.match(ledger_url)
    if found is None:
        return ledger_url
    try:
        return f"{found[1]}{Path(found[2]).expanduser()}{ledger_url[found.end() :]}"
    except RuntimeError as error:
        raise InvalidSetting(f"DAYCAP_LEDGER_URL: {error}") from error


def _text(_: str, text: str) -> str:
    return text


def _number(variable: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 1e7:
        raise InvalidSetting(f"{variable}={text!r:.40} is not a number from 0 to 10 million")
    return value


def _whole(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise InvalidSetting(f"{variable}={text!r:.40} is not a whole number")
    return int(text)


def _switch(variable: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise InvalidSetting(f"{variable}={text!r:.40} must be 1 or 0")
    return text == "1"


_PARSERS: dict[str, Callable[[str, str], Any]] = {"str": _text, "float": _number, "int": _whole, "bool": _switch}
