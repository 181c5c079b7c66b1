"""The wheel and a worker in environments of their own settle real money; what is missing is named."""

from __future__ import annotations

import json
import urllib.request
import zipfile
from pathlib import Path

import pytest

from demo.local_server import free_port
from tests.artefact.conftest import Install, Installed, Started, pythons
from tests.processes import ROOT, procfile
from tests.spine import wait_for

SPEND = """
import asyncio, sys
import daycap
assert "site-packages" in daycap.__file__, daycap.__file__

def of_threads():
    with daycap.Wallet.from_env() as wallet:
        wallet.reserve("agent-7", 50_000).finalize(31_200)
        return wallet.flush(30)

async def of_a_loop():
    async with daycap.AsyncWallet.from_env() as wallet:
        (await wallet.reserve("agent-7", 50_000)).finalize(31_200)
        return await wallet.flush(30)

assert of_threads() == ()
assert asyncio.run(of_a_loop()) == ()
print(sorted({name.partition(".")[0] for name in sys.modules} & {"sqlalchemy", "genai_prices", "alembic"}))
"""
ADD = "daycap.add_agents", {"caps": {"agent-7": 1_000_000}, "changed_by": "test"}


def test_the_wheel_contains_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    scripts = {f"daycap/counters/scripts/{verb}.lua" for verb in ("sync", "publish", "read")}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"daycap"}
    assert {"daycap/py.typed", *scripts} <= {*names}


def settle(runner: Installed, worker: Installed, checkout: Path, env: dict[str, str], directory: Path) -> None:
    """A runner of one installation spends on both faces, a worker of another one settles it and ends well."""
    worker.run("alembic", "upgrade", "head", env=env, directory=checkout)
    process = Started(worker, checkout, directory, env, " ready.", *procfile("worker"))
    try:
        process.ready()
        ask = "from worker.celery import app; app.send_task({!r}, kwargs={!r}).get(timeout=20)".format(*ADD)
        worker.run("python", "-c", ask, env=env, directory=checkout)
        without_ledger = {name: value for name, value in env.items() if name != "DAYCAP_LEDGER_URL"}
        assert runner.python(SPEND, env=without_ledger) == "[]\n"
        read = (
            "import os, daycap; from daycap.ledger.reader import LedgerReader as Reader; from daycap.clock import *\n"
            "day = day_of(wall_ms()); print(Reader(os.environ['DAYCAP_LEDGER_URL']).rows([('agent-7', day)])[0])"
        )
        assert "spent_micros=62400" in worker.run("python", "-c", read, env=env, directory=checkout)
        assert process.end() == 0
        assert "Traceback" not in process.logs()
    finally:
        process.teardown()


@pytest.mark.parametrize("python", pythons(), ids=lambda path: Path(path).parent.parent.name)
def test_the_library_alone_settles(
    python: str, install: Install, sync: Install, deployed: dict[str, str], tmp_path: Path
) -> None:
    settle(install(python=python), sync("worker"), ROOT, deployed, tmp_path)


def test_the_oldest_versions_settle(install: Install, deployed: dict[str, str], checkout: Path, tmp_path: Path) -> None:
    oldest = "lowest-direct"
    settle(install(resolution=oldest), install("worker", resolution=oldest), checkout, deployed, tmp_path)


# --- commands ---------------------------------------------------------------------------------------------


def test_commands_and_flower_work_as_they_are_installed(
    sync: Install, deployed: dict[str, str], tmp_path: Path
) -> None:
    installed, env = sync("cli", "flower"), deployed | {"DAYCAP_FLOWER_PORT": str(free_port())}
    installed.run("alembic", "upgrade", "head", env=env, directory=ROOT)
    worker = Started(installed, ROOT, tmp_path, env, " ready.", *procfile("worker"))
    flower = Started(installed, ROOT, tmp_path, env, "Visit me at", *procfile("flower"))
    beat = Started(installed, ROOT, tmp_path, env, "beat: Starting", *procfile("beat"))
    try:
        worker.ready()
        installed.run("daycap", "agent", "add", "agent-7", "--cap", "1", env=env)
        (agent,) = json.loads(installed.run("daycap", "agent", "list", "--json", env=env))
        assert agent["agent"] == "agent-7"
        assert installed.run("daycap", "doctor", env=env)
        flower.ready()
        with urllib.request.urlopen(f"http://127.0.0.1:{env['DAYCAP_FLOWER_PORT']}/healthcheck", timeout=20) as answer:
            assert answer.status == 200
        beat.ready()
        wait_for(lambda: beat.status == "running")
    finally:
        for process in (flower, beat, worker):
            process.teardown()


def test_a_command_says_what_it_misses(install: Install, sync: Install) -> None:
    advice = 'which is not installed: pip install "daycap[cli]"'
    assert advice in install().run("daycap", "status", status=1)
    assert f"needs rich, {advice}" in sync("worker").run("daycap", "status", status=1)


def test_the_command_works_from_the_wheel(install: Install) -> None:
    command = install("cli")
    assert "set DAYCAP_BROKER_URL" in command.run("daycap", "status", status=1)
    assert "needs daycap's source checkout" in command.run("daycap", "run", status=1)


# --- extras -----------------------------------------------------------------------------------------------

USES = {
    "prices": """
import daycap.prices
daycap.prices.Prices.default().worst_case_micros("gpt-4o", input_tokens=1, max_output_tokens=1)
""",
    "litellm": "from daycap.litellm import Metered",
    "httpx": """
import daycap
from daycap.httpx_transport import MeteredTransport
wallet = daycap.Wallet.from_env(caps={"agent-7": 10**6})
transport = MeteredTransport(wallet, "agent-7", provider="openai")
import httpx2
body = {"model": "gpt-4o", "messages": [], "max_completion_tokens": 1}
try:
    httpx2.Client(transport=transport).post("http://127.0.0.1:1/v1/chat/completions", json=body)
except httpx2.ConnectError:
    assert wallet.stats().live_holds == 0
""",
    "identity": """
from daycap.identity import account_address
one, two = "0x" + "1" * 40, "0x" + "2" * 40
account_address(implementation=one, salt=bytes(32), chain_id=1, token_contract=two, token_id=7)
""",
    "ledger": """
from daycap import LedgerUnavailable, Wallet
wallet = Wallet.from_env(environ={"DAYCAP_LEDGER_URL": "postgresql://127.0.0.1:1/x"})
try:
    wallet.verify_identity_binding("agent-7", "did:web:example.com")
except LedgerUnavailable:
    pass
""",
}
"""A program for each extra that needs it."""


@pytest.mark.parametrize("extra", USES)
def test_an_extra_brings_what_it_needs(extra: str, install: Install) -> None:
    install(extra).python(USES[extra])


def test_the_oldest_versions_of_extras_work(install: Install) -> None:
    """Together: no two of them ask for one package in different versions."""
    extras = sorted({*USES} - {"litellm"})  # Its oldest version alone takes longer to fetch than all else here.
    installed = install(*extras, resolution="lowest-direct")
    for extra in extras:
        installed.python(USES[extra])


@pytest.mark.parametrize("extra", USES)
def test_an_extra_that_is_missing_is_named(extra: str, install: Install) -> None:
    assert f'pip install "daycap[{extra}]"' in install().python(USES[extra], status=1)
