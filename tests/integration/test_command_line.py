"""The command daycap, as a process, against a real worker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from daycap.cli.main import cli
from daycap.identity import REGISTRY, salt_of
from demo.local_server import LocalServer, free_port
from tests.events import event
from tests.processes import run_daycap as run
from tests.spine import Spine

Daycap = Callable[..., Any]


@pytest.fixture
def daycap(spine: Spine) -> Daycap:
    """Run a command with --json and decode what it says."""
    without_ledger = {name: value for name, value in spine.environment.items() if name != "DAYCAP_LEDGER_URL"}
    return lambda *words, **options: json.loads(run(*words, "--json", environment=without_ledger, **options))


def test_an_agents_life(spine: Spine, daycap: Daycap) -> None:
    (added,) = daycap("agent", "add", "agent-7", "--cap", "5.00")
    assert (added["agent"], added["daily_cap_micros"], added["status"]) == ("agent-7", 5_000_000, "active")
    (changed,) = daycap("cap", "set", "agent-7", "7.50", "--by", "ann")
    assert changed["cap_micros"] == 7_500_000
    assert daycap("pause", "agent-7")[0]["status"] == "paused"
    assert daycap("resume", "agent-7")[0]["status"] == "active"
    assert daycap("agent", "show", "agent-7") == daycap("agent", "list") == [{**changed, "identity_anchor": None}]
    assert [row["changed_by"] for row in spine.rows("SELECT changed_by FROM cap_changes")][1] == "ann"


def test_an_agents_identity(spine: Spine, daycap: Daycap) -> None:
    # Given an agent with an anchor, and one that gets one later
    (added,) = daycap("agent", "add", "agent-7", "--cap", "5", "--anchor", "did:web:example.com#7")
    assert added["identity_anchor"] == "did:web:example.com#7"
    spine.add("agent-8", 5_000_000)
    daycap("agent", "anchor", "agent-8", "did:web:example.com#8")
    assert "did:web:example.com#8" in run("agent", "list", environment=spine.environment)

    # Then its account is where the anchor says, or a salt that is given
    token = ("--chain-id", "5", "--token-contract", "0x7a77F2cFB02546F217d39157471d5B5914DD7644", "--token-id", "0x1")
    where = ("--implementation", "0x2D25602551487C3f3354dD80D76D54383A243358", *token)
    derived = daycap("agent", "address", "agent-7", *where)
    assert (derived["anchor"], derived["token_id"]) == ("did:web:example.com#7", "1")
    assert derived["salt"] == "0x" + salt_of("did:web:example.com#7").hex()
    said = run("agent", "address", "agent-7", *where, environment=spine.environment)
    assert said.strip() == derived["address"]
    registry = ("--registry", "0x02101dfB77FDE026414827Fdc604ddAF224F0921")
    given = daycap("agent", "address", "agent-7", *where, "--salt", "0x" + "00" * 32, *registry)
    assert (given["anchor"], given["address"]) == (None, "0x5194b1c04Ed6464b3225324d6794f7d2698D8d1c")

    # And a runner that is bound to it holds no money of another's
    bound = {"DAYCAP_IDENTITY_ANCHOR": "did:web:example.com#7", **spine.environment}
    run("reserve", "agent-7", "0.05", environment=bound)
    assert "DAYCAP_IDENTITY_ANCHOR" in run("reserve", "agent-8", "0.05", environment=bound, status=1)
    assert [row["leased_micros"] for row in daycap("status")] == [50_000, 0]

    # When it is rotated, who and when stay on record
    daycap("agent", "anchor", "agent-7", "did:key:new", "--rotate", "--by", "ann")
    first, second = daycap("agent", "anchor", "agent-7")
    assert (second["old_anchor"], second["changed_by"]) == ("did:web:example.com#7", "ann")
    assert first["changed_at_ms"] <= second["changed_at_ms"]
    assert "did:key:new" in run("agent", "anchor", "agent-7", environment=spine.environment)
    assert "this wallet is bound to" in run("reserve", "agent-7", "0.05", environment=bound, status=1)


def test_what_is_wrong_with_an_identity_is_said(spine: Spine) -> None:
    spine.ask("daycap.add_agents", caps={"agent-7": 1, "agent-8": 1}, changed_by="test", anchors={"agent-7": "seven"})
    token = ("--chain-id", "5", "--token-contract", "0x7a77F2cFB02546F217d39157471d5B5914DD7644")
    where = ("--implementation", "0x2D25602551487C3f3354dD80D76D54383A243358", *token, "--token-id")
    for words, message, status in (
        (("anchor", "agent-8", "seven"), "belongs or belonged to another agent", 1),
        (("anchor", "agent-7", "--rotate"), "--rotate needs the new ANCHOR", 2),
        (("add", "agent-9", "--cap", "5", "--anchor", " nine"), "without leading or trailing space", 1),
        (("address", "agent-8", *where, "1"), "has no identity anchor", 1),
        (("address", "agent-7", *where, "one"), "not a whole number", 2),
        (("address", "agent-7", *where, "1", "--salt", "0x00"), "not 32 bytes in hex", 2),
        (("address", "agent-7", *where, "1", "--registry", REGISTRY.lower()[:-1] + "A"), "wrong checksum", 1),
    ):
        said = run("agent", *words, environment=spine.environment, status=status)
        assert message in " ".join(said.split())
        assert "Traceback" not in said


def test_a_budgets_life(spine: Spine, daycap: Daycap, tmp_path: Path) -> None:
    spine.add("agent-7", 5_000_000)
    daycap("group", "add", "team", "agent-7")
    (added,) = daycap("budget", "add", "month", "--group", "team", "--cap", "5", "--period", "month")
    assert (added["budget"], added["cap_micros"], added["period_cap_micros"]) == ("month/1", 5_000_000, 5_000_000)
    (changed,) = daycap("budget", "set", "month", "--cap", "7.50", "--by", "ann", "--reason", "more to do")
    assert daycap("budget", "list", "--agent", "agent-7") == daycap("budget", "show", "month") == [changed]
    assert daycap("budget", "history", "month")[1]["reason"] == "more to do"
    assert spine.rows("SELECT plan_id FROM agent_accounts")[0]["plan_id"] == 1

    file = tmp_path / "budgets.toml"
    file.write_text('[groups.team]\nagents = ["agent-7"]\n[budgets.tool]\nagent = "agent-7"\ncap = 2\n')
    applied = daycap("apply", str(file), "--yes", "--prune")
    assert [(step["action"], step["name"]) for step in applied["steps"]] == [("add", "tool"), ("remove", "month")]
    assert [each["budget"] for each in daycap("budget", "list")] == ["tool/1"]
    assert daycap("group", "list") == [{"group": "team", "agents": ["agent-7"], "groups": [], "budgets": []}]


def test_reserve_status_finalize(spine: Spine, daycap: Daycap) -> None:
    spine.add("agent-7", 5_000_000)

    hold = daycap("reserve", "agent-7", "0.05")
    (status,) = daycap("status")
    assert (status["leased_micros"], status["remaining_micros"], status["counter"]) == (50_000, 4_950_000, "open")
    daycap("finalize", "agent-7", hold["reservation"], "0.0312", "--day", hold["day"], "--held", "0.05")

    spine.wait_for(lambda: spine.day_row("agent-7")["spent_micros"] == 31_200)
    assert daycap("status", "agent-7")[0]["leased_micros"] == 50_000 - 31_200
    assert daycap("audit")["differences"] == []


def test_refusals_end_with_a_message_and_no_traceback(spine: Spine) -> None:
    for words, message in (
        (("agent", "show", "nobody"), "there is no such agent"),
        (("agent", "add", "a b", "--cap", "5"), "not an agent id"),
        (("agent", "add", "a", "--cap", "-1"), "not an amount"),
        (("cap", "set", "nobody", "5"), "there is no such agent"),
        (("reserve", "nobody", "5"), "there is no such agent"),
    ):
        said = run(*words, environment=spine.environment, status=2 if "amount" in message else 1)
        assert message in said
        assert "Traceback" not in said


def test_wrong_settings_are_named(spine: Spine) -> None:
    assert "DAYCAP_BROKER_URL" in run("agent", "list", environment={}, status=1)
    wrong = {**spine.environment, "DAYCAP_SLICE_SECONDS": "soon"}
    assert "DAYCAP_SLICE_SECONDS" in run("reserve", "agent-7", "1", environment=wrong, status=1)


def test_doctor_finds_all_well(spine: Spine, daycap: Daycap) -> None:
    spine.beat()
    findings = daycap("doctor")

    assert {finding["part"] for finding in findings} == {
        "counter",
        "scripts",
        "eviction",
        "clock",
        "broker",
        "worker",
        "ledger",
        "beat",
        "plans",
        "dead letters",
    }
    assert {finding["state"] for finding in findings} == {"ok"}


def test_doctor_sees_a_stopped_beat(
    spine: Spine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def findings() -> list[Any]:
        """In this process, where three intervals and more pass at once."""
        with pytest.raises(SystemExit):
            cli(["doctor", "--json"], standalone_mode=False)
        return [each for each in json.loads(capsys.readouterr().out) if each["part"] == "beat"]

    for name, value in spine.environment.items():
        monkeypatch.setenv(name, value)
    spine.beat()
    (heard,) = findings()
    assert (heard["state"], heard["found"]) == ("ok", "its tasks come: 4 of 4 have, and none is late")

    monkeypatch.setattr("daycap.cli.doctor._BEAT_LATE_S", -30.0)  # What expire, every 10 s, may be late by.
    (stopped,) = findings()
    assert stopped["state"] == "fail"
    assert re.search(r"no worker got daycap.adjust_caps for \d+ s, daycap.expire for \d+ s", stopped["found"])
    assert stopped["advice"] == "celery -A worker beat"


@pytest.mark.parametrize("has_slots", [False, True])
def test_doctor_refuses_a_redis_cluster(tmp_path: Path, has_slots: bool) -> None:
    server = LocalServer("--cluster-enabled", "yes", "--cluster-port", str(free_port()), directory=tmp_path).start()
    with redis.Redis(port=server.port) as client:
        if has_slots:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    environment = {"DAYCAP_REDIS_URL": server.url(), "DAYCAP_BROKER_URL": server.url()}
    findings = json.loads(run("doctor", "--json", environment=environment, status=1))
    server.stop()
    found = {each["part"]: each for each in findings}
    for part, variable in (("counter", "DAYCAP_REDIS_URL"), ("broker", "DAYCAP_BROKER_URL")):
        assert found[part]["state"] == "fail"
        assert found[part]["found"] == "it is a node of a Redis Cluster"
        assert variable in found[part]["advice"]


def test_doctor_says_what_to_do(spine: Spine, tmp_path: Path) -> None:
    spine.redis.config_set("maxmemory-policy", "allkeys-lru")
    said = run("doctor", environment=spine.environment, status=1)
    spine.redis.config_set("maxmemory-policy", "noeviction")
    assert "noeviction" in said

    nothing = {"DAYCAP_REDIS_URL": "redis://127.0.0.1:1/0", "DAYCAP_BROKER_URL": "redis://127.0.0.1:1/1"}
    said = run("doctor", environment=nothing, status=1)
    assert "start Redis" in said
    assert "DAYCAP_BROKER_URL" in said
    assert "Traceback" not in said

    unmigrated = {**spine.environment, "DAYCAP_LEDGER_URL": f"sqlite:///{tmp_path}/empty.sqlite3"}
    said = run("doctor", environment=unmigrated, status=1)
    assert "alembic upgrade head" in said


def test_a_dead_letters_life(spine: Spine, daycap: Daycap) -> None:
    # Given two events of agents that are not there, one of them mistyped, and one that no worker understands
    spine.add("agent-7", 5_000_000)
    mistyped = event("agent-77", spine.today, lease="b" * 32)
    spine.deliver(event("agent-8", spine.today), mistyped, {"v": 99, "agent": "agent-9"})

    letters = daycap("dead-letters", "list")
    assert {letter["kind"] for letter in letters} == {"unknown_agent", "malformed"}
    (late,) = daycap("dead-letters", "list", "--agent", "agent-8", "--kind", "unknown_agent")
    (lost,) = daycap("dead-letters", "list", "--agent", "agent-77")
    assert late["id"][:12] in run("dead-letters", "list", environment=spine.environment)
    assert json.loads(daycap("dead-letters", "show", lost["id"][:8])["payload"]) == mistyped
    assert '"actual": 31200' in run("dead-letters", "show", lost["id"][:8], environment=spine.environment)
    spine.beat()
    assert {"part": "dead letters", "state": "warn"}.items() <= daycap("doctor")[-1].items()

    # When one of the agents is added, its event is charged; the others stay and say why
    spine.add("agent-8", 5_000_000)
    done = {each["id"]: each for each in daycap("dead-letters", "replay", "--all", status=1)}
    assert (done[late["id"]]["became"], done[late["id"]]["charged_micros"]) == ("settled", 31_200)
    assert (done[lost["id"]]["became"], len(done)) == ("unknown_agent", 3)
    assert spine.day_row("agent-8")["spent_micros"] == 31_200
    assert daycap("audit")["differences"] == []
    (again,) = daycap("dead-letters", "replay", lost["id"][:8], status=1)
    assert again["reason"] == "there is no agent agent-77"
    assert daycap("dead-letters", "show", lost["id"])["times"] == 3

    # Then what is left is dropped, by someone, after a question
    assert "for good?" in run("dead-letters", "drop", lost["id"], environment=spine.environment, status=1)
    assert len(daycap("dead-letters", "list")) == 2
    left = [letter["id"][:12] for letter in daycap("dead-letters", "list")]
    assert len(daycap("dead-letters", "drop", *left, "--yes", "--by", "ann@desk")) == 2
    assert "dropped by ann@desk" in spine.worker.logs()
    assert daycap("dead-letters", "list") == []
    assert daycap("dead-letters", "replay", "--all") == []


def test_dead_letters_that_are_not_there_end_with_a_message(spine: Spine) -> None:
    for words, message, status in (
        (("show", "0123abcd"), "there is no such dead letter", 1),
        (("show", "not-an-id"), "not the start of a dead letter's id", 1),
        (("replay",), "or pass --all", 2),
        (("replay", "0123abcd", "--all"), "or pass --all", 2),
        (("drop", "0123abcd", "--yes"), "there is no such dead letter", 1),
        (("list", "--kind", "nonsense"), "nonsense", 2),
    ):
        said = run("dead-letters", *words, environment=spine.environment, status=status)
        assert message in said
        assert "Traceback" not in said


def test_without_a_worker_counter_and_ledger_are_read(spine: Spine) -> None:
    # Given an agent that spent something, and a broker that is away: nobody can be asked
    agent = spine.add("agent-7", 5_000_000)
    with spine.wallet() as wallet:
        wallet.reserve(agent, 50_000).finalize(31_200)
    alone = {**spine.environment, "DAYCAP_BROKER_URL": "redis://127.0.0.1:1/1"}

    # Then what is shown is the same, and it is said where it comes from
    for words, figures in (
        (("status",), ("agent-7", "$0.0312", "$4.9688", "open")),
        (("agent", "show", "agent-7"), ("agent-7", "$5.00", "$0.0312")),
    ):
        said = run(*words, environment=alone)
        assert "read directly from DAYCAP_LEDGER_URL" in said
        assert all(figure in said for figure in figures), said
    assert "there is no such agent" in run("agent", "show", "nobody", environment=alone, status=1)

    # But nothing is changed, and without the ledger there is nothing to read
    assert "did not answer" in run("pause", "agent-7", environment=alone, status=1)
    without = {name: value for name, value in alone.items() if name != "DAYCAP_LEDGER_URL"}
    assert "did not answer" in run("status", environment=without, status=1)


def test_reading_a_ledger_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "mistyped.sqlite3"
    said = run("status", environment={"DAYCAP_LEDGER_URL": f"sqlite:///{path}"}, status=1)
    assert f"there is no ledger {path}" in said
    assert "Traceback" not in said
    assert not path.exists()


def test_status_says_when_the_counter_is_silent(spine: Spine, daycap: Daycap) -> None:
    spine.add("agent-7", 5_000_000)
    environment = {name: value for name, value in spine.environment.items() if name != "DAYCAP_REDIS_URL"}
    assert "not set" in run("status", environment=environment)
    assert "no answer" in run("status", environment={**environment, "DAYCAP_REDIS_URL": "redis://127.0.0.1:1/0"})
