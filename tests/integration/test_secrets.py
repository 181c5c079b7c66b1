"""Passwords of URLs are in no output: of worker, runner, commands, migrations, when all works and when nothing does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daycap import InvalidSetting, Settings
from demo.local_server import LocalServer, free_port
from tests.processes import ROOT, LocalWorker
from tests.spine import wait_for

SECRET = "hunter2-s3cret"
"""One word, so that a part of it is found too."""

RUNNER = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from daycap import Settings, Wallet
print(repr(Settings.from_env()))
wallet = Wallet.from_env()
print(vars(wallet))
try:
    wallet.reserve("agent-7", 50_000).finalize(31_200)
except Exception:
    logging.exception("reserve")
try:
    print(wallet.remaining("agent-7"))
except Exception:
    logging.exception("remaining")
wallet._sender.open_day("agent-7", "2026-01-01")
print(wallet.flush(1.5), wallet._sender.backlog())
wallet.close(0.1)
"""
"""A runner that shows all it can: at level DEBUG, with tracebacks and every repr."""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    server = LocalServer("--requirepass", SECRET).start()
    yield server
    server.stop()


def urls(redis_port: int, broker_port: int, ledger: str, password: str = SECRET) -> dict[str, str]:
    return {
        "DAYCAP_REDIS_URL": f"redis://:{password}@127.0.0.1:{redis_port}/0",
        "DAYCAP_BROKER_URL": f"redis://:{password}@127.0.0.1:{broker_port}/1",
        "DAYCAP_LEDGER_URL": ledger,
    }


def output(*words: str, environment: dict[str, str]) -> str:
    """All that a process says, however it ends."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DAYCAP_")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout + done.stderr


def everything(environment: dict[str, str]) -> dict[str, str]:
    """What each part says in this environment."""
    commands = {
        "runner": ("-c", RUNNER),
        "migrations": ("-m", "alembic", "upgrade", "head"),
        "doctor": ("-m", "daycap", "doctor", "--json"),
        "report": ("-m", "celery", "-A", "worker", "report"),
    }
    with ThreadPoolExecutor(3) as some:
        said = some.map(lambda words: output(*words, environment=environment), commands.values())
        return dict(zip(commands, said, strict=True))


def assert_nowhere(said: dict[str, str]) -> None:
    for part, text in said.items():
        assert SECRET not in text, f"{part}: {text}"


def test_no_password_is_shown_where_everything_works(server: LocalServer, empty_ledger: Path, tmp_path: Path) -> None:
    ledger = shutil.copy(empty_ledger, tmp_path / "ledger.sqlite3")
    environment = urls(server.port, server.port, f"sqlite:///{ledger}")
    worker = LocalWorker(tmp_path, environment)
    try:
        worker.ready()
        output("-m", "daycap", "agent", "add", "agent-7", "--cap", "5", environment=environment)
        said = everything(environment)
        assert "tier='redis'" in said["runner"]
        said["inspect"] = output("-m", "celery", "-A", "worker", "inspect", "conf", "--json", environment=environment)
        assert "broker_url" in said["inspect"]

        # And where the server goes away while the worker runs
        server.stop()
        wait_for(lambda: "refused" in worker.logs())
    finally:
        worker.teardown()
        server.start()
    assert_nowhere({**said, "worker": worker.logs()})


@pytest.mark.parametrize("broken", ["wrong port", "wrong password, ledger away", "unreadable"])
def test_no_password_is_shown_where_nothing_works(
    server: LocalServer, empty_ledger: Path, tmp_path: Path, broken: str
) -> None:
    port, nobody = server.port, free_port()
    ledger = f"sqlite:///{shutil.copy(empty_ledger, tmp_path / 'ledger.sqlite3')}"
    away = f"postgresql://daycap:{SECRET}@127.0.0.1:{nobody}/daycap"
    environment = {
        "wrong port": urls(nobody, nobody, ledger),
        "wrong password, ledger away": urls(port, port, away, f"{SECRET}-wrong"),
        "unreadable": urls(port, port, away.replace("@", "/@"), f"{SECRET}/"),
    }[broken]

    said = everything(environment)
    worker = LocalWorker(tmp_path, environment)
    try:
        wait_for(lambda: worker.status == "exited" or "refused" in worker.logs() or "invalid" in worker.logs())
    finally:
        worker.teardown()

    assert_nowhere({**said, "worker": worker.logs()})


@pytest.mark.parametrize("variable", ["DAYCAP_REDIS_URL", "DAYCAP_BROKER_URL", "DAYCAP_LEDGER_URL"])
@pytest.mark.parametrize("password", ["a/b", "a#b", "a?b", "[a"])
def test_a_url_that_cannot_be_read_says_what_to_write(variable: str, password: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{variable}.*%2F") as refused:
        Settings.from_env({variable: f"redis://:{SECRET}{password}@127.0.0.1:6379/0"})
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_no_url_is_in_the_repr_of_settings() -> None:
    settings = Settings.from_env(urls(1, 1, f"postgresql://daycap:{SECRET}@127.0.0.1/daycap"))
    assert SECRET in settings.redis_url
    assert SECRET not in repr(settings)
