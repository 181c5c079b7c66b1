"""URLs of counter and broker: what cannot work, or would override daycap's own options, is refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from daycap import AsyncWallet, InvalidSetting, Settings, Wallet
from daycap.urls import celery_broker

COUNTER, BROKER = "DAYCAP_REDIS_URL", "DAYCAP_BROKER_URL"

both_servers = pytest.mark.parametrize("variable", [COUNTER, BROKER])


@pytest.mark.parametrize(
    "option",
    [
        "socket_timeout=8",
        "socket_connect_timeout=8",
        "retry_on_timeout=true",
        "retry_on_error=x",
        "max_connections=1",
        "health_check_interval=1",
        "protocol=3",
        "decode_responses=false",
        "client_name=x",
        "timeout=8",
        "credential_provider=os.path",
        "virtual_host=1",
        "ssl=true",
        "socket_timeout=",
        "socket_timeout",
    ],
)
@both_servers
def test_options_that_are_daycaps_own_are_refused(variable: str, option: str) -> None:
    for scheme in ("redis", "rediss"):
        with pytest.raises(InvalidSetting, match=f"{variable}: unknown option {option.partition('=')[0]}"):
            Settings.from_env({variable: f"{scheme}://127.0.0.1/0?{option}"})


@pytest.mark.parametrize(
    "option", ["heartbeat=1", "connect_timeout=9", "login_method=PLAIN", "db=1", "transport=memory"]
)
def test_amqp_takes_no_options_but_for_tls(option: str) -> None:
    for scheme in ("amqp", "amqps"):
        with pytest.raises(InvalidSetting, match=f"unknown option {option.partition('=')[0]}"):
            Settings.from_env({BROKER: f"{scheme}://127.0.0.1//?{option}"})


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sqs://x", "sqs:// is not supported"),
        ("memory://", "memory:// is not supported"),
        ("sentinel://127.0.0.1:26379", "sentinel:// is not supported"),
        ("127.0.0.1:6379", ":// is missing"),
        ("REDIS://127.0.0.1:6379/0", "write redis:// in lower case"),
        ("redis://a/0;redis://b/0", "name one broker|Redis database"),
        ("redis://a,b/0", "name one server"),
        ("redis://a:6379,b:6379/0", "cannot be parsed"),
        ("redis://127.0.0.1:65536/0", "a port is a number"),
        ("redis://127.0.0.1:0/0", "no port 0"),
        ("redis://127.0.0.1:6379x/0", "a port is a number"),
        ("redis://127.0.0.1/zero", "Redis database is a number"),
        ("redis://127.0.0.1/0/1", "Redis database is a number"),
        ("redis://127.0.0.1/-1", "Redis database is a number"),
        ("redis://127.0.0.1/?db=x", "db must be a number"),
        ("redis://127.0.0.1/0?db=1", "db is given twice"),
        ("redis://u:p@127.0.0.1/0?password=q", "password is given twice"),
        ("redis://127.0.0.1/0#1", "host cannot be parsed"),
        ("redis://a b/0", "host cannot be parsed"),
        ("rediss://127.0.0.1/0?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs names a file that does not exist"),
        ("rediss://127.0.0.1/0?ssl_keyfile=/nowhere/key.pem", "ssl_keyfile names a file that does not exist"),
    ],
)
@both_servers
def test_urls_that_cannot_work_are_refused(variable: str, url: str, why: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{variable}.*({why})"):
        Settings.from_env({variable: url})


def test_a_socket_is_named_by_its_whole_path() -> None:
    assert Settings(redis_url="unix:///run/redis.sock?db=1").redis_url
    for url in ("unix://run/redis.sock", "unix://"):
        with pytest.raises(InvalidSetting, match="absolute path"):
            Settings(redis_url=url)
    with pytest.raises(InvalidSetting, match="unix:// is not supported"):
        Settings(broker_url="unix:///run/redis.sock")


def test_no_part_of_a_password_is_shown() -> None:
    for url in (
        "redis://:12?hunter2@h/0",
        "redis://u:12?a=hunter2@h/0",
        "redis://:hunter2#@h/0",
        "redis://:hunter2;@h/0",
    ):
        with pytest.raises(InvalidSetting) as refused:
            Settings(broker_url=url)
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("redis://h:1/", "redis://h:1/"),
        ("redis://h:1/?db=3", "redis://h:1/3"),
        ("redis://h:1?db=3&username=a%40b&password=c%2Fd", "redis://a%40b:c%2Fd@h:1/3"),
        ("redis://a%40b@h:1/3?password=c%3Bd", "redis://a%40b:c%3Bd@h:1/3"),
        ("amqp://u:p@h/%2F", "amqp://u:p@h/%2F"),
    ],
)
def test_celery_is_given_what_redis_py_reads_behind_the_mark(url: str, plain: str) -> None:
    assert celery_broker(Settings(broker_url=url).broker_url) == {"broker_url": plain}


@pytest.mark.parametrize("face", [Wallet, AsyncWallet])
@pytest.mark.parametrize(("scheme", "module"), [("redis", "packaging"), ("amqp", "amqp")])
def test_a_broker_whose_client_is_missing_is_refused(
    face: Any, scheme: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = "kombu.transport." + {"redis": "redis", "amqp": "pyamqp"}[scheme]
    for name in [name for name in sys.modules if name == transport or name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("kombu.transport._transport_cache", {})

    with pytest.raises(InvalidSetting, match=f"{scheme}://.* a module is missing: .*{module}"):
        face.from_env(environ={COUNTER: "redis://127.0.0.1:1/0", BROKER: f"{scheme}://127.0.0.1:1/0"})
