"""Where a worker serves its metrics."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from daycap.errors import InvalidSetting
from daycap.ledger.engine import Ledger
from daycap.settings import Settings
from demo.local_server import free_port
from tests.migrated import migrated_sqlite
from worker import metrics


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{migrated_sqlite(tmp_path / 'ledger.sqlite3')}")
    yield ledger
    ledger.close()


def answers(address: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=5) as page:
            return b"daycap_dead_letters 0.0" in page.read()
    except OSError:
        return False


def test_metrics_are_for_this_host_only(ledger: Ledger) -> None:
    port = free_port()
    metrics.serve(Settings.from_env({}).metrics_address, port, ledger)
    assert answers("127.0.0.1", port)
    assert not answers("127.0.0.2", port)


def test_another_address_can_be_set(ledger: Ledger) -> None:
    port = free_port()
    metrics.serve(Settings.from_env({"DAYCAP_METRICS_ADDRESS": "0.0.0.0"}).metrics_address, port, ledger)
    assert answers("127.0.0.2", port)


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.1", "no-such-host.invalid"])
def test_what_cannot_listen_is_said(ledger: Ledger, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSetting, match=f"DAYCAP_METRICS_ADDRESS={address}, DAYCAP_METRICS_PORT={port}"):
            metrics.serve(address, port, ledger)
