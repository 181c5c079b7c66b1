"""Raises and resets: the cap while they last, after they end, and the books at all times."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from daycap import DaycapError, InvalidAmount, InvalidInput, UnknownAgent, UnknownBudget
from daycap.clock import DAY_MS, day_start_ms
from daycap.counters.memory import MemoryCounter
from daycap.ledger import accounts, budgets, raises, tables
from daycap.ledger.audit import audit
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.raises import Raise
from daycap.ledger.retention import open_days
from daycap.ledger.settle import settle
from daycap.ledger.slices import all_of
from daycap.money import MAX_MICROS
from daycap.settings import Settings
from tests.contract.conftest import DAY, NEXT, ServerClock
from tests.events import event

HOUR_MS = 3_600_000
SETTINGS = Settings()


class Desk:
    """Somebody who raises caps: of agent a, 1000 micros a day, and of its budget b, 500 in an hour of the clock."""

    def __init__(self, ledger: Ledger, publisher: CounterPublisher, clock: ServerClock) -> None:
        self.books, self.ledger, self.clock = (ledger, publisher), ledger, clock
        self.events = 0
        accounts.add(*self.books, {"a": 1000}, "test")
        budgets.add(*self.books, "b", {"agent": "a", "cap_micros": 500}, "test")
        raises.insert_row(*self.books, ("b/1", DAY), enforced=True)

    def raise_(self, who: str, by: int, **until: Any) -> Raise:
        return raises.raise_cap(*self.books, *named(who), by, "ann", "a demo", **until)

    def reset(self, who: str) -> Raise:
        return raises.reset(*self.books, *named(who), "ann")

    def set_cap(self, who: str, cap: int) -> None:
        if who == "a":
            accounts.set_cap(*self.books, "a", cap, "ann")
        else:
            budgets.alter(*self.books, "b", {"cap_micros": cap}, "ann")

    def later(self, ms: int) -> dict[str, int]:
        """Let time pass and end what is due."""
        self.clock.ms += ms
        return all_of(lambda place: raises.end_due(*self.books, place))

    def spend(self, amount: int, day: str = DAY) -> None:
        """Settle a call of the agent, which counts in the budget, too."""
        self.events += 1
        at_ms = day_start_ms(day) + HOUR_MS
        payload = event("a", day, number=self.events, held=amount, actual=amount, at_ms=at_ms)
        outcome = settle(self.ledger, [payload], open_days(SETTINGS, self.clock.ms))
        assert outcome.dead_letters == []
        self.books[1].publish(self.ledger, outcome.snapshots)

    def row(self, who: str, day: str = DAY) -> tuple[int, int]:
        """Cap and what was spent, in the ledger; the counter says the same."""
        owner, books = (who, tables.AGENTS) if who == "a" else ("b/1", tables.BUDGETS)
        columns = books.rows.c
        statement = sa.select(columns.cap_micros, columns.spent_micros, columns.seq)
        with self.ledger.reading() as connection:
            cap, spent, seq = connection.execute(statement.where(books.these(books.rows, [(owner, day)]))).one()
        (reading,) = self.books[1].read([(owner, day)])
        assert reading is not None
        assert (reading.cap_micros, reading.spent_micros, reading.seq) == (cap, spent, seq)
        return cap, spent

    def audit(self) -> list[dict[str, Any]]:
        return audit(*self.books, SETTINGS, DAY).differences


def named(who: str) -> tuple[str | None, str | None]:
    return (who, None) if who == "a" else (None, who)


CAP = {"a": 1000, "b": 500}


@pytest.fixture
def desk(ledger: Ledger, publisher: CounterPublisher, clock: ServerClock) -> Desk:
    return Desk(ledger, publisher, clock)


@pytest.mark.parametrize("who", "ab")
def test_raise_ends_by_itself(desk: Desk, who: str) -> None:
    cap = CAP[who]
    made = desk.raise_(who, 70, until_ms=desk.clock.ms + HOUR_MS)
    assert (made.amount_micros, made.cap_micros, made.reason, made.raised_by) == (70, cap + 70, "a demo", "ann")
    assert (made.agent, made.budget) == named(who)
    assert desk.row(who) == (cap + 70, 0)
    assert raises.find(*desk.books) == [made]
    assert desk.later(HOUR_MS - 1) == {"ended": 0}
    assert desk.row(who) == (cap + 70, 0)
    assert desk.later(1) == {"ended": 1}
    assert desk.row(who) == (cap, 0)
    assert desk.later(HOUR_MS) == {"ended": 0}
    assert desk.row(who) == (cap, 0)
    assert raises.find(*desk.books) == []
    (ended,) = raises.find(*desk.books, *named(who), ended=True)
    assert (ended.ended_by, ended.ended_at_ms) == ("daycap", made.raised_at_ms + HOUR_MS)
    assert desk.audit() == []


@pytest.mark.parametrize("who", "ab")
def test_cap_set_during_a_raise(desk: Desk, who: str) -> None:
    desk.raise_(who, 70, for_ms=HOUR_MS)
    desk.set_cap(who, 200)
    assert desk.row(who) == (270, 0)
    desk.set_cap(who, 300)
    assert desk.row(who) == (370, 0)
    assert desk.later(HOUR_MS) == {"ended": 1}
    assert desk.row(who) == (300, 0)


@pytest.mark.parametrize("who", "ab")
def test_two_raises_end_in_turn(desk: Desk, who: str) -> None:
    cap = CAP[who]
    desk.raise_(who, 70, for_ms=2 * HOUR_MS)
    second = desk.raise_(who, 5, for_ms=HOUR_MS)
    assert second.cap_micros == cap + 75
    desk.later(HOUR_MS)
    assert desk.row(who) == (cap + 70, 0)
    third = desk.raise_(who, 1)
    assert desk.row(who) == (cap + 71, 0)
    desk.later(HOUR_MS)
    assert desk.row(who) == (cap + 1, 0)
    assert raises.cancel(*desk.books, third.id, "bob").ended_by == "bob"
    assert desk.row(who) == (cap, 0)
    assert desk.audit() == []


def test_nobody_hears_of_another_agents_raise(desk: Desk) -> None:
    accounts.add(*desk.books, {"other": 1000}, "test")
    desk.raise_("a", 70)
    assert accounts.find(*desk.books, ["other"])[0].cap_micros == 1000
    assert budgets.find(*desk.books, ["b"])[0].period_cap_micros == 500


@pytest.mark.parametrize("who", "ab")
def test_what_was_spent_by_a_raise_stays(desk: Desk, who: str) -> None:
    desk.set_cap("a", 500)
    desk.raise_(who, 70, for_ms=HOUR_MS)
    desk.raise_("b" if who == "a" else "a", 1000)
    desk.spend(560)
    desk.later(HOUR_MS)
    assert desk.row(who) == (500, 560)
    desk.spend(20)  # It was lent before the raise ended: it is in the books as uncovered.
    assert desk.row(who) == (500, 560)
    assert desk.audit() == []
    desk.raise_(who, 100)
    desk.spend(20)
    assert desk.row(who) == (600, 580)


@pytest.mark.parametrize("who", "ab")
def test_raise_lasts_as_long_as_its_period(desk: Desk, who: str) -> None:
    cap = CAP[who]
    desk.raise_(who, 70)
    kept = desk.raise_(who, 5, for_ms=12 * HOUR_MS)
    assert kept.until_ms is None
    assert desk.later(12 * HOUR_MS) == {"ended": 0}
    raises.insert_row(*desk.books, ("a" if who == "a" else "b/1", NEXT), enforced=True)
    assert (desk.row(who), desk.row(who, NEXT)) == ((cap + 75, 0), (cap, 0))
    assert raises.find(*desk.books) == []
    with pytest.raises(InvalidInput, match=f"raise {kept.id} is of a period that is over"):
        raises.cancel(*desk.books, kept.id, "ann")
    desk.set_cap(who, 10)
    assert (desk.row(who)[0], desk.row(who, NEXT)[0]) == (cap + 75, 10)


@pytest.mark.parametrize("who", "ab")
def test_raise_that_ends_too_late(desk: Desk, who: str) -> None:
    # Given a raise whose end nobody saw to before its period was over
    desk.raise_(who, 70, for_ms=HOUR_MS)
    assert desk.later(DAY_MS) == {"ended": 0}
    # Then what was lent by it is charged.
    desk.set_cap("a", 2000)
    assert desk.row(who) == (CAP[who] + 70, 0)
    assert desk.later(DAY_MS) == {"ended": 0}
    (found,) = raises.find(*desk.books, ended=True)
    assert (found.until_ms, found.ended_at_ms) == (None, None)


@pytest.mark.parametrize("who", "ab")
def test_reset_gives_the_whole_cap(desk: Desk, who: str, counter: MemoryCounter) -> None:
    cap = CAP[who]
    desk.raise_("b" if who == "a" else "a", 5000)
    desk.spend(300)
    made = desk.reset(who)
    assert (made.kind, made.amount_micros, made.cap_micros, made.until_ms) == ("reset", 300, cap + 300, None)
    assert desk.row(who) == (cap + 300, 300)
    (reading,) = counter.read([(made.agent or "b/1", DAY)])
    assert reading is not None
    assert reading.remaining_micros == cap
    desk.spend(200)
    assert desk.reset(who).amount_micros == 200
    desk.set_cap(who, 50)
    assert desk.row(who) == (550, 500)
    desk.spend(60)
    assert desk.row(who) == (550, 550)
    assert desk.audit() == []


def test_reset_counts_what_the_counter_counts(desk: Desk, counter: MemoryCounter) -> None:
    # Given a cap that was lowered below what was lent, so that 300 are drawn and 100 charged
    desk.set_cap("a", 100)
    desk.spend(300)
    desk.reset("a")
    (reading,) = counter.read([("a", DAY)])
    assert reading is not None
    assert reading.remaining_micros == 100
    desk.reset("a")
    assert desk.row("a") == (400, 100)


def test_reset_is_taken_back(desk: Desk) -> None:
    desk.spend(300)
    raises.cancel(*desk.books, desk.reset("a").id, "ann")
    assert desk.row("a") == (1000, 300)


def test_reset_during_a_raise(desk: Desk) -> None:
    desk.spend(300)
    desk.raise_("a", 70, for_ms=HOUR_MS)
    desk.reset("a")
    assert desk.row("a") == (1370, 300)
    desk.later(HOUR_MS)
    assert desk.row("a") == (1300, 300)


def test_raise_of_a_watching_budget(desk: Desk, counter: MemoryCounter) -> None:
    budgets.alter(*desk.books, "b", {"mode": "watch"}, "ann")
    assert desk.raise_("b", 70).cap_micros == 570
    (reading,) = counter.read([("b/1", DAY)])
    assert reading is not None
    assert reading.cap_micros == 500  # Nobody draws on it.
    assert budgets.find(*desk.books, ["b"])[0].period_cap_micros == 570


@pytest.mark.parametrize("who", "ab")
def test_raises_are_recorded(desk: Desk, who: str) -> None:
    desk.raise_(who, 70, for_ms=HOUR_MS)
    desk.later(HOUR_MS)
    if who == "a":
        assert accounts.changed_since(desk.ledger, 1) == (3, {"a"})
        return
    raised, ended = budgets.changes(desk.ledger, "budget", "b")[1:]
    assert (raised.reason, raised.changed_by) == ("a demo", "ann")
    assert raised.new is not None
    assert raised.new["raised"]["amount_micros"] == 70
    assert (ended.old, ended.new, ended.changed_by) == (raised.new, raised.old, "daycap")


def test_end_of_a_removed_budgets_raise(desk: Desk) -> None:
    desk.raise_("b", 70, for_ms=HOUR_MS)
    budgets.remove(*desk.books, "b", "ann")
    assert desk.later(HOUR_MS) == {"ended": 1}
    assert desk.row("b") == (500, 0)


def test_what_cannot_be_raised(desk: Desk) -> None:
    later = desk.clock.ms + 1
    refused: list[tuple[str | None, str | None, int, dict[str, Any], type[DaycapError]]] = [
        ("a", None, 0, {}, InvalidAmount),
        ("a", None, -1, {}, InvalidAmount),
        ("a", None, MAX_MICROS, {}, InvalidAmount),
        ("a", None, 1, {"until_ms": desk.clock.ms}, InvalidInput),
        ("a", None, 1, {"for_ms": 0}, InvalidInput),
        ("a", None, 1, {"for_ms": 1, "until_ms": later}, InvalidInput),
        ("a", "b", 1, {}, InvalidInput),
        (None, None, 1, {}, InvalidInput),
        ("nobody", None, 1, {}, UnknownAgent),
        (None, "nothing", 1, {}, UnknownBudget),
    ]
    for agent, budget, by, until, error in refused:
        with pytest.raises(error):
            raises.raise_cap(*desk.books, agent, budget, by, "ann", **until)
    with pytest.raises(DaycapError, match="there is no raise 7; see: daycap cap raises"):
        raises.cancel(*desk.books, 7, "ann")
    assert raises.find(*desk.books, ended=True) == []
    assert (desk.row("a"), desk.audit()) == ((1000, 0), [])


def test_cap_never_exceeds_the_largest_amount(desk: Desk) -> None:
    desk.raise_("a", 70, for_ms=HOUR_MS)
    desk.set_cap("a", MAX_MICROS)
    assert desk.row("a") == (MAX_MICROS, 0)
    desk.later(HOUR_MS)
    assert desk.row("a") == (MAX_MICROS, 0)


@pytest.mark.parametrize("who", "ab")
def test_audit_knows_the_highest_cap(desk: Desk, who: str) -> None:
    desk.raise_("b" if who == "a" else "a", 5000)
    desk.raise_(who, 70, for_ms=HOUR_MS)
    desk.clock.ms += 1
    desk.set_cap(who, CAP[who] + 100)
    desk.spend(CAP[who] + 170)
    desk.later(HOUR_MS)
    desk.set_cap(who, 50)
    assert desk.row(who) == (50, CAP[who] + 170)
    assert desk.audit() == []
    with desk.ledger.writing() as connection:
        connection.execute(
            sa.update(tables.cap_raises)
            .where(tables.cap_raises.c.amount_micros == 70)
            .values(amount_micros=69, cap_micros=1)
        )
    assert [each["promise"] for each in desk.audit()] == ["P1"]


def test_first_enforcement_is_not_fenced(desk: Desk, counter: MemoryCounter) -> None:
    budgets.add(*desk.books, "seen", {"agent": "a", "cap_micros": 90, "mode": "watch"}, "ann")
    desk.clock.ms += DAY_MS
    desk.spend(30, NEXT)
    assert counter.read([("seen/1", NEXT)]) == [None]
    budgets.alter(*desk.books, "seen", {"mode": "enforce"}, "ann")
    (reading,) = counter.read([("seen/1", NEXT)])
    assert reading is not None
    assert (reading.fenced, reading.remaining_micros) == (False, 60)


def test_later_enforcement_is_fenced(desk: Desk, counter: MemoryCounter) -> None:
    # Given a budget that somebody may have leased from, and whose counter is lost
    budgets.alter(*desk.books, "b", {"mode": "watch"}, "ann")
    desk.books[1].counter = MemoryCounter(desk.clock)
    budgets.alter(*desk.books, "b", {"mode": "enforce"}, "ann")
    (reading,) = desk.books[1].read([("b/1", DAY)])
    assert reading is not None
    assert reading.fenced
