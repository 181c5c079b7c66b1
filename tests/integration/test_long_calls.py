"""Calls that need more in the middle, and are paid in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from daycap import BudgetUnavailable, CapExceeded, HoldEnded, InvalidAmount
from daycap.wallet.hold import BaseHold
from tests.in_loop import InLoop

if TYPE_CHECKING:
    from tests.spine import Spine

M = 1_000_000

pytestmark = pytest.mark.usefixtures("both_faces")


def extend(wallet: Any, hold: Any, more: int) -> None:
    if isinstance(wallet, InLoop):
        wallet.extend(hold, more)
    else:
        hold.extend(more)


def test_hold_is_extended_up_to_the_cap(spine: Spine) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet(slice_seconds=0)
    hold = wallet.reserve(agent, 1 * M)

    for more, held in ((100_000, 1_100_000), (3_900_000, 5 * M)):
        extend(wallet, hold, more)
        assert hold.held_micros == held
    with pytest.raises(CapExceeded):
        extend(wallet, hold, 1)

    assert hold.held_micros == 5 * M
    hold.finalize(4_999_999)
    assert wallet.flush(20) == ()
    assert spine.settled_once(agent) == (1, 4_999_999)
    assert spine.rows("SELECT held_micros FROM settlements") == [{"held_micros": 5 * M}]
    assert wallet.close(20) == ()
    (reading,) = spine.counter.read([(agent, spine.today)])
    assert (reading.leased_micros, reading.remaining_micros) == (0, 1)


def test_a_hold_that_ended_is_not_extended_and_nothing_stays_held(spine: Spine) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    hold = wallet.reserve(agent, 1_000)
    hold.finalize(1_000)

    with pytest.raises(HoldEnded):
        extend(wallet, hold, 1_000)
    with pytest.raises(HoldEnded):
        hold.settle_part(1)

    assert wallet.stats().live_holds == 0
    assert wallet.close(20) == ()
    (reading,) = spine.counter.read([(agent, spine.today)])
    assert reading.leased_micros == 0


def test_a_hold_whose_lease_has_a_successor_is_not_extended(spine: Spine) -> None:
    """As on the next day: a hold is of one lease."""
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    hold = wallet.reserve(agent, 1_000)
    with wallet._book.lock:
        wallet._book.leases.retire(hold._lease)

    with pytest.raises(BudgetUnavailable, match="reserve again"):
        extend(wallet, hold, 1_000)

    assert (hold.held_micros, wallet.stats().live_holds) == (1_000, 1)
    hold.finalize(1_000)
    assert wallet.close(20) == ()


def test_parts_are_settled_while_the_call_goes_on_and_each_once(spine: Spine) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet()
    hold = wallet.reserve(agent, 10_000)

    for part in (1_000, 2_000):
        hold.settle_part(part)
    with pytest.raises(InvalidAmount):
        hold.settle_part(-1)

    assert wallet.flush(20) == ()
    assert spine.settled_once(agent) == (2, 3_000), "what a runner that dies now has lost is what came after"
    assert (hold.held_micros, hold.ended) == (7_000, False)
    hold.finalize(500)
    assert wallet.flush(20) == ()
    assert spine.settled_once(agent) == (3, 3_500)
    rows = spine.rows("SELECT held_micros, actual_micros FROM settlements ORDER BY reservation_id")
    assert [tuple(row.values()) for row in rows] == [(7_000, 500), (1_000, 1_000), (2_000, 2_000)]
    assert wallet.close(20) == ()
    assert spine.ask("daycap.audit")["differences"] == []


def test_part_above_its_hold_is_charged(spine: Spine) -> None:
    agent, wallet = spine.add("agent-7", 5 * M), spine.wallet(slice_seconds=0)
    hold: BaseHold = wallet.reserve(agent, 1_000)

    hold.settle_part(3_000)

    assert hold.held_micros == 0
    hold.finalize(0)
    assert wallet.close(20) == ()
    assert spine.settled_once(agent) == (2, 3_000)
