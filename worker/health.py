"""Whether a worker or beat works: `/healthz` and `/readyz`, answered in threads beside its loop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import start_http_server

from daycap.errors import DaycapError, InvalidSetting
from daycap.ledger.engine import Ledger, unavailable

_SILENT_S = 60.0
"""A loop without progress for this long is stuck. A batch takes 50 ms, a wait for a busy ledger five seconds."""

_ANSWER_S = 2.0
"""How long a probe waits for the ledger."""

Check = Callable[[], str]
"""Returns what is wrong, a line for each problem; empty if nothing is."""


class Health:
    """What a process's loop last said about itself. Only the threads that answer probes read it."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._progress_s = now_s()
        self._problems = {"broker": ("not connected yet", math.inf)}

    def progressed(self) -> None:
        """Record that the loop goes round, or waits for its broker as it should."""
        self._progress_s = self._now_s()

    def note(self, part: str, problem: str = "", lasts_s: float = math.inf) -> None:
        """Record why `part` does not work, for `lasts_s` if it may recover unnoticed; nothing once it does."""
        self._problems[part] = problem, self._now_s() + lasts_s

    def silent_s(self) -> float:
        """Return the seconds since the loop last progressed."""
        return self._now_s() - self._progress_s

    def alive(self) -> str:
        """Return an empty text if the loop progressed lately. Nothing outside of the process is asked."""
        silent_s = self.silent_s()
        return f"the loop made no progress for {silent_s:.0f} s\n" if silent_s > _SILENT_S else ""

    def ready(self) -> str:
        """Return what keeps the process from working, as far as its loop noticed."""
        noted, now_s = list(self._problems.items()), self._now_s()
        return self.alive() + "".join(f"{part}: {why}\n" for part, (why, end_s) in noted if why and now_s < end_s)


health = Health()
"""This process's."""


class LedgerProbe:
    """Asks the ledger in a thread: a locked or silent one delays neither the loop nor a probe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._asked: Future[str] | None = None

    def __call__(self) -> str:
        """Return why this release cannot use the ledger now; empty if it can."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = Future()
                threading.Thread(target=self._ask, args=(self._asked,), name="daycap-probe", daemon=True).start()
            asked = self._asked
        try:
            return asked.result(_ANSWER_S)
        except TimeoutError:
            return f"ledger: no answer within {_ANSWER_S:g} s\n"

    def _ask(self, asked: Future[str]) -> None:
        try:
            self._ledger.check_tables()
        except Exception as error:
            asked.set_result(f"ledger: {error if isinstance(error, DaycapError) else unavailable(error)}\n")
        else:
            asked.set_result("")


def serve(address: str, variable: str, port: int, checks: Mapping[str, Check], other: WSGIApplication) -> None:
    """Serve each check at its path, and `other` elsewhere. Raises `InvalidSetting` if the address cannot be bound."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        check = checks.get(environ["PATH_INFO"])
        if check is None:
            return other(environ, start_response)
        problem = check()
        start_response("503 Service Unavailable" if problem else "200 OK", [("Content-Type", "text/plain")])
        return [(problem or "ok\n").encode()]

    try:
        server: Any = start_http_server(port, address)[0]
    except OSError as error:
        where = f"DAYCAP_METRICS_ADDRESS={address}, {variable}={port}"
        raise InvalidSetting(f"cannot listen at {where}: {error}") from error
    server.set_app(answer)


def not_found(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer 404."""
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"there are /healthz and /readyz\n"]
