"""The URLs of counter, broker and ledger: one form of TLS options for all, verified unless a URL says otherwise.

`rediss://` and `amqps://` take `?ssl_ca_certs=FILE` (else the system's authorities), `ssl_certfile=` and
`ssl_keyfile=` for a certificate of one's own, `ssl_check_hostname=false`, and `ssl_cert_reqs=none`, which trusts
anyone. kombu alone would verify nothing, and reads other options for AMQP than for Redis.
"""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from kombu.transport import TRANSPORT_ALIASES

from daycap.errors import InvalidSetting

_CERT_REQS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_BOOLS = {"true": True, "false": False}
_REDIS, _AMQP = "rediss", "amqps"


def check_url(variable: str, url: str) -> str:
    """`url`, if it can be read. Raises `InvalidSetting`, without any of it: it may carry a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        _tls(parts)
    except InvalidSetting as error:
        raise InvalidSetting(f"{variable}: {error}") from None
    except ValueError:
        raise InvalidSetting(
            f"{variable} is not a URL that can be read; in a password / ? # @ : [ ] are written as %2F %3F %23 %40 ..."
        ) from None
    if not parts.scheme or "://" not in url:
        raise InvalidSetting(f"{variable} is not a URL: it has no ://")
    if variable == "DAYCAP_BROKER_URL" and parts.scheme not in TRANSPORT_ALIASES:
        raise InvalidSetting(
            f"{variable}: there is no broker of the kind {parts.scheme}://; redis:// and amqp:// are two"
        )
    return url


def celery_broker(url: str) -> dict[str, Any]:
    """Celery's settings for the broker at `url`. Raises `InvalidSetting`."""
    parts = urlsplit(url)
    options = _tls(parts)
    if options is None:
        return {"broker_url": url}
    others = [(name, value) for name, value in parse_qsl(parts.query) if not name.startswith("ssl_")]
    plain = urlunsplit(parts._replace(query=urlencode(others)))
    if parts.scheme == _REDIS:
        return {"broker_url": plain, "broker_use_ssl": options}
    check_hostname = options.pop("ssl_check_hostname")
    options = {name.removeprefix("ssl_"): value for name, value in options.items()}
    if check_hostname:
        options["server_hostname"] = None  # py-amqp looks at the name only if it is told one; None: that of the URL.
    return {"broker_url": plain, "broker_use_ssl": options}


def _tls(parts: SplitResult) -> dict[str, Any] | None:
    """The TLS options of a URL under redis-py's names; None if its scheme is not one with TLS of ours."""
    asked = {name: value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")}
    if parts.scheme not in (_REDIS, _AMQP):
        if asked and parts.scheme in ("redis", "amqp", "pyamqp"):
            raise InvalidSetting(f"{', '.join(asked)} is for rediss:// and amqps://; {parts.scheme}:// has no TLS")
        return None
    if unknown := asked.keys() - {*_FILES, "ssl_cert_reqs", "ssl_check_hostname"}:
        raise InvalidSetting(f"unknown option {', '.join(sorted(unknown))}")
    cert_reqs, check_hostname = asked.get("ssl_cert_reqs", "required"), asked.get("ssl_check_hostname", "true")
    if cert_reqs not in _CERT_REQS:
        raise InvalidSetting(f"ssl_cert_reqs is one of {', '.join(_CERT_REQS)}")
    if check_hostname not in _BOOLS:
        raise InvalidSetting("ssl_check_hostname is true or false")
    options: dict[str, Any] = {name: asked[name] for name in _FILES if name in asked}
    options["ssl_cert_reqs"] = _CERT_REQS[cert_reqs]
    options["ssl_check_hostname"] = _BOOLS[check_hostname] and cert_reqs != "none"
    return options
