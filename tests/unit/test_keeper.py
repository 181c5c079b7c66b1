"""What the keeper does for many leases at once, on a clock that the test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from daycap import Settings
from daycap.counter import ACTIVE, DaySnapshot, SyncReply, SyncRequest
from daycap.keeper import Keeper
from daycap.memory_counter import MemoryCounter
from tests.runner_without_io import DAY, TERMS, Runner


class Slow(MemoryCounter):
    """Each lease that it is asked about takes it two milliseconds."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(lambda: runner.ms)
        self._runner = runner

    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        self._runner.ms += 2 * len(requests)
        return super().sync(requests)


def test_every_lease_is_renewed_though_all_of_them_take_longer_than_an_answer_may() -> None:
    runner, agents = Runner(), [f"agent-{number}" for number in range(1_501)]
    runner.counter = counter = Slow(runner)
    counter.publish(
        [DaySnapshot(agent, DAY, 1, ACTIVE, 1_000, 0) for agent in agents], TERMS, first_until_ms=runner.ms + 10_000
    )
    for agent in agents:
        pending = runner.book.begin_top_up(agent, 10)
        hold = runner.book.finish_top_up(pending, *counter.sync([pending.request]), 10)
        assert hold is not None
        hold.release()
    deadlines = {lease: lease.deadline_ns for lease in runner.book.leases()}
    began_ms = runner.ms

    assert Keeper(runner.book, counter, cast(Any, None), None, Settings()).renew()

    assert runner.ms - began_ms > 2 * TERMS.guard_ms
    assert [lease.agent for lease, deadline_ns in deadlines.items() if lease.deadline_ns == deadline_ns] == []
