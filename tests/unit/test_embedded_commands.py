"""The command `daycap` where one process settles into a SQLite file: there is neither worker, broker nor Redis."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from daycap import Settings, Wallet
from daycap.cli.main import cli
from daycap.ledger.dead_letters import DeadLetter, count
from daycap.ledger.engine import Ledger
from daycap.ledger.lock import LedgerLock
from daycap.ledger.settle import keep
from daycap.protocol.dead_letter import Kind

M = 1_000_000

Run = Callable[..., Result]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "spend.db"


@pytest.fixture
def run(file: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with the file's URL, in which the home directory is `~`."""
    monkeypatch.setenv("HOME", str(file.parent))
    monkeypatch.setenv("DAYCAP_LEDGER_URL", f"sqlite:///~/{file.name}")

    def command(*words: str) -> Result:
        return CliRunner().invoke(cli, words)

    return command


@pytest.fixture
def wallet(file: Path) -> Iterator[Wallet]:
    with Wallet.from_settings(Settings(ledger_url=f"sqlite:///{file}")) as wallet:
        yield wallet


def findings(result: Result, status: int = 0) -> dict[str, tuple[str, str]]:
    assert result.exit_code == status, result.output
    return {each["part"]: (each["state"], f"{each['found']}; {each['advice']}") for each in json.loads(result.stdout)}


def test_doctor_needs_no_servers(run: Run, wallet: Wallet, file: Path) -> None:
    wallet.add_agent("agent-7", 5 * M)
    found = findings(run("doctor", "--json"))
    assert {part: state for part, (state, _) in found.items()} == dict.fromkeys(
        ("ledger", "lock", "schema", "today", "plans", "dead letters"), "ok"
    )
    assert str(file) in found["ledger"][1]
    assert "held by a wallet (process " in found["lock"][1]
    assert "open for 1 of 1" in found["today"][1]


def test_doctor_sees_a_wrong_plan(run: Run, wallet: Wallet, file: Path) -> None:
    for agent in ("agent-7", "agent-8"):
        wallet.add_agent(agent, 5 * M)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE agent_accounts SET plan_id = 7 WHERE agent_account_id = 'agent-8'")

    state, text = findings(run("doctor", "--json"), status=1)["plans"]

    assert state == "fail"
    assert "1 of 2 agents have another plan than budgets and groups give: agent-8" in text


def test_doctor_sees_a_free_ledger(run: Run, file: Path) -> None:
    with Wallet.from_settings(Settings(ledger_url=f"sqlite:///{file}")):
        pass
    found = findings(run("doctor", "--json"))
    assert "no wallet is using" in found["lock"][1]
    assert found["today"][0] == "warn"
    assert "daycap agent add" in found["today"][1]


def test_doctor_sees_a_worker(run: Run, file: Path) -> None:
    lock = LedgerLock(file, shared=True)
    lock.take()
    assert "held by a worker (process " in findings(run("doctor", "--json"))["lock"][1]
    lock.release()


def test_doctor_creates_nothing(run: Run, file: Path) -> None:
    found = findings(run("doctor", "--json"))
    assert found["ledger"] == (
        "warn",
        f"{file} does not exist yet; a wallet creates it, or: daycap agent add NAME --cap USD",
    )
    assert list(file.parent.iterdir()) == []


def test_doctor_reports_dead_letters(run: Run, wallet: Wallet, file: Path) -> None:
    kept(file, {"v": 7})
    assert findings(run("doctor", "--json"))["dead letters"][0] == "warn"


@pytest.mark.parametrize(
    ("revision", "status", "state", "text"),
    [
        ("0001", 0, "warn", "the next wallet migrates it"),
        ("9999_since_9999", 1, "fail", "upgrade daycap on this host"),
        ("other", 1, "fail", "not a migration of daycap"),
    ],
)
def test_doctor_checks_the_schema(run: Run, file: Path, revision: str, status: int, state: str, text: str) -> None:
    Wallet.from_settings(Settings(ledger_url=f"sqlite:///{file}")).close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    found = findings(run("doctor", "--json"), status)["schema"]
    assert found[0] == state
    assert text in found[1]


def test_doctor_reports_an_unusable_file(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("This is no database, and much longer than the header of one. " * 50)
    assert "not a database" in json.dumps(findings(run("doctor", "--json"), 1))
    for url, text in ((f"sqlite:///{file}/no/x.db", "no directory"), (f"sqlite:///file:{file}?uri=true", "plain file")):
        monkeypatch.setenv("DAYCAP_LEDGER_URL", url)
        assert text in findings(run("doctor", "--json"), 1)["ledger"][1]


def kept(file: Path, payload: Any) -> DeadLetter:
    letter = DeadLetter(Kind.MALFORMED, "test", payload)
    with closing(Ledger(f"sqlite:///{file}")) as ledger:
        keep(ledger, letter)
    return letter


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
def test_dropping_prints_the_payload(run: Run, wallet: Wallet, file: Path, as_json: bool) -> None:
    letter = kept(file, {"note": "x" * 20_000})
    result = run("dead-letters", "drop", letter.id[:8], "--yes", "--by", "ann@desk", *(["--json"] if as_json else []))
    assert result.exit_code == 0, result.output
    assert result.stderr == f"dead letter {letter.id} (malformed) dropped by ann@desk: {letter.text}\n"
    assert json.loads(result.stdout) == [letter.id] if as_json else "payloads are above" in result.stdout
    with closing(Ledger(f"sqlite:///{file}")) as ledger:
        assert count(ledger) == 0
