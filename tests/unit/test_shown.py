"""What a person sees in a shell: the version, and what a wallet is."""

from __future__ import annotations

import asyncio
import importlib.metadata

import pytest

import daycap
from daycap import AsyncWallet, Settings, Wallet
from daycap.urls import without_secrets

SERVERS = Settings(
    redis_url="rediss://me:s3cret@127.0.0.1:1/3?ssl_cert_reqs=none",
    broker_url="redis://127.0.0.1:1/4?username=me&password=s3cret",
)


def test_version_is_the_package_s() -> None:
    assert daycap.__version__ == importlib.metadata.version("daycap")
    with pytest.raises(AttributeError, match="no attribute 'verzion'"):
        daycap.verzion  # noqa: B018


def test_repr_of_a_wallet() -> None:
    wallet = Wallet.from_env(caps={"agent-7": 100}, environ={})
    assert repr(wallet) == "<Wallet counter=memory broker=none open live_holds=0>"
    with wallet, wallet.reserve("agent-7", 1):
        assert repr(wallet) == "<Wallet counter=memory broker=none open live_holds=1>"
    assert repr(wallet) == "<Wallet counter=memory broker=none closed live_holds=0>"


def test_repr_of_an_async_wallet() -> None:
    async def main() -> list[str]:
        wallet = AsyncWallet.from_env(caps={"agent-7": 100}, environ={})
        async with wallet:
            with await wallet.reserve("agent-7", 1):
                live = repr(wallet)
        return [live, repr(wallet)]

    assert asyncio.run(main()) == [
        "<AsyncWallet counter=memory broker=none open live_holds=1>",
        "<AsyncWallet counter=memory broker=none closed live_holds=0>",
    ]


@pytest.mark.parametrize("kind", [Wallet, AsyncWallet])
def test_repr_hides_credentials(kind: type[Wallet | AsyncWallet]) -> None:
    shown = repr(kind.from_settings(SERVERS))
    assert shown == f"<{kind.__name__} counter=rediss://127.0.0.1:1/3 broker=redis://127.0.0.1:1/4 open live_holds=0>"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://me:s3cret@[::1]:5672/shop", "amqp://[::1]:5672/shop"),
        ("redis://:a%40b@host", "redis://host"),
        ("unix:///run/redis.sock?password=s3cret&db=1", "unix:///run/redis.sock"),
    ],
)
def test_shown_url_has_no_secret(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
