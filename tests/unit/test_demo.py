"""The demo's parts: its plan, the naive counter beside daycap, and what the last screen says."""

from __future__ import annotations

import io
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from rich.console import Console

from demo.journal import End, Entry
from demo.journal_audit import Check
from demo.naive import Comparison, NaiveBudget, Outlay, outlay
from demo.plan import Outcome, PlannedCall, make_plan
from demo.prices import OPUS, cost_micros
from demo.report import Result, cents, show_result
from demo.roles import ROLES, agent_name
from demo.trace import Call, synthetic_day
from demo.watch import Tally

ROOT = Path(__file__).resolve().parents[2]
CAP = 1_000_000
CAPS = {"coder": CAP}


def planned(cost: int, estimate: int, outcome: Outcome = Outcome.ANSWERED, duration_s: float = 0) -> PlannedCall:
    return PlannedCall(0, "coder", estimate, cost, duration_s, outcome)


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def naive(redis_url: str) -> Iterator[NaiveBudget]:
    yield NaiveBudget(redis_url, CAPS)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()


def test_agents_have_jobs_and_models() -> None:
    plan = make_plan(synthetic_day(7, 3000), agents=20, runners=2, seconds=10, seed=7)

    assert [agent.agent for agent in plan.agents[:3]] == ["researcher", "coder", "support"]
    assert [agent.model for agent in plan.agents[:3]] == ["claude-opus-4-5", "claude-sonnet-4-5", "gpt-5-mini"]
    assert all(agent.cap_micros % 10_000 == 0 for agent in plan.agents)
    assert plan.calls == 3000
    assert plan == make_plan(synthetic_day(7, 3000), agents=20, runners=2, seconds=10, seed=7)


def test_agent_names_differ() -> None:
    names = [agent_name(rank, "k3fx") for rank in range(3 * len(ROLES))]
    assert len(set(names)) == len(names)
    assert names[len(ROLES)] == "researcher-2-k3fx"


def test_costs_are_the_models_prices() -> None:
    assert cost_micros(OPUS, 1_000, 100) == 1_000 * 5 + 100 * 25


@pytest.mark.parametrize(("chats", "times"), [(True, ROLES[0].reads), (False, 1)])
def test_only_chats_are_multiplied(chats: bool, times: int) -> None:
    calls = [Call(0, 1_000, 0), Call(1, 1_000, 0)]
    plan = make_plan(calls, agents=1, runners=1, seconds=1, seed=7, chats=chats)
    assert [call.actual_micros for call in plan.runners[0]] == [1_000 * 5 * times] * 2


def test_naive_counter_stops_at_the_cap(naive: NaiveBudget, stop: threading.Event) -> None:
    ends = [naive.take(planned(400_000, 500_000), stop) for _ in range(3)]

    assert [entry.end for entry in ends] == [End.FINALIZED, End.FINALIZED, End.REFUSED]
    assert ends[2].stopped_micros == 400_000
    remembered = naive.remembered_micros([("coder", ends[0].day)])
    assert outlay(ends, CAPS, remembered) == Outlay(800_000, 0, 0, 0, 0)


def test_naive_counter_charges_as_daycap_does(naive: NaiveBudget, stop: threading.Event) -> None:
    free = naive.take(planned(400_000, 500_000, Outcome.NOT_SENT), stop)
    failed = naive.take(planned(400_000, 500_000, Outcome.FAILED), stop)

    assert (free.end, failed.actual_micros) == (End.RELEASED, 500_000)
    assert naive.remembered_micros([("coder", failed.day)]) == 500_000


def test_naive_calls_at_once_overspend(naive: NaiveBudget) -> None:
    # Given two calls that both checked before either is charged
    both = threading.Barrier(3)

    class Meeting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            both.wait(10)
            return False

    ends: list[Entry] = []
    threads = [
        threading.Thread(target=lambda: ends.append(naive.take(planned(800_000, 900_000), Meeting()))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    both.wait(10)
    for thread in threads:
        thread.join(10)

    # Then both are made
    assert outlay(ends, CAPS, 1_600_000) == Outlay(1_600_000, 600_000, 1, 0, 0)


def test_naive_counter_forgets_with_redis(naive: NaiveBudget, redis_url: str, stop: threading.Event) -> None:
    first = naive.take(planned(800_000, 900_000), stop)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    second = naive.take(planned(700_000, 700_000), stop)

    remembered = naive.remembered_micros([("coder", first.day)])
    assert outlay([first, second], CAPS, remembered) == Outlay(1_500_000, 500_000, 1, 800_000, 0)


@pytest.mark.parametrize(
    ("micros", "said"), [(0, "$0.00"), (1, "$0.01"), (19_999, "$0.01"), (1_234_560_000, "$1,234.56"), (-1, "-$0.01")]
)
def test_cents(micros: int, said: str) -> None:
    assert cents(micros) == said


def result(comparison: Comparison | None = None) -> Result:
    return Result(
        source="a synthetic day",
        seed=7,
        seconds=1,
        directory="here",
        agents=1,
        agents_refused=1,
        calls=Tally(3, 1, 1, 1, 0),
        settled=1,
        spent_micros=5_000_000,
        stopped_micros=2_500_000,
        uncovered_micros=0,
        excess_micros=0,
        given_up_micros=0,
        kills={"server": 1} if comparison else {},
        checks=[Check(promise, "said", 1, []) for promise in ("", "P1", "P2", "P2", "P3", "P4", "P5", "P6", "P7")],
        comparison=comparison,
    )


def screen(shown: Result) -> list[str]:
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        show_result(console, shown, [("make run ARGS=--keep", "keep Flower"), ("a", "b"), ("c", "d")])
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= 80
    return lines


def test_the_last_screen_says_it_in_words() -> None:
    lines = screen(result())
    assert lines[-1] == "OK: 1 calls settled, each once; spent $5.00, stopped $2.50 at the caps"
    assert "  make run ARGS=--keep  # keep Flower" in lines
    for words in ("never past the cap", "never charged twice", "never locked out", "nothing lost"):
        assert [line for line in lines if line.startswith(words)]


def test_the_last_line_compares() -> None:
    comparison = Comparison(Outlay(9_000_000, 1_000_000, 1, 4_000_000, 2), Outlay(5_000_000, 0, 0, 0, 3))
    lines = screen(result(comparison))
    assert lines[-1] == "the naive counter overspent $1.00 and forgot $4.00; daycap $0.00 and $0.00"
    assert [line.split()[-5:] for line in lines if line.startswith(("naive counter", "daycap"))] == [
        ["$9.00", "$1.00", "1", "$4.00", "2"],
        ["$5.00", "$0.00", "0", "$0.00", "3"],
    ]


def test_make_run_installs_no_development_tools() -> None:
    said = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    syncs = [line for line in said.splitlines() if " sync " in line]
    assert syncs
    assert all("--no-default-groups --group tools" in line for line in syncs)
