"""daycap budget, group and apply, on a ledger of this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from click.testing import CliRunner

from daycap.cli.main import cli
from tests.migrated import migrated_sqlite

Run = Callable[..., Any]

FILE = """
[groups.research]
agents = ["agent-7"]

[budgets.research-month]
group = "research"
cap = 500.25
period = "month"
zone = "Europe/Zurich"
hour = 4
labels = { model = "gpt-4o*", tool = ["search", "browse"] }
"""


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with two agents, to be copied."""
    file = migrated_sqlite(tmp_path_factory.mktemp("ledger") / "spend.db")
    for agent in ("agent-7", "agent-8"):
        environment = {"DAYCAP_LEDGER_URL": f"sqlite:///{file}"}
        assert CliRunner(env=environment).invoke(cli, ["agent", "add", agent, "--cap", "5"]).exit_code == 0
    return file


@pytest.fixture
def run(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; returns what it says, decoded if it was asked for JSON."""
    (tmp_path / "spend.db").write_bytes(ledger.read_bytes())
    monkeypatch.setenv("DAYCAP_LEDGER_URL", f"sqlite:///{tmp_path}/spend.db")
    monkeypatch.chdir(tmp_path)

    def command(line: str, status: int = 0) -> Any:
        words = line.split()
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == status, result.output
        return json.loads(result.stdout) if "--json" in words else " ".join(result.output.split())

    return command


def test_a_budget_from_the_shell(run: Run) -> None:
    run("group add research agent-7")
    line = "budget add research-month --group research --cap 500 --period month --zone Europe/Zurich --hour 4"
    (added,) = run(f"{line} --monthday 5 --label model=gpt-4o*,o3 --label tool=a --label tool=b --mode watch --json")
    assert added["period"] == {"period": "month", "zone": "Europe/Zurich", "hour": 4, "monthday": 5}
    assert added["labels"] == {"model": ["gpt-4o*", "o3"], "tool": ["a", "b"]}
    assert (added["cap_micros"], added["mode"], added["group"]) == (500_000_000, "watch", "research")
    assert run("budget show research-month --json") == run("budget list --json") == [added]
    assert run("budget list --agent agent-7 --json") == run("budget list --group research --json") == [added]
    assert run("budget list --agent agent-8 --json") == []
    said = run("budget list")
    assert "$500.00" in said
    assert "watch" in said


def test_a_budget_is_changed(run: Run) -> None:
    run("budget add tools --agent agent-7 --cap 2 --label tool=search")
    assert "starts again" not in run("budget set tools --cap 3 --reason because")
    assert "starts again with nothing spent" in run("budget set tools --all-calls")
    (week,) = run("budget set tools --period week --weekday Sunday --json")
    assert (week["budget"], week["cap_micros"], week["labels"]) == ("tools/3", 3_000_000, {})
    assert week["period"] == {"period": "week", "weekday": 7}
    said = run("budget history tools")
    for what in ("added: $2.00 per day, agent agent-7", "$2.00 -> $3.00", "because", "week, from Sunday"):
        assert what in said
    run("budget remove tools --reason over")
    assert "there is no such budget" in run("budget show tools", status=1)
    assert run("budget history tools --json")[-1]["reason"] == "over"


def test_a_groups_life(run: Run) -> None:
    run("group add inner agent-7")
    (outer,) = run("group add outer agent-8 --group inner --json")
    assert outer == {"group": "outer", "agents": ["agent-8"], "groups": ["inner"], "budgets": []}
    assert run("group join outer agent-7 --json")[0]["agents"] == ["agent-7", "agent-8"]
    assert run("group leave outer agent-7 agent-8 --group inner --json")[0]["groups"] == []
    assert "inner" in run("group list")
    assert "agents agent-7 joined" in run("budget history outer --of-group")
    run("group remove outer")
    assert [each["group"] for each in run("group list --json")] == ["inner"]


def test_caps_are_raised_for_a_while(run: Run) -> None:
    run("budget add month --agent agent-7 --cap 100 --period month")
    (day,) = run("cap raise agent-7 --by 5 --for 30m --reason demo --who ann --json")
    assert (day["amount_micros"], day["cap_micros"], day["until_ms"]) == (5_000_000, 10_000_000, ANY)
    assert (day["reason"], day["raised_by"]) == ("demo", "ann")
    until = (datetime.now().astimezone() + timedelta(minutes=1)).isoformat()
    (month,) = run(f"budget raise month --by 20 --until {until} --json")
    assert month["until_ms"] == round(datetime.fromisoformat(until).timestamp() * 1000)
    assert month["cap_micros"] == 120_000_000
    assert [each["id"] for each in run("cap raises --json")] == [month["id"], day["id"]]
    assert run("budget raises month --json") == [month]
    assert "budget month" in run("cap raises")
    assert run("agent show agent-7 --json")[0]["cap_micros"] == 10_000_000
    assert run("budget show month --json")[0]["period_cap_micros"] == 120_000_000
    assert "raised no -> by $20.00 (raise)" in run("budget history month")

    assert run(f"cap cancel {month['id']} --who bob --json")[0]["ended_by"] == "bob"
    assert run("budget show month --json")[0]["period_cap_micros"] == 100_000_000
    assert run("cap raises agent-7 --json") == [day]
    assert "ended" in run("budget raises month --all")


def test_what_is_left_is_carried_over(run: Run, tmp_path: Path) -> None:
    (month,) = run("budget add month --agent agent-7 --cap 100 --period month --carry-over 20 --json")
    assert month["carry_over_micros"] == 20_000_000
    run("budget set month --carry-over 30")
    assert "carry over $20.00 -> $30.00" in run("budget history month")
    (tmp_path / "budgets.toml").write_text(
        "[budgets.month]\nagent = 'agent-7'\ncap = 100\nperiod = 'month'\ncarry_over = 40"
    )
    assert "carry over $30.00 -> $40.00" in run("apply budgets.toml --yes")
    (tmp_path / "budgets.toml").write_text("[budgets.x]\nagent = 'agent-7'\ncap = 1\ncarry_over = -1")
    assert "budgets.x.carry_over: " in run("apply budgets.toml --yes", 1)
    run("budget add week --agent agent-7 --cap 9 --period week --carry-over 1")
    assert "carry over up to $1.00" in run("budget history week")


def test_caps_are_reset(run: Run) -> None:
    run("budget add month --agent agent-7 --cap 100 --period month")
    assert run("cap reset agent-7 --reason demo --json")[0]["kind"] == "reset"
    assert run("budget reset month --json")[0]["until_ms"] is None
    assert "reset +$0.00" in run("cap raises")


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("cap raise agent-9 --by 1", 1, "agent agent-9: there is no such agent"),
        ("budget raise x --by 1", 1, "x: there is no such budget"),
        ("cap raise agent-7 --by 0", 1, "raise the cap by more than nothing"),
        ("cap raise agent-7 --by 1 --until 2001-01-01T10:00", 2, "2001-01-01T10:00 is over"),
        ("cap raise agent-7 --by 1 --until noon", 2, "'noon' is neither a time of today such as 18:00"),
        ("cap raise agent-7 --by 1 --for 2", 2, "'2' is not a duration such as 30m, 2h or 1d"),
        ("cap raise agent-7 --by 1 --for 2h --until 2099-01-01T00:00", 2, "either --until or --for"),
        ("cap cancel 7", 1, "there is no raise 7; see: daycap cap raises"),
        ("budget reset x", 1, "x: there is no such budget"),
        ("budget add x --agent agent-9 --cap 1", 1, "agent agent-9: there is no such agent"),
        ("budget add x --group none --cap 1", 1, "none: there is no such group; add it with: daycap group add"),
        ("budget add x --cap 1", 1, "budget x: it needs either an agent or a group"),
        ("budget add x --agent agent-7 --cap -1", 2, "not an amount"),
        ("budget add x --agent agent-7 --cap 1 --zone Europe/Zurich", 2, "--zone needs --period"),
        ("budget add x --agent agent-7 --cap 1 --period day --zone Mars", 1, "unknown time zone 'Mars'"),
        ("budget add x --agent agent-7 --cap 1 --period fortnight", 1, "unknown period 'fortnight'"),
        ("budget add x --agent agent-7 --cap 1 --period week --weekday someday", 2, "neither a day"),
        ("budget add x --agent agent-7 --cap 1 --label model", 2, "'model' is not KEY=VALUE"),
        ("budget set x --cap 1", 1, "x: there is no such budget; add it with: daycap budget add"),
        ("budget set x", 2, "nothing to change"),
        ("budget set x --all-calls --label a=b", 2, "either --label or --all-calls"),
        ("group join none agent-7", 1, "none: there is no such group"),
        ("group add g agent-9", 1, "there is no such agent"),
    ],
)
def test_mistakes_are_named(run: Run, line: str, status: int, message: str) -> None:
    assert message in run(line, status)


def test_apply_asks_first(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "budgets.toml").write_text(FILE)
    said = run("apply budgets.toml", 1)
    assert "+ group research: agents agent-7" in said
    assert (
        "+ budget research-month: $500.25 per month, Europe/Zurich, from 04:00, group research, model=gpt-4o*" in said
    )
    assert "2 to add, 0 to change, 0 to remove" in said
    assert "there is no terminal to ask on; give --yes" in said
    assert "2 to add" in run("apply budgets.toml --dry-run")
    assert run("group list --json") == []

    monkeypatch.setattr("daycap.cli.apply._has_terminal", lambda: True)
    assert CliRunner().invoke(cli, ["apply", "budgets.toml"], input="n\n").exit_code == 1
    assert run("group list --json") == []
    assert CliRunner().invoke(cli, ["apply", "budgets.toml"], input="y\n").exit_code == 0
    assert "Nothing to change." in run("apply budgets.toml")


def test_apply_shows_every_difference(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "budgets.toml"
    file.write_text(FILE)
    assert run("apply budgets.toml --yes --json")["done"]
    run("group add other")
    file.write_text(FILE.replace("500.25", '"600"').replace("hour = 4\n", "").replace("agent-7", "agent-8"))
    said = run("apply budgets.toml --dry-run")
    assert "~ group research: agents agent-7 left; agents agent-8 joined" in said
    assert "cap $500.25 -> $600.00; per month, Europe/Zurich, from 04:00 -> month, Europe/Zurich" in said
    assert "it starts again with nothing spent" in said
    assert "not in the file, and kept (--prune removes them): group other" in said
    assert "- group other: no members" in run("apply budgets.toml --yes --prune --reason planned")
    assert run("budget history research-month --json")[-1]["reason"] == "planned"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[budget.x]", "budget: unknown key; known are groups, budgets"),
        ("[budgets.x]\ncap = 1\nagnet = 'a'", "budgets.x.agnet: unknown key; known are agent, group, cap"),
        ("[budgets.x]\nagent = 'agent-7'", "budgets.x.cap: missing"),
        ("[budgets.x]\nagent = 'agent-7'\ncap = -1", "budgets.x.cap: "),
        ("[budgets.x]\nagent = 'agent-7'\ncap = true", "budgets.x.cap: not an amount"),
        ("[budgets.x]\nagent = 'agent-7'\ncap = 1\nhour = 4", "budgets.x.hour: needs budgets.x.period"),
        ("[budgets.x]\nagent = 'agent-7'\ncap = 1\nperiod = 'day'\nhour = '4'", "budgets.x.hour: not a whole number"),
        ("[budgets.x]\nagent = 7\ncap = 1", "budgets.x.agent: not a text"),
        ("[budgets.x]\nagent = 'agent-7'\ncap = 1\nlabels = {tool = 5}", "budgets.x.labels.tool: not a list"),
        ("[groups.x]\nagent = ['agent-7']", "groups.x.agent: unknown key; known are agents, groups"),
        ("[groups.x]\nagents = [7]", "groups.x.agents: not a list of texts"),
        ("[groups]\nx = 5", "groups.x: not a table"),
        ("groups", "not TOML"),
        ("[budgets.x]\nagent = 'agent-7'\ncap = 1\nmode = 'stop'", "budget x: mode is enforce or watch"),
    ],
)
def test_mistakes_in_a_file_are_named(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "budgets.toml").write_text(text)
    assert message in run("apply budgets.toml --yes", 1)
