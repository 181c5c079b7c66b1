"""The demo from end to end: plan the calls, let runner processes make them, watch, compare, print the result."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console

from daycap.counters.redis import RedisCounter
from daycap.ledger.audit_counter import Difference
from daycap.settings import Settings
from demo.chaos import Chaos
from demo.journal_audit import Check, compare, read_recorded
from demo.live import show_last, show_live
from demo.local_server import LocalProcess
from demo.naive import Comparison, naive_outlay, outlay
from demo.plan import Plan, make_plan
from demo.processes import Runners
from demo.report import Result, show_result
from demo.runner import SETTLE_S, STOP_S
from demo.trace import read_trace, synthetic_day, thinned
from demo.watch import Watch

CALLS_PER_SECOND = 150
"""The most calls per second: two cores that also run all servers keep up with that."""

_LATE_S = 30.0
"""How much longer than planned the calls may take; then the runners are stopped."""

_NAME_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a demo. Without a trace, the calls are those of a synthetic day."""

    seed: int
    trace: Path | None = None
    seconds: float = 30
    agents: int = 20
    runners: int = 4
    directory: Path | None = None
    """The directory of the runners' files; by default a new temporary one."""
    victims: Mapping[str, LocalProcess] = field(default_factory=dict)
    """Processes to kill and restart during the demo. If there are any, a naive counter runs on the same calls."""
    notes: Sequence[str] = ()
    suggestions: Sequence[tuple[str, str]] = ()
    """Commands to try next, with their effects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of a deployment that the demo needs. It only reads the ledger."""

    settings: Settings
    ledger: sa.Engine
    add_agents: Callable[[dict[str, int]], object]
    """Add agents with their caps in micros, and open their day."""
    add_team: Callable[[str, list[str], int], object]
    """Add a group of agents, and a budget of the same name with a cap in micros a month."""
    backlog: Callable[[], int]
    """Return how many messages wait."""
    reconcile: Callable[[], object]


def run_demo(options: Options, services: Services, *, as_json: bool = False) -> Result:
    """Make calls through real runner processes and compare what they did with what was recorded.

    The runners read their settings from this process's environment. Shows progress live and prints the result, or
    with `as_json` prints one JSON object on stdout and all else on stderr.

    Raises `Unavailable` if a runner does not start or the counter does not answer at the end.
    """
    console = Console(stderr=as_json)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="daycap-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    source, plan = _plan(options)
    titles = [f"{source}, seed {options.seed}: {len(plan.agents)} agents, {len(plan.runners)} runners", *options.notes]
    for line in [] if console.is_terminal else titles:
        console.print(line, soft_wrap=True, highlight=False)

    services.add_agents(plan.caps)
    team = "team-" + "".join(secrets.choice(_NAME_LETTERS) for _ in range(6))
    services.add_team(team, list(plan.caps), sum(plan.caps.values()))
    team_budget = f"{team}/1"
    counter = RedisCounter(services.settings.redis_url, timeout_s=2)
    try:
        with Runners(plan, directory, naive=bool(options.victims)) as runners:
            watch = Watch(plan, counter, services.ledger, services.backlog, team_budget)
            kills = Chaos(options.victims, options.seconds, options.seed) if options.victims else None
            runners.go()
            show_live(console, watch, titles, _look(watch, runners, options.seconds, kills))
            took_s = watch.elapsed_s
            runners.stop()
            watch.look(runners.read_journals())
            of_runners = _check_runners(plan, watch, runners)
            naive = naive_outlay(runners.read_naive(), plan.caps, services.settings) if kills else None
        services.reconcile()
        recorded = read_recorded(services.ledger, counter, list(plan.caps), watch.entries, team_budget)
        watch.look([])  # Refresh: the runners have handed money back.
    finally:
        counter.close()
    show_last(console, watch, titles)
    booked = sum(row.actual_micros for row in recorded.settlements)
    beside = Comparison(naive, outlay(watch.entries, plan.caps, booked)) if naive else None
    checks = [of_runners, *compare(watch.entries, recorded)]
    result = Result.of(source, options.seed, took_s, directory, watch, recorded, checks, kills, beside)
    if as_json:
        print(json.dumps(result.as_dict(), indent=2), flush=True)
    else:
        show_result(console, result, options.suggestions)
    return result


def _plan(options: Options) -> tuple[str, Plan]:
    """Return a description of the calls' source, and the plan."""
    count = max(1, round(options.seconds * CALLS_PER_SECOND))
    if options.trace:
        every = read_trace(options.trace)
        calls = thinned(every, count)
        source = f"{options.trace.name} ({len(calls):,} of {len(every):,} calls, evenly picked)"
    else:
        calls, source = synthetic_day(options.seed, count), "a synthetic day"
    plan = make_plan(
        calls,
        agents=options.agents,
        runners=options.runners,
        seconds=options.seconds,
        seed=options.seed,
        chats=options.trace is None,
        # On permanent servers each run uses new names, so that it starts with unused caps.
        suffix="" if options.directory else "".join(secrets.choice(_NAME_LETTERS) for _ in range(4)),
    )
    return source, plan


def _look(watch: Watch, runners: Runners, seconds: float, chaos: Chaos | None) -> Callable[[], bool]:
    """Return a function that looks at everything once. It returns False once all runners have ended, or should have."""
    give_up_s = seconds + _LATE_S + SETTLE_S + STOP_S

    def look() -> bool:
        running = runners.running
        if chaos is not None:
            chaos.act(watch.elapsed_s)
            watch.remark = str(chaos)
        watch.look(runners.read_journals())
        return running and watch.elapsed_s < give_up_s

    return look


def _check_runners(plan: Plan, watch: Watch, runners: Runners) -> Check:
    differences = [
        Difference("", "", f"exit status of runner {process.number}: {process.last_words}", 0, process.status or 0)
        for process in runners.processes
        if process.status
    ]
    if watch.total.calls != plan.calls:
        differences.append(Difference("", "", "calls in the journals", plan.calls, watch.total.calls))
    return Check("", "each call in a journal", plan.calls, differences)
