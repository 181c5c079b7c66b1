"""Dead letters on every database: each kind can be found, shown, replayed without charging twice, and dropped."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daycap import InvalidInput, Refused, Settings
from daycap.clock import DAY_MS, day_of, wall_ms
from daycap.ledger import accounts, dead_letters, settle, tables
from daycap.ledger.administration import Administration
from daycap.ledger.dead_letters import DeadLetter, Letter, UnknownDeadLetter
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import open_days
from daycap.ledger.tables import daily_agent_spending, settlements
from daycap.protocol.counter import LeaseTerms
from daycap.protocol.dead_letter import Kind
from tests.events import event
from worker import dead_letter_replay
from worker.dead_letter_replay import Replayed
from worker.deployment import Deployment

TODAY = day_of(wall_ms())
LONG_AGO = day_of(wall_ms() - 500 * DAY_MS)
NOWHERE = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))
OTHERS = "b" * 32


@pytest.fixture
def parts(ledger: Ledger) -> Deployment:
    """A worker's parts, with an account that has 5 dollars and one hold that is settled."""
    accounts.add(ledger, NOWHERE, {"agent-7": 5_000_000, "other": 5_000_000}, "test")
    parts = Deployment(Settings(), ledger, NOWHERE)
    settled(parts, event("agent-7", TODAY, number=1), event("other", TODAY, lease=OTHERS))
    return parts


LETTERS: dict[Kind, Any] = {
    Kind.MALFORMED: event("agent-7", TODAY, number=2, v=3),
    Kind.UNKNOWN_AGENT: event("agent-8", TODAY, lease="c" * 32),
    Kind.WRONG_LEASE: event("agent-7", TODAY, number=3, lease=OTHERS),
    Kind.WRONG_DAY: event("agent-7", "2999-01-01", number=4),
    Kind.DAY_CLOSED: event("agent-7", LONG_AGO, number=5, lease="d" * 32),
    Kind.CONFLICT: event("agent-7", TODAY, number=1, actual=1),
}


def settled(parts: Deployment, *payloads: object) -> settle.Outcome:
    return settle.settle(parts.ledger, payloads, open_days(parts.settings, wall_ms()))


def kept(parts: Deployment, letter: DeadLetter) -> Letter:
    settle.keep(parts.ledger, letter)
    return dead_letters.get(parts.ledger, letter.id)


def administration(parts: Deployment) -> Administration:
    return Administration(parts.settings, parts.ledger, parts.publisher)


def replay(parts: Deployment, letter: Letter) -> Replayed:
    (done,) = dead_letter_replay.replay(parts, [letter.id], "ann")
    return done


def spent(parts: Deployment) -> int:
    with parts.ledger.reading() as connection:
        charged = connection.execute(sa.select(sa.func.sum(settlements.c.charged_micros))).scalar_one()
        assert connection.execute(sa.select(sa.func.sum(daily_agent_spending.c.spent_micros))).scalar_one() == charged
    return int(charged)


@pytest.mark.parametrize("kind", LETTERS)
def test_each_kind_is_found_shown_replayed_and_dropped(parts: Deployment, kind: Kind) -> None:
    before = spent(parts)
    settled(parts, LETTERS[kind])

    (listed,) = dead_letters.find(parts.ledger, kind=kind.value)
    assert (listed.kind, listed.times, listed.payload) == (kind, 1, None)
    assert [listed] == dead_letters.find(parts.ledger, agent=LETTERS[kind]["agent"])
    assert dead_letters.find(parts.ledger, agent="agent_7") == []
    shown = dead_letters.get(parts.ledger, listed.id[:12])
    assert json.loads(shown.payload or "") == LETTERS[kind]

    # What made it a dead letter is as it was: it stays, is counted once more, and nothing is charged.
    done = replay(parts, shown)
    assert done.became == ("refused" if kind == Kind.CONFLICT else kind)
    assert done.reason
    assert dead_letters.get(parts.ledger, shown.id).times == (1 if kind == Kind.CONFLICT else 2)
    assert (spent(parts), dead_letters.count(parts.ledger)) == (before, 1)

    assert administration(parts).drop_dead_letters([shown.id[:4]], "ann") == [shown.id]
    assert dead_letters.count(parts.ledger) == 0


def test_an_event_is_charged_once_its_agent_is_there(parts: Deployment) -> None:
    before = spent(parts)
    letter = kept(parts, settled(parts, LETTERS[Kind.UNKNOWN_AGENT]).dead_letters[0])
    accounts.add(parts.ledger, NOWHERE, {"agent-8": 5_000_000}, "test")

    assert replay(parts, letter) == Replayed(letter.id, "settled", "", 31_200)
    assert spent(parts) == before + 31_200
    assert dead_letters.count(parts.ledger) == 0
    with pytest.raises(UnknownDeadLetter):
        replay(parts, letter)


def test_an_operator_may_charge_a_day_whose_books_are_closed(parts: Deployment) -> None:
    """As long as its settlements are kept: an event that was settled before is a duplicate and charges nothing."""
    before, closed = spent(parts), day_of(wall_ms() - 30 * DAY_MS)
    letter = kept(parts, settled(parts, event("agent-7", closed, lease="d" * 32)).dead_letters[0])
    assert letter.kind == Kind.DAY_CLOSED

    assert replay(parts, letter) == Replayed(letter.id, "settled", "", 31_200)
    assert spent(parts) == before + 31_200


def test_refused_event_is_charged_later(parts: Deployment) -> None:
    before = spent(parts)
    letter = kept(parts, DeadLetter(Kind.FAILED, "the ledger refused the row", event("agent-7", TODAY, number=2)))

    assert dead_letters.find(parts.ledger, kind="failed") == [letter._replace(payload=None)]
    assert replay(parts, letter).became == "settled"
    assert (spent(parts), dead_letters.count(parts.ledger)) == (before + 31_200, 0)


def test_a_replay_that_ended_before_it_removed_the_letter_charges_once(
    parts: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = spent(parts)
    letter = kept(parts, settled(parts, LETTERS[Kind.UNKNOWN_AGENT]).dead_letters[0])
    accounts.add(parts.ledger, NOWHERE, {"agent-8": 5_000_000}, "test")

    # Given a worker that ends between the two transactions
    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(dead_letters, "remove", ends)
        with pytest.raises(KeyboardInterrupt):
            replay(parts, letter)
    assert dead_letters.count(parts.ledger) == 1

    assert replay(parts, letter).became == "duplicate"
    assert spent(parts) == before + 31_200
    assert dead_letters.count(parts.ledger) == 0


def test_a_letter_that_fails_for_another_reason_is_kept_under_that(parts: Deployment) -> None:
    letter = kept(parts, settled(parts, event("agent-8", TODAY, lease=OTHERS, number=9)).dead_letters[0])
    accounts.add(parts.ledger, NOWHERE, {"agent-8": 5_000_000}, "test")

    assert replay(parts, letter).became == Kind.WRONG_LEASE
    (now,) = dead_letters.find(parts.ledger)
    assert (now.kind, now.id != letter.id) == (Kind.WRONG_LEASE, True)


def test_conflict_is_never_charged(parts: Deployment) -> None:
    letter = kept(parts, settled(parts, LETTERS[Kind.CONFLICT]).dead_letters[0])
    with parts.ledger.writing() as connection:
        connection.execute(sa.delete(settlements))

    assert replay(parts, letter).became == "refused"
    with parts.ledger.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(settlements)).scalar_one() == 0


def test_closed_days_event_is_charged_once(parts: Deployment) -> None:
    before = spent(parts)
    long_closed = day_of(wall_ms() - 9 * DAY_MS)
    first, second = (event("agent-7", long_closed, number=number, lease="d" * 32) for number in (1, 2))
    letters = [kept(parts, letter) for letter in settled(parts, first, second).dead_letters]
    assert {letter.kind for letter in letters} == {Kind.DAY_CLOSED}

    assert replay(parts, letters[0]).became == "settled"
    assert spent(parts) == before + 31_200

    # Given a retention that was short once, and is made longer: what was pruned does not come back
    with parts.ledger.writing() as connection:
        connection.execute(sa.delete(settlements).where(settlements.c.spending_date == long_closed))
    done = replay(parts, letters[1])
    assert (done.became, "pruned" in done.reason) == ("refused", True)
    with parts.ledger.reading() as connection:
        kept_now = connection.scalars(sa.select(settlements.c.spending_date)).all()
    assert long_closed not in kept_now


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"args": [], "kwargs": {"unreadable": "{"}}, "whole message"),
        (["x" * 2_000_000], "cut"),
    ],
)
def test_what_is_no_event_is_refused_with_a_reason(parts: Deployment, payload: object, reason: str) -> None:
    letter = kept(parts, DeadLetter(Kind.MALFORMED, "test", payload))

    assert replay(parts, letter).became == "refused"
    assert reason in replay(parts, letter).reason
    assert dead_letters.get(parts.ledger, letter.id).times == 1


def test_all_are_replayed_some_at_once(parts: Deployment) -> None:
    before = spent(parts)
    settled(parts, *(event("agent-8", TODAY, lease="c" * 32, number=number, actual=7) for number in range(1, 121)))
    settled(parts, LETTERS[Kind.WRONG_DAY])
    accounts.add(parts.ledger, NOWHERE, {"agent-8": 5_000_000}, "test")

    done, after = [], ""
    while some := dead_letter_replay.replay_next(parts, Kind.UNKNOWN_AGENT, after, "ann"):
        done += some
        after = some[-1].id

    assert [each.became for each in done] == ["settled"] * 120
    assert spent(parts) == before + 120 * 7
    assert [letter.kind for letter in dead_letters.find(parts.ledger)] == [Kind.WRONG_DAY]


def test_the_newest_come_first_and_no_more_than_asked_for(parts: Deployment) -> None:
    for number, seen_at in ((1, 3_000), (2, 1_000), (3, 2_000)):
        with parts.ledger.writing() as connection:
            dead_letters.store(connection, [DeadLetter(Kind.MALFORMED, "test", number)], seen_at)

    assert [letter.last_seen_at for letter in dead_letters.find(parts.ledger, limit=2)] == [3_000, 2_000]


def test_ids_that_are_none_or_many_are_refused_and_nothing_is_dropped(parts: Deployment) -> None:
    letter = kept(parts, DeadLetter(Kind.MALFORMED, "test", 1))
    other = "1" if letter.id.endswith("0") else "0"
    twin = {"dead_letter_id": letter.id[:31] + other, "kind": "failed", "reason": "", "payload": "1"}
    with parts.ledger.writing() as connection:
        times = {"first_seen_at": 1, "last_seen_at": 1, "times": 1}
        connection.execute(sa.insert(tables.dead_letters), [{**twin, **times}])

    for prefixes, error in (
        ([letter.id, "0123"], UnknownDeadLetter),
        ([letter.id[:31]], InvalidInput),
        (["%" * 8], InvalidInput),
        (["abc"], InvalidInput),
        ([letter.id + "\n"], InvalidInput),
    ):
        with pytest.raises(error):
            administration(parts).drop_dead_letters(prefixes, "ann")
    assert dead_letters.count(parts.ledger) == 2


def test_who_dropped_what_is_in_the_log(parts: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    letter = kept(parts, DeadLetter(Kind.MALFORMED, "test", {"v": 7}))

    with caplog.at_level(logging.WARNING, "daycap.worker"):
        administration(parts).drop_dead_letters([letter.id], "ann@desk")

    assert letter.id in caplog.text
    assert "dropped by ann@desk" in caplog.text
    assert '{"v":7}' in caplog.text


def test_nothing_is_dropped_unless_recorded(parts: Deployment) -> None:
    letter = kept(parts, DeadLetter(Kind.MALFORMED, "test", {"v": 7}))

    def fail(_: Letter) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        dead_letters.drop(parts.ledger, [letter.id], fail)
    assert dead_letters.count(parts.ledger) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(payload=JSON | st.dictionaries(st.sampled_from(sorted(LETTERS[Kind.MALFORMED])), JSON))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_replayed_letter_stays_the_same(parts: Deployment, payload: object) -> None:
    (letter,) = settled(parts, payload).dead_letters
    found = dead_letters.get(parts.ledger, letter.id)
    replay(parts, found)

    assert dead_letters.get(parts.ledger, letter.id).times == found.times + 1
    administration(parts).drop_dead_letters([letter.id], "test")


def test_what_python_cannot_write_is_kept_all_the_same(parts: Deployment) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for payload in (
        10**5_000,
        event("agent-7", TODAY, number=2, actual=10**5_000),
        event("agent-7", TODAY, number=2, v=10**5_000),
        event("agent-7", TODAY, number=2, actual=deep),
        event("agent-7", TODAY, number=2, reservation=deep),
    ):
        outcome = settled(parts, payload, event("agent-7", TODAY, number=5))
        assert outcome.settled + outcome.duplicates == 1
        (letter,) = outcome.dead_letters
        assert letter.kind == Kind.MALFORMED
        assert replay(parts, dead_letters.get(parts.ledger, letter.id)).became in (Kind.MALFORMED, "refused")


def test_a_refusal_is_daycaps_own(parts: Deployment) -> None:
    with pytest.raises(Refused):
        dead_letters.get(parts.ledger, "0" * 32)
