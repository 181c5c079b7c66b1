"""daycap run: the main job, as a newcomer starts it; it brings its own servers and takes them away again."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from honcho.environ import parse_procfile

from demo.local_server import LocalServer, free_port
from tests.processes import ROOT, LocalProcess, run_daycap
from tests.spine import wait_for

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `daycap`, in the test's directory. What the test did not see end is ended, with what it started."""
    with ExitStack() as stack:

        def started(*words: str) -> subprocess.Popen[str]:
            clean = {name: value for name, value in os.environ.items() if not name.startswith("DAYCAP_")}
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "daycap", *words],
                    cwd=tmp_path,
                    env={**clean, "PYTHONPATH": str(ROOT)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.terminate)
            return process

        yield started


@pytest.fixture
def heeded() -> Iterator[None]:
    """What is ignored here, as in a shell's background job, is ignored by those that are started; a handler is not."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, noted = process.communicate(timeout=110)
    assert process.returncode == 0, said + noted
    result: dict[str, Any] = json.loads(said)
    assert result["ok"], result["verdict"]
    return result


def left_over(directory: Path) -> list[psutil.Process]:
    """Processes that work in, or for, what `daycap run` made in this directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(directory) in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return [process for process in found if process.pid != os.getpid()]


def test_the_main_job_from_nothing(start: Start, tmp_path: Path) -> None:
    result = finished(start("run", "--seconds", "3", "--agents", "20", "--seed", "7", "--json"))

    assert (result["seed"], result["agents"]) == (7, 20)
    assert result["calls"]["calls"] == 3 * 150
    assert result["settled"] == result["calls"]["finalized"] > 0
    assert result["agents_refused"] > 0
    assert left_over(tmp_path) == []


def test_a_trace_is_followed(start: Start, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [
        f"2023-11-16 18:{second // 60:02d}:{second % 60:02d}.5000000,{100 + second},{10 + second}"
        for second in range(200)
    ]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")

    result = finished(start("run", "--seconds", "3", "--runners", "2", "--trace", str(trace), "--json"))

    assert result["source"] == "trace.csv (200 of 200 calls, evenly picked)"
    assert result["calls"]["calls"] == 200


def test_chaos_changes_no_verdict(start: Start, tmp_path: Path) -> None:
    """Worker and server die in the middle of it, twice and more; every check still holds. `replay` is the old name."""
    result = finished(start("replay", "--chaos", "--seconds", "16", "--agents", "20", "--json"))

    assert result["kills"] == {"server": 2, "worker": 3}
    assert result["settled"] == result["calls"]["finalized"] > 0
    naive, daycap = result["comparison"]["naive"], result["comparison"]["daycap"]
    assert naive["spent_micros"] > naive["forgotten_micros"] > 0, "Redis lost what the naive counter knew"
    assert daycap["forgotten_micros"] == 0
    assert daycap["over_micros"] <= result["excess_micros"]
    assert left_over(tmp_path) == []


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_every_process(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    process = start("run", "--seconds", "60", "--runners", "2")
    journals = tmp_path / ".run" / "latest" / "runners"
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in journals.glob("*.journal")):
        assert time.monotonic() < end, "the runners did not begin"
        time.sleep(0.05)

    process.send_signal(number)
    said, noted = process.communicate(timeout=60)

    assert process.returncode == 130, said + noted
    assert "Traceback" not in said + noted
    assert left_over(tmp_path) == []


@pytest.mark.usefixtures("heeded")
def test_keep_leaves_everything_up(start: Start, tmp_path: Path) -> None:
    # Given a run whose output is piped, and which is over
    process = start("run", "--keep", "--seconds", "2", "--agents", "3", "--runners", "1", "--seed", "7")
    assert process.stderr is not None
    assert process.stdout is not None
    noted = list(itertools.takewhile(lambda line: not line.startswith("Ctrl-C"), process.stderr))
    exported = dict(line.strip().removeprefix("export ").split("=", 1) for line in noted if "export DAYCAP" in line)
    (flower,) = [line.split()[1] for line in noted if line.startswith("Flower")]

    # Then everything answers another shell
    said = run_daycap("status", environment=exported)
    assert all(agent in said for agent in ("researcher", "coder", "support"))
    with urllib.request.urlopen(flower, timeout=20) as page:
        assert page.status == 200

    # Until Ctrl-C, and the output has all that is needed to look again
    process.send_signal(signal.SIGINT)
    output = process.stdout.read()
    assert process.wait(60) == 0
    assert left_over(tmp_path) == []
    assert "seed 7" in output.splitlines()[0]
    assert output.splitlines()[1] == f"Flower {flower}"
    assert output.splitlines()[-1].startswith("OK: ")
    assert len(output.splitlines()) < 40


def test_honcho_needs_nothing_before_it(tmp_path: Path) -> None:
    # Given the Procfile's processes, all started at once, and a ledger that does not exist yet
    server = LocalServer().start()
    environment = {
        "DAYCAP_REDIS_URL": server.url(0),
        "DAYCAP_BROKER_URL": server.url(1),
        "DAYCAP_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite3'}",
        "DAYCAP_FLOWER_PORT": str(free_port()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    honcho = LocalProcess([sys.executable, "-m", "honcho", "start"], tmp_path, environment)
    try:
        # Then the worker waits for the release, and answers
        wait_for(lambda: "celery@" in honcho.logs() and " ready." in honcho.logs(), 60)
        assert "$5.00" in run_daycap("agent", "add", "agent-7", "--cap", "5.00", environment=environment)
        assert honcho.status == "running"
    finally:
        honcho.teardown()
        server.stop()
    assert left_over(tmp_path) == []


def test_a_release_ends_outside_of_honcho(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HONCHO_PROCESS_NAME"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    release = parse_procfile((ROOT / "Procfile").read_text()).processes["release"]
    for url, status in ((f"sqlite:///{tmp_path / 'ledger.sqlite3'}", 0), (f"sqlite:///{tmp_path / 'no' / 'file'}", 1)):
        environment["DAYCAP_LEDGER_URL"] = url
        done = subprocess.run(release, shell=True, cwd=ROOT, env=environment, capture_output=True, check=False)
        assert done.returncode == status, done.stderr
