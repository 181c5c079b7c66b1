"""A runner process that does as it is told: a real wallet, a line of JSON in for each verb and one out.

`Runner` is the test's end of it; `python -m tests.runner FACE` the process itself, which ends when its input does. Its
wallet is one of `FACES`: of threads, or of an event loop.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daycap import BudgetUnavailable, DaycapError, Hold, Wallet
from tests.in_loop import FACES

_ROOT = Path(__file__).resolve().parent.parent


class Said(Exception):
    """the runner's wallet raised `error`, by the name of its class"""

    def __init__(self, error: str, message: str) -> None:
        self.error = error
        super().__init__(f"{error}: {message}")


class Runner:
    """One child process with one wallet. Amounts are micros; holds are known by their ids."""

    def __init__(self, environment: Mapping[str, str], log: Path, face: str) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.runner", face],
                cwd=_ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def tell(self, verb: str, *words: object) -> None:
        """Say what to do, without waiting for the answer."""
        self.process.stdin.write(json.dumps([verb, *words]) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """The next answer. Raises `Said`."""
        line = self.process.stdout.readline()
        assert line, "the runner has ended"
        answer = json.loads(line)
        if "error" in answer:
            raise Said(**answer)
        return answer["result"]

    def ask(self, verb: str, *words: object) -> Any:
        self.tell(verb, *words)
        return self.hear()

    def reserve(self, agent: str, estimate: int) -> str:
        """A hold's id. An exchange that took too long on a busy machine is made again."""
        return self.ask("reserve_patiently", agent, estimate)

    def reserve_once(self, agent: str, estimate: int) -> str:
        return self.ask("reserve", agent, estimate)

    def reserve_or_none(self, agent: str, estimate: int) -> str | None:
        """A hold's id; None if it would pass the cap."""
        try:
            return self.reserve(agent, estimate)
        except Said as said:
            if said.error != "CapExceeded":
                raise
            return None

    def reserve_again(self, hold: str) -> str:
        """Release the hold and at once reserve as much: out of the lease, without a question."""
        return self.ask("reserve_again", hold)

    def finalize(self, hold: str, actual: int) -> None:
        self.ask("finalize", hold, actual)

    def release(self, hold: str) -> None:
        self.ask("release", hold)

    def stats(self) -> dict[str, int]:
        return self.ask("stats")

    def flush(self) -> list[str]:
        return self.ask("flush")

    def close(self) -> list[str]:
        """End the wallet and the process; what was not known to be settled by then."""
        unsettled: list[str] = self.ask("close")
        self.end()
        return unsettled

    def stop(self) -> None:
        """SIGSTOP; returns when it stands."""
        self.process.send_signal(signal.SIGSTOP)
        self.wait_until_stopped()

    def wait_until_stopped(self) -> None:
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        """Let go of it; it may have ended before."""
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()


class _Verbs:
    """What the process can be told."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._holds: dict[str, Hold] = {}

    def reserve(self, agent: str, estimate: int) -> str:
        hold = self._wallet.reserve(agent, estimate)
        self._holds[hold.id] = hold
        return hold.id

    def reserve_patiently(self, agent: str, estimate: int) -> str:
        end = time.monotonic() + 20
        while True:
            try:
                return self.reserve(agent, estimate)
            except BudgetUnavailable:
                if time.monotonic() >= end:
                    raise

    def reserve_again(self, hold: str) -> str:
        old = self._holds.pop(hold)
        old.release()
        return self.reserve(old.agent, old.held_micros)

    def reserve_all_at_once(self, agents: list[str], estimate: int) -> list[tuple[str, float]]:
        """One thread for each: what came of it, and how many seconds it took."""
        answers: list[tuple[str, float]] = []
        start = threading.Barrier(len(agents))

        def reserve(agent: str) -> None:
            start.wait()
            begun = time.monotonic()
            try:
                self.reserve(agent, estimate)
                error = ""
            except DaycapError as said:
                error = type(said).__name__
            answers.append((error, time.monotonic() - begun))

        threads = [threading.Thread(target=reserve, args=(agent,)) for agent in agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    def finalize(self, hold: str, actual: int) -> None:
        self._holds.pop(hold).finalize(actual)

    def release(self, hold: str) -> None:
        self._holds.pop(hold).release()

    def stats(self) -> dict[str, int]:
        return dataclasses.asdict(self._wallet.stats())

    def flush(self) -> tuple[str, ...]:
        return self._wallet.flush(timeout=30)

    def close(self) -> tuple[str, ...]:
        return self._wallet.close(timeout=30)

    def stop_when(self, function: str, moment: str, time: int) -> None:
        """SIGSTOP to itself when that function of the lease book takes, or leaves, its lock for the n-th time."""
        book: Any = self._wallet._book
        book.lock = _StoppingLock(book.lock, (function, moment), time)


class _StoppingLock:
    def __init__(self, lock: threading.Lock, at: tuple[str, str], time: int) -> None:
        self._lock = lock
        self._at = at
        self._left = time

    def __enter__(self) -> None:
        self._stop_at(sys._getframe(1).f_code.co_name, "takes")
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
        self._stop_at(sys._getframe(1).f_code.co_name, "leaves")

    def _stop_at(self, function: str, moment: str) -> None:
        if self._at == (function, moment):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGSTOP)


def main(face: str) -> None:
    """Obey until the input ends."""
    verbs = _Verbs(FACES[face].from_env())
    for line in sys.stdin:
        verb, *words = json.loads(line)
        try:
            answer = {"result": getattr(verbs, verb)(*words)}
        except DaycapError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)
    os._exit(0)  # As if it were killed: whoever wants more says `close`.


if __name__ == "__main__":
    main(*sys.argv[1:])
