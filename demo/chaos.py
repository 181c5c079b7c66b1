"""Chaos: kill and restart the server and the worker in the middle of the demo."""

from __future__ import annotations

import random
from collections import Counter as Count
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from demo.local_server import LocalProcess

_KILLS = (("worker", 0.15), ("server", 0.35), ("worker", 0.55), ("server", 0.72), ("worker", 0.74))
"""What is killed when, as a fraction of the calls' duration. The last two are down at the same time."""

_SPREAD = 0.05
_AWAY_S = (0.5, 2.0)


class _Step(NamedTuple):
    at_s: float
    kill: bool
    name: str


class Chaos:
    """Kills and restarts `processes` (server and worker) within `seconds`, on a schedule derived from `seed`."""

    def __init__(self, processes: Mapping[str, LocalProcess], seconds: float, seed: int) -> None:
        self._processes = processes
        self._steps = _schedule(seconds, seed)
        self.kills = Count[str]()

    def act(self, elapsed_s: float) -> None:
        """Do what is due. A restart waits until the server answers, much less than a second."""
        while self._steps and self._steps[0].at_s <= elapsed_s:
            step = self._steps.pop(0)
            process = self._processes[step.name]
            if step.kill:
                process.kill()
                self.kills[step.name] += 1
            else:
                process.start()

    def __str__(self) -> str:
        away = [name for name, process in self._processes.items() if not process.alive]
        actions = (
            ", ".join(f"{name} killed {times}x" for name, times in sorted(self.kills.items())) or "nothing killed yet"
        )
        return f"chaos: {actions}" + "".join(f"; the {name} is away" for name in away)


def _schedule(seconds: float, seed: int) -> list[_Step]:
    rng = random.Random(f"chaos {seed}")  # noqa: S311  (not for secrets)
    steps = []
    for name, share in _KILLS:
        at_s = seconds * (share + rng.uniform(0, _SPREAD))
        steps += [_Step(at_s, True, name), _Step(at_s + rng.uniform(*_AWAY_S), False, name)]
    return _without_overlap(sorted(steps))


def _without_overlap(steps: Sequence[_Step]) -> list[_Step]:
    """Do not kill a process that is down, which could happen in a very short demo."""
    kept: list[_Step] = []
    away: dict[str, int] = Count()
    for step in steps:
        if step.kill:
            away[step.name] += 1
            if away[step.name] == 1:
                kept.append(step)
        else:
            away[step.name] -= 1
            if away[step.name] == 0:
                kept.append(step)
    return kept
