"""Which runs a process takes part in."""

from __future__ import annotations

from daycap.errors import RunEnded
from daycap.protocol.labels import RUN, Labels
from daycap.protocol.runs import Run, is_run


class _Joined:
    """A run that goes on here: with those that it is part of, who takes part, and which runs are inside it."""

    __slots__ = ("chain", "inside", "members")

    def __init__(self, chain: tuple[Run, ...]) -> None:
        self.chain = chain
        self.members: set[object] = set()
        self.inside: set[str] = set()


class JoinedRuns:
    """The runs that go on in one process. The book's lock is held where they change."""

    def __init__(self) -> None:
        self._joined: dict[str, _Joined] = {}

    def begin(self, run: Run, outer: tuple[Run, ...], member: object) -> None:
        """Let calls have the run's label until all its members, or all those of an outer run, have ended it."""
        joined = self._joined.get(run.id)
        if joined is None:
            joined = self._joined[run.id] = _Joined((run, *outer))
        joined.members.add(member)
        for each in outer:
            if each.id in self._joined:
                self._joined[each.id].inside.add(run.id)

    def end(self, run: Run, member: object) -> list[Run]:
        """End it for this member. Returns the runs that are over: after its last member, it and those inside it."""
        joined = self._joined.get(run.id)
        if joined is None or member not in joined.members:
            return []
        joined.members.remove(member)
        if joined.members:
            return []
        over = [self._joined.pop(each).chain for each in (run.id, *joined.inside)]
        for chain in over:
            for outer in chain[1:]:
                if outer.id in self._joined:
                    self._joined[outer.id].inside.discard(chain[0].id)
        return [chain[0] for chain in over]

    def has(self, run: Run, member: object) -> bool:
        """Return whether the member takes part in the run. A forked child takes part in none."""
        joined = self._joined.get(run.id)
        return joined is not None and member in joined.members

    def of(self, labels: Labels, now_ms: int) -> tuple[Run, ...]:
        """Return the runs that a call with these labels belongs to. Raises `RunEnded`."""
        name = dict(labels).get(RUN)
        if name is None or not is_run(name):
            return ()
        joined = self._joined.get(name)
        if joined is None:
            raise RunEnded(f"run {name} has ended, or this process has not joined it")
        for run in joined.chain:
            if now_ms >= run.end_ms:
                raise RunEnded(f"run {run.id} has reached its end")
        return joined.chain
