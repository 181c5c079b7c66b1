"""The processes of one adapter: started once, so that rounds can take turns."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.callers import Row
from tests.benchmarks.peers.environments import ROOT, LeftOut

_ANSWER_S = 300
_HERE = Path(__file__).resolve().parent


class Group:
    """`processes` processes that run the adapter; each answers a line of JSON with one. Errors go to `log`."""

    def __init__(
        self, python: Path, adapter: str, processes: int, servers: Mapping[str, str], env: Mapping[str, str], log: Path
    ) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._processes = [
                subprocess.Popen(
                    [str(python), str(_HERE / f"{adapter}.py"), json.dumps(dict(servers))],
                    cwd=ROOT,
                    env={**os.environ, **env},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
                for _ in range(processes)
            ]
        self._starting = list(self._processes)

    def open(self, key: str, cap: int) -> None:
        """Give a new key its cap, when every process is ready. Raises `LeftOut`, as `run` does."""
        while self._starting:
            self._hear(self._starting[0])
            self._starting.pop(0)
        self._tell(self._processes[0], do="open", key=key, cap=cap)
        self._hear(self._processes[0])

    def run(self, **round_: Any) -> list[Row]:
        """Every caller's calls, each caller's in order, when all of them have given up and all is booked."""
        start_ns = time.monotonic_ns() + 300_000_000
        for number, process in enumerate(self._processes):
            self._tell(process, do="run", number=number, start_ns=start_ns, **round_)
        answers = [self._hear(process) for process in self._processes]
        return [row for answer in answers for row in answer["rows"]]

    def close(self) -> None:
        """End them: they end when their input does."""
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
            process.stdout.close()

    def _tell(self, process: subprocess.Popen[str], /, **words: Any) -> None:
        try:
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise LeftOut(self._last_words()) from None

    def _hear(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(_ANSWER_S):
                raise LeftOut(f"no answer within {_ANSWER_S} s")
        line = process.stdout.readline()
        if not line:
            raise LeftOut(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LeftOut(answer["error"])
        return answer

    def _last_words(self) -> str:
        words = self._log.read_text(errors="replace").strip().splitlines() or ["without a word"]
        return f"it ended: {words[-1][:200]}"
