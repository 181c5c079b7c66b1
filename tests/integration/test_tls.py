"""Counter, broker and results over real TLS; a certificate that nobody vouched for is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from daycap import CounterUnavailable, InvalidSetting, Settings, Wallet
from daycap.counters.redis import RedisCounter
from daycap.delivery.celery import CeleryTransport
from daycap.urls import celery_broker
from tests.integration.test_command_line import run
from tests.processes import LocalRedis, LocalWorker
from tests.spine import environment
from tests.tls import Authority, TlsProxy


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    server = LocalRedis(tmp_path_factory.mktemp("redis"))
    server.ready()
    yield server
    server.teardown()


@pytest.fixture(scope="module")
def proxy(server: LocalRedis, authority: Authority) -> Iterator[TlsProxy]:
    proxy = TlsProxy(server.port, authority.server("127.0.0.1")).start()
    yield proxy
    proxy.stop()


def test_everything_works_over_tls_and_nothing_goes_around_it(
    proxy: TlsProxy, authority: Authority, empty_ledger: Path, tmp_path: Path
) -> None:
    # Given a worker whose environment names TLS and the authority to believe, in the same form for both
    ledger = shutil.copy(empty_ledger, tmp_path / "ledger.sqlite3")
    known = {
        name: url if name == "DAYCAP_LEDGER_URL" else f"{url}?ssl_ca_certs={authority.file}"
        for name, url in environment(f"rediss://127.0.0.1:{proxy.port}", ledger).items()
    }
    worker = LocalWorker(tmp_path, known)
    try:
        worker.ready()

        # When agents are added and money is spent, the whole way is encrypted: commands, answers, events, counter
        run("agent", "add", "agent-7", "--cap", "5", environment=known)
        with Wallet.from_settings(Settings.from_env(known)) as wallet:
            wallet.reserve("agent-7", 50_000).finalize(31_200)
            assert wallet.flush(20) == ()
            assert wallet.spent("agent-7") == (31_200, "redis")
        assert "none" in run("doctor", environment=known)
        assert "insecure" not in worker.logs().lower()
    finally:
        worker.teardown()


@pytest.fixture(params=["nobody vouched for it", "it is another host's"])
def wrong(request: pytest.FixtureRequest, server: LocalRedis, authority: Authority) -> Iterator[str]:
    """The URL of a server whose certificate must not be believed."""
    stranger = request.param == "it is another host's"
    proxy = TlsProxy(server.port, authority.server("elsewhere.example" if stranger else "127.0.0.1")).start()
    yield f"rediss://127.0.0.1:{proxy.port}/0" + (f"?ssl_ca_certs={authority.file}" if stranger else "")
    proxy.stop()


def test_a_certificate_that_cannot_be_believed_is_refused(wrong: str) -> None:
    counter = RedisCounter(wrong, timeout_s=5)
    with pytest.raises(CounterUnavailable, match="certificate verify failed"):
        counter.now_ms()
    counter.close()

    transport = CeleryTransport(wrong)
    with pytest.raises(OperationalError, match="certificate verify failed"):
        transport.open_day("agent-7", "2026-01-01")
    transport.close()

    results = Celery(set_as_current=False, backend=wrong.partition("?")[0])
    results.conf.redis_backend_use_ssl = celery_broker(wrong)["broker_use_ssl"]
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        results.backend.client.ping()
    results.close()


def test_a_command_says_that_it_does_not_believe_the_certificate(proxy: TlsProxy) -> None:
    nobody_vouched = {"DAYCAP_BROKER_URL": f"rediss://127.0.0.1:{proxy.port}/0"}
    assert "certificate verify failed" in run("agent", "list", environment=nobody_vouched, status=1)


def test_whoever_asks_to_trust_anyone_does(wrong: str) -> None:
    trusting = wrong.partition("?")[0] + "?ssl_cert_reqs=none"
    counter = RedisCounter(trusting, timeout_s=5)
    assert counter.now_ms() > 0
    counter.close()
    transport = CeleryTransport(trusting)
    transport.open_day("agent-7", "2026-01-01")
    transport.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://127.0.0.1/0?ssl_ca_certs=/ca.pem", "redis:// has no TLS"),
        ("rediss://127.0.0.1/0?ssl_ca_cert=/ca.pem", "unknown option ssl_ca_cert"),
        ("rediss://127.0.0.1/0?ssl_cert_reqs=never", "required, optional, none"),
        ("rediss://127.0.0.1/0?ssl_check_hostname=no", "true or false"),
    ],
)
def test_options_that_would_be_ignored_are_refused(url: str, said: str) -> None:
    for variable in ("DAYCAP_REDIS_URL", "DAYCAP_BROKER_URL"):
        with pytest.raises(InvalidSetting, match=f"{variable}.*{said}"):
            Settings.from_env({variable: url})
