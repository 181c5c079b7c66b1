"""The processes of one adapter: started once, so that rounds can take turns."""

from __future__ import annotations

import contextlib
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
        command = [str(python), str(_HERE / f"{adapter}.py"), json.dumps(dict(servers))]
        self._processes = [_Process(command, env, log) for _ in range(processes)]
        self._starting = list(self._processes)

    def open(self, key: str, cap: int) -> None:
        """Give a new key its cap, when every process is ready. Raises `LeftOut`, as `run` does."""
        while self._starting:
            _checked(self._starting[0].answer())
            self._starting.pop(0)
        self._processes[0].tell(do="open", key=key, cap=cap)
        _checked(self._processes[0].answer())

    def run(self, **round_: Any) -> list[Row]:
        """Every caller's calls, each caller's in order, when all of them have given up and all is booked."""
        start_ns = time.monotonic_ns() + 300_000_000
        for number, process in enumerate(self._processes):
            process.tell(do="run", number=number, start_ns=start_ns, **round_)
        answers = [process.answer() for process in self._processes]
        return [row for answer in answers for row in _checked(answer)["rows"]]

    def close(self) -> None:
        """End them: they end when their input does."""
        for process in self._processes:
            process.end_input()
        for process in self._processes:
            process.end()


class _Process:
    def __init__(self, command: list[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    def tell(self, **words: Any) -> None:
        try:
            self._input.write(json.dumps(words) + "\n")
            self._input.flush()
        except BrokenPipeError:
            raise LeftOut(self._last_words()) from None

    def answer(self) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            if not selector.select(_ANSWER_S):
                self._process.kill()  # So that a late answer is not taken for another one's.
                raise LeftOut(f"no answer within {_ANSWER_S} s")
        line = self._output.readline()
        if not line:
            raise LeftOut(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end_input(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()

    def end(self) -> None:
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._output.close()

    def _last_words(self) -> str:
        words = self._log.read_text(errors="replace").strip().splitlines() or ["without a word"]
        return f"it ended: {words[-1][:200]}"


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise LeftOut(answer["error"])
    return answer
