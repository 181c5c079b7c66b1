"""The runner processes, as handles in their parent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from daycap.errors import Unavailable
from demo.journal import Entry, JournalReader
from demo.naive import naive_journal_of
from demo.plan import Plan, write_calls
from demo.runner import STOP_S

_ROOT = Path(__file__).resolve().parent.parent
_ERROR_BYTES = 2_000


class RunnerProcess:
    """One runner, started at once; it waits for `go`. Its files are `runner-<number>.*` in `directory`.

    `caps` is a file for the naive counter; without it there is no naive counter.
    """

    def __init__(self, number: int, directory: Path, caps: Path | None = None) -> None:
        self.number = number
        self._log = directory / f"runner-{number}.log"
        journal = directory / f"runner-{number}.journal"
        self._journal = JournalReader(journal)
        self._naive = JournalReader(naive_journal_of(journal))
        files = [directory / f"runner-{number}.calls", journal, *([caps] if caps else [])]
        with self._log.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603  (our own arguments)
                [sys.executable, "-P", "-m", "demo.runner", *files],
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which tells its runners to stop.
            )
        assert process.stdin is not None  # noqa: S101  (both are pipes)
        assert process.stdout is not None  # noqa: S101
        self._process, self._input, self._output = process, process.stdin, process.stdout

    def wait_until_ready(self) -> None:
        """Wait until the runner is ready. Raises `Unavailable` with the end of its log if it exits instead."""
        if self._output.readline() != b"ready\n":
            self._process.wait(STOP_S)
            raise Unavailable(f"runner {self.number} did not start: {self.last_words}")

    def go(self) -> None:
        """Let it begin. If it has died meanwhile, its exit status shows that."""
        with contextlib.suppress(BrokenPipeError):
            self._input.write(b"go\n")
            self._input.flush()

    def stop(self) -> None:
        """Ask it to stop, by closing its input; `join` waits for it."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()

    def join(self, timeout_s: float) -> None:
        """Wait for it, and kill it if that takes too long."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    @property
    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_bytes()[-_ERROR_BYTES:].decode(errors="replace").strip() or "no output"

    def read_journal(self) -> list[Entry]:
        """Return the new entries of its journal."""
        return self._journal.read()

    def read_naive(self) -> list[Entry]:
        """Return the new entries of the naive counter's journal."""
        return self._naive.read()

    def close(self) -> None:
        """Close its files."""
        self._output.close()
        self._journal.close()
        self._naive.close()


class Runners:
    """All runners of a plan, as a context manager: they wait for `go` on entry, and all are stopped on exit.

    With `naive` a naive counter checks the same calls in the same processes.
    """

    def __init__(self, plan: Plan, directory: Path, *, naive: bool = False) -> None:
        self._plan = plan
        self._naive = naive
        self._directory = directory
        self.processes: list[RunnerProcess] = []

    def __enter__(self) -> Runners:
        caps = self._directory / "caps.json" if self._naive else None
        if caps is not None:
            caps.write_text(json.dumps(self._plan.caps), "utf-8")
        try:
            for number, calls in enumerate(self._plan.runners, 1):
                write_calls(self._directory / f"runner-{number}.calls", calls)
                self.processes.append(RunnerProcess(number, self._directory, caps))
            for process in self.processes:
                process.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def go(self) -> None:
        """Let all runners begin at the same time."""
        for process in self.processes:
            process.go()

    @property
    def running(self) -> bool:
        """Whether any runner is still running."""
        return any(process.status is None for process in self.processes)

    def read_journals(self) -> list[Entry]:
        """Return the new entries of all runners."""
        return [entry for process in self.processes for entry in process.read_journal()]

    def read_naive(self) -> list[Entry]:
        """Return the naive counter's new entries in all runners."""
        return [entry for process in self.processes for entry in process.read_naive()]

    def stop(self) -> None:
        """Stop the runners. Their journals can still be read."""
        for process in self.processes:
            process.stop()
        end = time.monotonic() + STOP_S
        for process in self.processes:
            process.join(max(0.1, end - time.monotonic()))

    def close(self) -> None:
        """Stop the runners and close all files."""
        self.stop()
        for process in self.processes:
            process.close()
