"""Caps and pauses that change while runners have warm leases. In force with the next renewal at the latest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.leases.conftest import LeaseSpine
from tests.runner import Runner, Said

WARM = 1_000
RENEWALS = 3
"""Deadlines that a lease has from a change until every runner has heard of it: as it was, the renewal that hears of
it, the one that hands back. A renewal that was under way when the change was made does not hear of it."""


def runners_with(spine: LeaseSpine, agent: str, each: int, count: int = 3) -> list[tuple[Runner, str, str]]:
    """Runners that hold 1, and the rest of `each`, which they will have free and go on using."""
    runners = [spine.runner(slice_seconds=WARM) for _ in range(count)]
    return [(runner, runner.reserve(agent, 1), runner.reserve(agent, each - 1)) for runner in runners]


def renewals_until(spine: LeaseSpine, agent: str, holds: list[str], over: Callable[[int], bool]) -> int:
    """Ask `over` of each runner, by number, until all say yes. How many deadlines the slowest one's lease had."""
    seen: list[set[int]] = [set() for _ in holds]

    def all_over() -> bool:
        said = []
        for number, hold in enumerate(holds):
            deadline_ms = spine.lease(agent, hold).deadline_ms
            said.append(over(number))
            if not said[-1]:
                seen[number].add(deadline_ms)
        return all(said)

    spine.wait_for(all_over)
    return max(map(len, seen))


def refused(runner: Runner, agent: str, estimate: int) -> bool:
    """Whether the runner is, as the cap is passed; what it gets, it gives back at once."""
    hold = runner.reserve_or_none(agent, estimate)
    if hold is not None:
        runner.release(hold)
    return hold is None


def paused(runner: Runner, agent: str) -> bool:
    """Whether the runner can make no hold because of that."""
    try:
        runner.release(runner.reserve(agent, 1))
    except Said as said:
        return said.error == "AgentPaused"
    return False


def set_cap(spine: LeaseSpine, agent: str, cap: int) -> None:
    spine.ask("daycap.set_cap", agent=agent, cap_micros=cap, changed_by="ann")


def set_status(spine: LeaseSpine, agent: str, status: str) -> None:
    spine.ask("daycap.set_status", agent=agent, status=status, changed_by="bob")


def test_a_raised_cap_is_lent_at_once(spine: LeaseSpine) -> None:
    agent, a = spine.add("agent-7", 100), spine.runner()
    held = a.reserve(agent, 100)
    assert refused(a, agent, 1)

    set_cap(spine, agent, 150)

    a.release(a.reserve(agent, 50))
    assert refused(a, agent, 51)
    a.finalize(held, 100)
    spine.check_all_ended(agent)


def test_lowered_cap_reaches_warm_leases_at_renewal(
    spine: LeaseSpine,
) -> None:
    agent = spine.add("agent-7", 1_000)
    runners, late = runners_with(spine, agent, 300), spine.runner()
    all_of_late = late.reserve(agent, 100)

    # When it is set below what is leased
    set_cap(spine, agent, 100)

    assert late.reserve_or_none(agent, 1) is None
    late.release(all_of_late)
    for runner, _, rest in runners:
        runner.release(rest)
    holds = [hold for _, hold, _ in runners]
    renewals = renewals_until(spine, agent, holds, lambda number: refused(runners[number][0], agent, 200))
    assert renewals <= RENEWALS
    # And what is free beyond it comes back; what is under way ends
    spine.wait_for(lambda: spine.leased(agent) == 3)
    assert not refused(runners[0][0], agent, 97)
    for runner, hold, _ in runners:
        runner.finalize(hold, 1)
    spine.check_all_ended(agent)
    assert spine.day_row(agent)["spent_micros"] == 3
    (_, change) = spine.rows("SELECT * FROM cap_changes ORDER BY cap_change_id")
    assert (change["old_cap_micros"], change["new_cap_micros"], change["changed_by"]) == (1_000, 100, "ann")


def test_money_above_a_lowered_cap_is_not_reused(spine: LeaseSpine) -> None:
    agent, a, b = spine.add("agent-7", 1_000), spine.runner(slice_seconds=WARM), spine.runner(slice_seconds=WARM)
    others, call = b.reserve(agent, 300), a.reserve(agent, 600)

    set_cap(spine, agent, 200)
    before_ms = spine.lease(agent, call).deadline_ms
    spine.wait_for(lambda: spine.lease(agent, call).deadline_ms > before_ms)
    a.finalize(call, 1)

    for _ in range(10):
        assert refused(a, agent, 100)
    b.finalize(others, 100)
    spine.wait_for(lambda: not refused(a, agent, 99))
    assert refused(a, agent, 100)
    spine.check_all_ended(agent)
    assert spine.day_row(agent)["spent_micros"] == 101


def test_pause_stops_warm_leases_at_renewal(spine: LeaseSpine) -> None:
    agent = spine.add("agent-7", 1_000)
    runners, late = runners_with(spine, agent, 300), spine.runner()

    set_status(spine, agent, "paused")

    with pytest.raises(Said, match="AgentPaused"):
        late.reserve(agent, 1)
    for runner, _, rest in runners:
        runner.release(rest)
    holds = [hold for _, hold, _ in runners]
    renewals = renewals_until(spine, agent, holds, lambda number: paused(runners[number][0], agent))
    assert renewals <= RENEWALS
    # Calls under way end, and what that frees is not held again
    spine.wait_for(lambda: spine.leased(agent) == 3)
    for runner, hold, _ in runners:
        runner.finalize(hold, 0)
        assert paused(runner, agent)

    set_status(spine, agent, "active")

    assert not refused(runners[0][0], agent, 1_000)
    spine.check_all_ended(agent)
    changes = spine.rows("SELECT * FROM cap_changes ORDER BY cap_change_id")[1:]
    assert [(c["old_status"], c["new_status"], c["changed_by"]) for c in changes] == [
        ("active", "paused", "bob"),
        ("paused", "active", "bob"),
    ]
    assert all(spine.counter.now_ms() - 120_000 < change["changed_at"] for change in changes)
