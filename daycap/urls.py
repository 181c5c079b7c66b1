"""The URLs of counter, broker and ledger. They name a server and credentials, nothing else: daycap sets timeouts.

`rediss://` and `amqps://` take `?ssl_ca_certs=FILE` (default: the system's authorities), `ssl_certfile=` and
`ssl_keyfile=` for a client certificate, `ssl_check_hostname=false`, and `ssl_cert_reqs=none`, which trusts any
server. kombu by itself verifies nothing, and its options differ between AMQP and Redis. Redis also takes `?db=`,
`username=` and `password=`. Other options are refused: redis-py and kombu would let them override what daycap sets.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit, urlunsplit

from kombu.transport import get_transport_cls

from daycap.errors import InvalidSetting

_SCHEMES = {
    "DAYCAP_REDIS_URL": ("redis", "rediss", "unix"),
    "DAYCAP_BROKER_URL": ("redis", "rediss", "amqp", "amqps", "pyamqp"),
}
_CERT_REQS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_BOOLS = {"true": True, "false": False}
_REDIS, _AMQP = "rediss", "amqps"
_REDIS_OPTIONS = ("db", "username", "password")
_HOST = re.compile(r"[\w.:%-]*")


def check_url(variable: str, url: str) -> str:
    """Return `url` if daycap can use it. Raises `InvalidSetting`, which shows no part of it: it may have a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
        if variable == "DAYCAP_BROKER_URL" and ";" in url:
            raise InvalidSetting("name one broker: several in one URL are not supported (write ; in a password as %3B)")
        if not parts.scheme or "://" not in url:
            raise InvalidSetting("it is not a URL: :// is missing")
        if not url.startswith(parts.scheme):
            raise InvalidSetting(f"write {parts.scheme:.20}:// in lower case")  # Client libraries know no other form.
        if variable in _SCHEMES:
            _check_server(parts, _SCHEMES[variable])
            if port == 0:
                raise InvalidSetting("there is no port 0")
            _tls(parts)
    except InvalidSetting as error:
        raise InvalidSetting(f"{variable}: {error}") from None
    except ValueError:
        raise InvalidSetting(
            f"{variable} cannot be parsed as a URL: a port is a number up to 65535, "
            "and a password needs / ? # @ : [ ] written as %2F %3F %23 %40 ..."
        ) from None
    return url


def without_secrets(url: str) -> str:
    """Return `url` without its user, password and options, to show it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _check_server(parts: SplitResult, schemes: tuple[str, ...]) -> None:
    """Raise `InvalidSetting` for what a client library would ignore or misread."""
    if parts.scheme not in schemes:
        known = ", ".join(f"{scheme}://" for scheme in schemes if scheme != "pyamqp")
        raise InvalidSetting(f"{parts.scheme:.20}:// is not supported; use one of {known}")
    if "," in (parts.hostname or ""):
        raise InvalidSetting("name one server: several in one URL are not supported")
    if not _HOST.fullmatch(parts.hostname or "") or parts.fragment:
        raise InvalidSetting("its host cannot be parsed; write # and spaces in a password as %23 and %20")
    if parts.scheme == "unix":
        if parts.hostname or not parts.path:
            raise InvalidSetting("give the socket's absolute path: unix:///run/redis.sock?db=0")
    elif "redis" in parts.scheme and not re.fullmatch(r"/?\d*", parts.path):
        raise InvalidSetting("a Redis database is a number: redis://host:6379/0")
    _check_options(parts)


def _check_options(parts: SplitResult) -> None:
    of_redis = not parts.scheme.endswith(("amqp", "amqps"))
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in given:
        if name.startswith("ssl_") or (of_redis and name in _REDIS_OPTIONS):
            continue
        shown = name if re.fullmatch(r"[a-z_]{1,40}", name) else ""
        raise InvalidSetting(
            f"unknown option {shown}: a URL takes ssl_ options"
            + (f", {', '.join(_REDIS_OPTIONS)}" if of_redis else "")
            + "; daycap sets timeouts and everything else"
        )
    twice = {"username": parts.username, "password": parts.password, "db": parts.scheme != "unix" and parts.path[1:]}
    for name in given:
        if twice.get(name):
            raise InvalidSetting(f"{name} is given twice, before the ? and after it")
    if "db" in given and not re.fullmatch(r"\d{1,9}", given["db"]):
        raise InvalidSetting("db must be a number")


def celery_broker(url: str) -> dict[str, Any]:
    """Return Celery's settings for the broker at `url`. Raises `InvalidSetting`, also if a client is missing."""
    parts = urlsplit(url)
    try:
        get_transport_cls(parts.scheme)
    except ImportError as error:
        raise InvalidSetting(
            f"DAYCAP_BROKER_URL: {parts.scheme}:// cannot be used because a module is missing: {error}; "
            "install daycap with all its dependencies"
        ) from error
    options = _tls(parts)
    plain = _without_options(parts)
    if options is None:
        return {"broker_url": plain}
    if parts.scheme == _REDIS:
        return {"broker_url": plain, "broker_use_ssl": options}
    check_hostname = options.pop("ssl_check_hostname")
    options = {name.removeprefix("ssl_"): value for name, value in options.items()}
    if check_hostname:
        options["server_hostname"] = None  # py-amqp checks the name only if this key is set; None: the URL's host.
    return {"broker_url": plain, "broker_use_ssl": options}


def _without_options(parts: SplitResult) -> str:
    """Move user, password and database before the `?`: kombu ignores them after it."""
    given = dict(parse_qsl(parts.query))
    netloc, path = parts.netloc, f"/{given['db']}" if "db" in given else parts.path
    if "username" in given or "password" in given:
        user = quote(given["username"], safe="") if "username" in given else parts.username or ""
        password = quote(given["password"], safe="") if "password" in given else parts.password or ""
        netloc = f"{user}:{password}@{netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc, path=path, query=""))


def _tls(parts: SplitResult) -> dict[str, Any] | None:
    """Return the URL's TLS options under redis-py's names; None if its scheme has no TLS."""
    asked = {name: value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")}
    if parts.scheme not in (_REDIS, _AMQP):
        if asked:
            raise InvalidSetting(f"{', '.join(asked)} is for rediss:// and amqps://; {parts.scheme}:// has no TLS")
        return None
    if unknown := asked.keys() - {*_FILES, "ssl_cert_reqs", "ssl_check_hostname"}:
        raise InvalidSetting(f"unknown option {', '.join(sorted(unknown))}")
    cert_reqs, check_hostname = asked.get("ssl_cert_reqs", "required"), asked.get("ssl_check_hostname", "true")
    if cert_reqs not in _CERT_REQS:
        raise InvalidSetting(f"ssl_cert_reqs must be one of {', '.join(_CERT_REQS)}")
    if check_hostname not in _BOOLS:
        raise InvalidSetting("ssl_check_hostname must be true or false")
    options: dict[str, Any] = {name: asked[name] for name in _FILES if name in asked}
    if missing := [name for name, file in options.items() if not Path(file).is_file()]:
        raise InvalidSetting(f"{missing[0]} names a file that does not exist")
    options["ssl_cert_reqs"] = _CERT_REQS[cert_reqs]
    options["ssl_check_hostname"] = _BOOLS[check_hostname] and cert_reqs != "none"
    return options
