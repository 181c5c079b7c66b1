"""The audit of the peers benchmark: which refusals nothing explains, and what was overspent."""

from __future__ import annotations

import pytest

from tests.benchmarks.peers.audit import outcome
from tests.benchmarks.peers.callers import REFUSED, SETTLED, Row

CAP = 1000


def settled(caller: int, estimate: int, actual: int, begun: int, ended: int) -> Row:
    return (SETTLED, caller, estimate, actual, begun, begun + 1, ended - 1, ended)


def refused(caller: int, estimate: int, begun: int, ended: int) -> Row:
    return (REFUSED, caller, estimate, 0, begun, ended, 0, 0)


@pytest.mark.parametrize(
    ("hold", "false"),
    [
        pytest.param(settled(1, 900, 300, 10, 20), True, id="ended before"),
        pytest.param(settled(1, 900, 300, 10, 110), False, id="ended in the middle of it"),
        pytest.param(settled(1, 900, 300, 110, 200), False, id="began in the middle of it"),
        pytest.param(settled(1, 900, 300, 50, 200), False, id="held all the time"),
        pytest.param(settled(1, 900, 300, 121, 200), True, id="began after it"),
        pytest.param(settled(1, 900, 701, 10, 20), False, id="cost so much that no room was left"),
    ],
)
def test_a_refusal_is_false_only_if_there_was_room_at_every_moment(hold: Row, false: bool) -> None:
    # Given one call that holds 900 of 1000, and a refusal of 300 from 100 to 120
    rows = [hold, refused(2, 300, 100, 120)]

    # When it is audited
    found = outcome(rows, CAP)

    # Then the refusal is false only where that call cannot have been the reason
    assert (found.refusals, found.false_refusals) == (1, int(false))


def test_a_caller_that_gave_up_on_a_false_refusal_is_counted() -> None:
    # Given a caller that was refused for nothing and then served, and one whose last word was such a refusal
    rows = [refused(1, 100, 10, 11), settled(1, 100, 100, 20, 30), refused(2, 100, 40, 41)]

    # When it is audited
    found = outcome(rows, CAP)

    # Then both refusals are false, and one of them was for good
    assert (found.false_refusals, found.for_good) == (2, 1)


def test_what_was_spent_past_the_cap_is_counted_from_actual_costs() -> None:
    # Given calls whose estimates would pass the cap, and whose costs pass it by 100
    rows = [settled(1, 900, 500, 10, 20), settled(2, 900, 600, 30, 40)]

    # When it is audited
    found = outcome(rows, CAP)

    # Then that is what was overspent
    assert (found.over_micros, found.used) == (100, 1.1)
