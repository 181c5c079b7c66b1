"""What a worker or beat answers to probes."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

from tests.spine import wait_for

ALIVE = (200, "ok\n")


class Probed:
    """A process that serves its health on a port."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, timeout_s: float = 4) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self._url + path, timeout=timeout_s) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()
        except urllib.error.URLError:  # Beat says that it starts before it listens.
            return 0, ""

    def silent_s(self) -> float:
        return float(self.get("/metrics")[1].partition("\ndaycap_loop_silent_seconds ")[2].split("\n")[0])

    def waits_for(self, seconds: float) -> None:
        """A loop that waits for its broker makes progress all the time."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            assert self.silent_s() < 2.5
            time.sleep(0.1)

    def becomes_ready(self) -> None:
        wait_for(lambda: self.get("/readyz") == ALIVE)

    def becomes_unready(self, problem: str) -> None:
        """Until it names the problem. Meanwhile it stays alive."""

        def named() -> bool:
            began_s = time.monotonic()
            assert self.get("/healthz") == ALIVE
            assert time.monotonic() - began_s < 2
            status, said = self.get("/readyz")
            assert status == (200 if said == "ok\n" else 503)
            return problem in said

        wait_for(named)
