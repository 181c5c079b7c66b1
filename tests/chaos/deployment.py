"""What the campaign breaks: every process of a deployment, each link of it through a proxy, and its supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import redis

from daycap.counters.redis import RedisCounter, counter_key
from daycap.protocol.counter import AgentDay, DayReading
from demo.journal import Entry, JournalReader
from demo.local_server import LocalServer
from tests.chaos.brokers import BROKERS, Broker
from tests.fake_clock import AVAILABLE, FakeClock
from tests.faults.proxy import Proxy
from tests.in_loop import FACES
from tests.migrated import migrated_sqlite
from tests.processes import ROOT, LocalBeat, LocalWorker

RUNNERS, WORKERS = 3, 2
DISK_MEGABYTES = 24

SHORT_TIMES = {
    "DAYCAP_LEASE_TTL_SECONDS": "1",
    "DAYCAP_GRACE_SECONDS": "0.4",
    "DAYCAP_RESEND_SECONDS": "1",
    "DAYCAP_REDIS_TIMEOUT_SECONDS": "0.08",
    "DAYCAP_OPEN_TIMEOUT_SECONDS": "1",
}


class ChaosRunner:
    """One runner's process, started anew after each kill, with the files that all its lives write to."""

    def __init__(self, number: int, directory: Path, environment: dict[str, str], clock: FakeClock | None) -> None:
        self._files = [directory / f"runner-{number}.{name}" for name in ("journal", "intents")]
        self._log = directory / f"runner-{number}.log"
        self._environment = {**os.environ, **environment, **(clock.environment if clock else {})}
        self._number, self._lives = number, 0
        self.clock = clock
        self._readers = [JournalReader(file) for file in self._files]
        self.start()

    def start(self) -> None:
        self._lives += 1
        with self._log.open("ab") as log:
            # Every second one is of an event loop.
            face, seed = sorted(FACES)[self._number % len(FACES)], f"{self._number}.{self._lives}"
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.runner", *map(str, self._files), face, seed],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def work_for(self, agents: list[str]) -> None:
        """For none: rest; `rested` waits for it."""
        self.process.stdin.write(json.dumps(agents) + "\n")
        self.process.stdin.flush()

    def rested(self) -> list[str]:
        """The reservations that were not settled when it had waited for long enough."""
        line = self.process.stdout.readline()
        return json.loads(line) if line else ["the runner ended by itself"]

    def kill(self) -> None:
        """And its children, as a container is killed."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self._gone()

    def end(self) -> None:
        """Tell it to end, which takes as long as the last of its calls and children, and 5 s for its wallet."""
        self.process.terminate()
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(self.process.pid, signal.SIGKILL)
        self._gone()
        assert status == 143, f"told to end, a runner ended with status {status}"

    def _gone(self) -> None:
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def entries(self) -> tuple[list[Entry], list[Entry]]:
        """What came since the last time: calls that ended, and those that were about to be finalized."""
        journal, intents = (reader.read() for reader in self._readers)
        return journal, intents


class Deployment:
    """Two servers behind proxies, workers, beat, runners and a ledger, in one directory."""

    def __init__(self, directory: Path, broker: str = "redis") -> None:
        self.directory = directory
        self.counter_server = LocalServer(directory=directory / "counter").start()
        self.broker: Broker = BROKERS[broker](directory / "broker")
        self.broker.start()
        self.counter_link = Proxy(self.counter_server.port)
        self.runners_link, self.workers_link = Proxy(self.broker.port), Proxy(self.broker.port)
        self.disk = directory / "ledger"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(self.disk)]
        self.own_disk = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
        self.ledger = migrated_sqlite(self.disk / "ledger.sqlite3")
        self.environment = {
            "DAYCAP_REDIS_URL": f"redis://127.0.0.1:{self.counter_link.port}/0",
            "DAYCAP_LEDGER_URL": f"sqlite:///{self.ledger}",
            "DAYCAP_BROKER_URL": self.broker.url(self.workers_link.port),
            **SHORT_TIMES,
        }
        self.clocks = [FakeClock(directory / f"clock-{n}") for n in range(WORKERS + RUNNERS)] if AVAILABLE else []
        clocks: list[FakeClock | None] = [*self.clocks] or [None] * (WORKERS + RUNNERS)
        logs = [directory / f"worker-{number}" for number in range(WORKERS)]
        for log in logs:
            log.mkdir()
        names = [f"--hostname=chaos{number}@%h" for number in range(WORKERS)]
        self.workers = [
            LocalWorker(log, self.environment, name, clock=clock)
            for log, clock, name in zip(logs, clocks[:WORKERS], names, strict=True)
        ]
        for worker in self.workers:
            worker.ready()
        self.beat = LocalBeat(directory, self.environment)
        of_runners = {
            **self.environment,
            "DAYCAP_BROKER_URL": self.broker.url(self.runners_link.port),
            "DAYCAP_OUTBOX": str(directory / "outbox"),
        }
        self.runners = [
            ChaosRunner(number, directory, of_runners, clock) for number, clock in enumerate(clocks[WORKERS:])
        ]
        for runner in self.runners:
            runner.work_for([])
        for runner in self.runners:
            runner.rested()  # All have started.
        self.given_up_before: dict[AgentDay, int] = {}
        """What earlier lives of the counter gave up."""

    # --- the counter ------------------------------------------------------------------------------------------

    def counter(self) -> RedisCounter:
        """A connection of the campaign's own, around the proxy."""
        return RedisCounter(self.counter_server.url(), timeout_s=5)

    def given_up(self, counters: list[AgentDay]) -> dict[AgentDay, int]:
        """By the counter that is there now, whoever opened it."""
        with redis.Redis.from_url(self.counter_server.url(), decode_responses=True) as client:
            fields = [client.hget(counter_key(*where), "given_up") for where in counters]
        return {where: int(field or 0) for where, field in zip(counters, fields, strict=True)}

    def in_all(self, reading: DayReading, where: AgentDay) -> DayReading:
        """The reading with what was given up over all lives of the counter."""
        return reading._replace(given_up_micros=reading.given_up_micros + self.given_up_before.get(where, 0))

    def note_lives(self, before: dict[AgentDay, int], after: dict[AgentDay, int]) -> None:
        """The counter had given up `before`, and starts anew with `after`."""
        for where, micros in before.items():
            self.given_up_before[where] = self.given_up_before.get(where, 0) + micros - after.get(where, 0)

    # --- the supervisor -----------------------------------------------------------------------------------------

    def restart_dead(self) -> list[str]:
        """Start again what has ended, as a supervisor does. Returns what it was."""
        dead: list[Any] = [each for each in (*self.workers, self.beat) if each.status != "running"]
        for each in dead:
            each.start()
        return [type(each).__name__ for each in dead]

    def close(self) -> None:
        for runner in self.runners:
            runner.kill()
        for process in (self.beat, *self.workers):
            process.kill("SIGKILL") if process.status == "running" else None
        for link in (self.counter_link, self.runners_link, self.workers_link):
            link.close()
        self.counter_server.kill()
        self.broker.close()
        if self.own_disk:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)
