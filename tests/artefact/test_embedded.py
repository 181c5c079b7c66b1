"""The wheel with a SQLite file of its own: two runs, killed in between, and the commands on the file."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.artefact.conftest import Install

SPEND = """
import os, sys
from daycap import Wallet, usd
wallet = Wallet.from_env()
wallet.add_agent("agent-7", usd(5))
print(wallet.spent("agent-7").micros, flush=True)
wallet.reserve("agent-7", 50_000).finalize(31_200)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), 9)
assert wallet.close() == ()
"""

IN_A_LOOP = """
import asyncio
from daycap import AsyncWallet, usd

async def main():
    async with AsyncWallet.from_env() as wallet:
        await wallet.add_agent("agent-7", usd(5))
        print((await wallet.spent("agent-7")).micros)

asyncio.run(main())
"""


def test_second_run_knows_what_the_first_spent(install: Install, tmp_path: Path) -> None:
    installed, env = install("ledger"), {"DAYCAP_LEDGER_URL": f"sqlite:///{tmp_path / 'spend.db'}"}
    assert installed.python(SPEND, "kill", env=env, status=-signal.SIGKILL) == "0\n"
    assert installed.python(SPEND, "close", env=env) == "31200\n"
    assert installed.python(IN_A_LOOP, env=env) == "62400\n"


def test_commands_work_on_the_file(install: Install, tmp_path: Path) -> None:
    installed, env = install("cli"), {"DAYCAP_LEDGER_URL": f"sqlite:///{tmp_path / 'spend.db'}"}

    def daycap(*words: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(installed.run("daycap", *words, "--json", env=env))
        return found

    assert "create it with: daycap agent add" in installed.run("daycap", "agent", "list", env=env, status=1)
    assert daycap("agent", "add", "agent-7", "--cap", "5")[0]["daily_cap_micros"] == 5_000_000
    assert "exists already" in installed.run("daycap", "agent", "add", "agent-7", "--cap", "5", env=env, status=1)
    installed.python(SPEND, "close", env=env)

    assert daycap("cap", "set", "agent-7", "8")[0]["cap_micros"] == 8_000_000
    assert daycap("pause", "agent-7")[0]["status"] == "paused"
    assert daycap("resume", "agent-7")[0]["status"] == "active"
    for words in (("agent", "list"), ("status", "agent-7")):
        (shown,) = daycap(*words)
        assert (shown["agent"], shown["spent_micros"]) == ("agent-7", 31_200)
    assert "no difference" in installed.run("daycap", "audit", env=env)
    assert daycap("dead-letters", "list") == []
    assert "there is no such agent" in installed.run("daycap", "pause", "nobody", env=env, status=1)
    assert "needs a worker" in installed.run("daycap", "dead-letters", "replay", "--all", env=env, status=1)
