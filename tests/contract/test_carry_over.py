"""Carry over: what a period left and the next one got, exactly once, whatever is still charged to the former."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from daycap import InvalidInput
from daycap.clock import DAY_MS, day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.ledger import accounts, budgets, carry_over, raises
from daycap.ledger.carry_over import WAITS_MS
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import all_of
from daycap.protocol.counter import Answer, SyncRequest
from tests.contract.conftest import DAY, NEXT, ServerClock
from tests.contract.test_raises import HOUR_MS, Desk

BEGIN_MS = day_start_ms(NEXT)
AFTER_NEXT = "2026-11-26"


@pytest.fixture
def desk(ledger: Ledger, publisher: CounterPublisher, clock: ServerClock) -> Desk:
    """Somebody with budget b, 500 micros a day, which carries over at most 200 from now on."""
    desk = Desk(ledger, publisher, clock)
    accounts.set_cap(*desk.books, "a", 10_000, "test")
    budgets.alter(*desk.books, "b", {"carry_over_micros": 200}, "ann")
    return desk


def adjust(desk: Desk, at_ms: int = BEGIN_MS) -> int:
    """Let beat run at this time. Returns from how many periods was carried over, also if nothing was left."""
    desk.clock.ms = at_ms
    return all_of(lambda place: carry_over.adjust_caps(*desk.books, place))["carried"]


@pytest.mark.parametrize(("spent", "carried"), [(0, 200), (299, 200), (301, 199), (500, 0), (600, 0)])
def test_what_is_left_is_carried(desk: Desk, spent: int, carried: int) -> None:
    desk.spend(spent)
    assert adjust(desk, BEGIN_MS - 1) == 0
    assert adjust(desk) == 1
    assert (desk.row("b"), desk.row("b", NEXT)) == ((500 - carried, min(spent, 500)), (500 + carried, 0))
    assert adjust(desk) == adjust(desk, BEGIN_MS + DAY_MS - 1) == 0
    assert [each.amount_micros for each in raises.find(*desk.books)] == [carried] * (carried > 0)
    # Late events of the former day never get what was carried.
    desk.spend(1000)
    assert desk.row("b") == (500 - carried, 500 - carried)
    assert desk.audit() == []


def test_cap_set_after_a_carry_over(desk: Desk) -> None:
    adjust(desk)
    desk.set_cap("b", 50)
    assert (desk.row("b"), desk.row("b", NEXT)) == ((300, 0), (250, 0))
    # And what was carried can be carried on: then the cap of the day was 250, and 200 is the most.
    assert adjust(desk, BEGIN_MS + DAY_MS) == 1
    assert (desk.row("b", NEXT), desk.row("b", AFTER_NEXT)) == ((50, 0), (250, 0))


def test_first_period_gets_nothing(desk: Desk) -> None:
    # Neither from before the budget was added, nor from before it carried over.
    budgets.add(*desk.books, "new", {"agent": "a", "cap_micros": 9, "carry_over_micros": 9}, "ann")
    assert adjust(desk, BEGIN_MS - 1) == 0
    assert raises.find(*desk.books) == []


def test_period_under_way_gets_nothing(desk: Desk) -> None:
    # Given a budget that carries over again from the next day on
    budgets.alter(*desk.books, "b", {"carry_over_micros": 0}, "ann")
    desk.clock.ms = BEGIN_MS
    raises.insert_row(*desk.books, ("b/1", NEXT), enforced=True)
    budgets.alter(*desk.books, "b", {"carry_over_micros": 150}, "ann")
    assert adjust(desk) == 0
    assert (desk.row("b"), desk.row("b", NEXT)) == ((500, 0), (500, 0))
    adjust(desk, BEGIN_MS + DAY_MS)
    assert desk.row("b", AFTER_NEXT) == (650, 0)


def test_carried_once_by_two_workers(desk: Desk) -> None:
    desk.clock.ms = BEGIN_MS
    for _ in range(2):  # Both have seen that it is due.
        carry_over._carry(*desk.books, ("b/1", DAY), ("b/1", NEXT), 0)
    assert (desk.row("b"), desk.row("b", NEXT)) == ((300, 0), (700, 0))


def test_nothing_of_a_raise_is_carried(desk: Desk) -> None:
    desk.raise_("b", 1000)
    desk.spend(400)
    adjust(desk)
    assert (desk.row("b"), desk.row("b", NEXT)) == ((1400, 400), (600, 0))


def test_reset_leaves_the_whole_cap(desk: Desk) -> None:
    desk.spend(400)
    desk.reset("b")
    desk.spend(350)
    adjust(desk)
    assert (desk.row("b"), desk.row("b", NEXT)) == ((750, 750), (650, 0))


def test_leased_money_is_waited_for(desk: Desk, counter: MemoryCounter) -> None:
    # Given 400 out while the day ends
    lease = SyncRequest("b/1", DAY, "c" * 32, 0, 0, 400, 400, span=(BEGIN_MS - DAY_MS, BEGIN_MS))
    (reply,) = counter.sync([lease])
    assert reply.answer is Answer.OK
    assert adjust(desk) == adjust(desk, BEGIN_MS + WAITS_MS - 1) == 0
    # Then all but that is carried at last.
    assert adjust(desk, BEGIN_MS + WAITS_MS) == 1
    assert (desk.row("b"), desk.row("b", NEXT)) == ((400, 0), (600, 0))


def test_lost_counter_is_waited_for(desk: Desk) -> None:
    desk.books[1].counter = MemoryCounter(desk.clock)
    assert adjust(desk) == adjust(desk, BEGIN_MS + WAITS_MS - 1) == 0
    assert adjust(desk, BEGIN_MS + WAITS_MS) == 1
    assert budgets.find(*desk.books, ["b"])[0].period_cap_micros == 700


def test_period_without_calls_leaves_all(desk: Desk) -> None:
    budgets.add(*desk.books, "c", {"agent": "a", "cap_micros": 9, "carry_over_micros": 9}, "ann")
    adjust(desk, BEGIN_MS + 2 * DAY_MS + WAITS_MS)
    assert budgets.find(*desk.books, ["c"])[0].period_cap_micros == 18


def test_watching_budget_carries_over(desk: Desk) -> None:
    budgets.alter(*desk.books, "b", {"mode": "watch"}, "ann")
    desk.spend(400)
    assert adjust(desk) == 1
    assert budgets.find(*desk.books, ["b"])[0].period_cap_micros == 600


def test_carry_over_is_not_cancelled(desk: Desk) -> None:
    adjust(desk)
    (carried,) = raises.find(*desk.books)
    with pytest.raises(InvalidInput, match="the period before no longer has it"):
        raises.cancel(*desk.books, carried.id, "ann")
    budgets.alter(*desk.books, "b", {"carry_over_micros": 0}, "ann")
    assert adjust(desk, BEGIN_MS + DAY_MS + HOUR_MS) == 0


def test_once_carries_nothing_over(desk: Desk) -> None:
    facts = {"agent": "a", "cap_micros": 9, "carry_over_micros": 9, "period": {"period": "once"}}
    with pytest.raises(InvalidInput, match="budget x: nothing is carried over from a period that never ends"):
        budgets.add(*desk.books, "x", facts, "ann")


def test_several_workers_adjust_caps_at_once(desk: Desk) -> None:
    desk.clock.ms = BEGIN_MS
    raised = desk.raise_("b", 1, for_ms=HOUR_MS)
    adjust(desk)
    desk.clock.ms = BEGIN_MS + DAY_MS
    raises.insert_row(*desk.books, ("b/1", AFTER_NEXT), enforced=True)
    desk.raise_("b", 7, for_ms=HOUR_MS)
    desk.clock.ms += HOUR_MS
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: all_of(lambda place: carry_over.adjust_caps(*desk.books, place)), range(3)))
    assert sum(each["ended"] for each in done) == 1
    assert desk.row("b", AFTER_NEXT) == (700, 0)
    assert raises.get(desk.ledger, raised.id).ended_at_ms is None
    assert [each.amount_micros for each in raises.find(*desk.books)] == [200]
