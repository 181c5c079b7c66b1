"""The replay from end to end: plan the calls, let runner processes make them, watch, compare, say the verdict."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console

from daycap.counters.redis import RedisCounter
from daycap.ledger.audit import Difference
from daycap.settings import Settings
from demo.chaos import Chaos
from demo.journal_audit import Check, compare, read_recorded
from demo.live import show_last, show_live
from demo.local_server import LocalProcess
from demo.plan import Plan, make_plan
from demo.processes import Runners
from demo.report import ReplayResult, show_result
from demo.runner import SETTLE_S, STOP_S
from demo.trace import read_trace, synthetic_day, thinned
from demo.watch import Watch

CALLS_PER_SECOND = 150
"""The most calls a second: what two processors that also run every server do without falling behind."""

_LATE_S = 30.0
"""How much longer than planned the calls may take before the runners are stopped."""

_NAME_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What is replayed: a trace or, without one, a synthetic day; a seed is drawn where none is given."""

    trace: Path | None = None
    seed: int | None = None
    seconds: float = 30
    agents: int = 50
    runners: int = 4


def replay(
    options: ReplayOptions,
    *,
    settings: Settings,
    ledger: sa.Engine,
    add_agents: Callable[[dict[str, int]], object],
    backlog: Callable[[], int],
    reconcile: Callable[[], object],
    chaos: Mapping[str, LocalProcess] | None = None,
    directory: Path | None = None,
    note: str = "",
    as_json: bool = False,
) -> ReplayResult:
    """Replay calls through real runner processes and compare what they did with what was recorded.

    `ledger` is only read. `add_agents` makes agents with their caps in micros and opens their day; `backlog` is
    how many messages wait; `reconcile` runs one. `chaos` names processes to kill and to start again meanwhile.
    The runners' files go into `directory`, by default a new temporary one; the runners read their settings from
    this process's environment. Shows itself live and prints the result, or with `as_json` prints it as one JSON
    object on stdout and shows itself on stderr.

    Raises `Unavailable` if a runner does not start or the counter does not answer at the end.
    """
    console = Console(stderr=as_json)
    directory = directory or Path(tempfile.mkdtemp(prefix="daycap-replay-"))
    directory.mkdir(parents=True, exist_ok=True)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    source, plan = _plan(options, seed)
    title = f"replay of {source}, seed {seed}: {len(plan.agents)} agents, {len(plan.runners)} runners"
    titles = [title, note] if note else [title]
    for line in [f"files in {directory}"] if console.is_terminal else titles:
        console.print(line, soft_wrap=True, highlight=False)

    add_agents({agent.agent: agent.cap_micros for agent in plan.agents})
    counter = RedisCounter(settings.redis_url, timeout_s=2)
    try:
        with Runners(plan, directory) as runners:
            watch = Watch(plan, counter, ledger, backlog)
            kills = Chaos(chaos, options.seconds, seed) if chaos else None
            runners.go()
            look = _look(watch, runners, options.seconds, kills)
            show_live(console, watch, titles, look)
            took_s = watch.elapsed_s
            runners.stop()
            watch.look(runners.read_journals())
            of_runners = _check_runners(plan, watch, runners)
        reconcile()
        recorded = read_recorded(ledger, counter, [agent.agent for agent in plan.agents], watch.entries)
        watch.look([])  # What the runners handed back, and the counter's state of now.
    finally:
        counter.close()
    show_last(console, watch, titles)
    checks = [of_runners, *compare(watch.entries, recorded)]
    result = ReplayResult.of(source, seed, took_s, directory, watch, recorded, checks, kills)
    if as_json:
        print(json.dumps(result.as_dict(), indent=2), flush=True)
    else:
        show_result(console, result)
    console.print(f"the same calls again: --seed {seed}", soft_wrap=True, highlight=False)
    return result


def _plan(options: ReplayOptions, seed: int) -> tuple[str, Plan]:
    """Where the calls come from, in words, and who makes them."""
    count = max(1, round(options.seconds * CALLS_PER_SECOND))
    if options.trace:
        every = read_trace(options.trace)
        calls = thinned(every, count)
        source = f"{options.trace.name} ({len(calls):,} of {len(every):,} calls, evenly picked)"
    else:
        calls, source = synthetic_day(seed, count), "a synthetic day"
    plan = make_plan(
        calls,
        # New names for each replay: it starts with untouched caps, however often it is run in a day.
        prefix="replay-" + "".join(secrets.choice(_NAME_LETTERS) for _ in range(4)),
        agents=options.agents,
        runners=options.runners,
        seconds=options.seconds,
        seed=seed,
    )
    return source, plan


def _look(watch: Watch, runners: Runners, seconds: float, chaos: Chaos | None) -> Callable[[], bool]:
    """One look at everything; False once all runners have ended, or should have."""
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
    return Check("", "every planned call is in a journal", plan.calls, differences)
