"""Identity anchors on every database: each is one agent's for ever, and every change is on record."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from daycap import AgentExists, InvalidInput, UnknownAgent
from daycap.ledger import accounts, anchors
from daycap.ledger.anchors import AnchorChange, AnchorSet, AnchorTaken
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.tables import agent_accounts, identity_anchors
from daycap.protocol.counter import LeaseTerms

NOWHERE = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))


@pytest.fixture(autouse=True)
def agents(ledger: Ledger) -> None:
    """An agent with an anchor and two without."""
    accounts.add(ledger, NOWHERE, {"a": 100, "b": 100, "c": 100}, "ann", {"a": "anchor of a"})


def set_anchor(ledger: Ledger, agent: str, anchor: str, by: str = "ann", *, rotate: bool = False) -> list[AnchorChange]:
    return anchors.set_anchor(ledger, NOWHERE, agent, anchor, by, rotate)


def anchor_of(ledger: Ledger, agent: str) -> str | None:
    (account,) = accounts.find(ledger, NOWHERE, [agent])
    return account.identity_anchor


def changes(ledger: Ledger, agent: str) -> list[tuple[str | None, str, str]]:
    return [(each.old_anchor, each.new_anchor, each.changed_by) for each in anchors.history(ledger, agent)]


def test_an_anchor_is_set_with_the_agent_or_later(ledger: Ledger) -> None:
    set_anchor(ledger, "b", "anchor of b", "bob")

    assert [anchor_of(ledger, agent) for agent in "abc"] == ["anchor of a", "anchor of b", None]
    assert changes(ledger, "a") == [(None, "anchor of a", "ann")]
    assert changes(ledger, "b") == [(None, "anchor of b", "bob")]
    assert changes(ledger, "c") == []


def test_another_anchor_is_refused_unless_it_is_a_rotation(ledger: Ledger) -> None:
    with pytest.raises(AnchorSet, match="--rotate"):
        set_anchor(ledger, "a", "another")
    assert anchor_of(ledger, "a") == "anchor of a"

    said = set_anchor(ledger, "a", "another", "bob", rotate=True)

    assert anchor_of(ledger, "a") == "another"
    assert changes(ledger, "a") == [(None, "anchor of a", "ann"), ("anchor of a", "another", "bob")]
    assert said == anchors.history(ledger, "a")
    assert said[0].changed_at_ms <= said[1].changed_at_ms
    # And the anchor that it has changes nothing.
    for rotate in (False, True):
        assert set_anchor(ledger, "a", "another", rotate=rotate) == said


def test_a_rotation_needs_who_and_an_anchor(ledger: Ledger) -> None:
    for by in ("", "  "):
        with pytest.raises(InvalidInput, match="say who changes"):
            set_anchor(ledger, "a", "another", by, rotate=True)
    with pytest.raises(InvalidInput, match="no identity anchor"):
        set_anchor(ledger, "b", "another", rotate=True)
    assert [anchor_of(ledger, agent) for agent in "ab"] == ["anchor of a", None]


def test_an_anchor_never_becomes_another_agents(ledger: Ledger) -> None:
    # Given an anchor that is a's, and one that was
    set_anchor(ledger, "a", "second of a", rotate=True)
    set_anchor(ledger, "b", "anchor of b")

    for anchor in ("anchor of a", "second of a"):
        with pytest.raises(AnchorTaken):
            set_anchor(ledger, "c", anchor)
        with pytest.raises(AnchorTaken):
            set_anchor(ledger, "b", anchor, rotate=True)
        with pytest.raises(AnchorTaken):
            accounts.add(ledger, NOWHERE, {"d": 100}, "ann", {"d": anchor})

    # Then nothing of what was refused is left, and a may have its own old one back
    assert [anchor_of(ledger, agent) for agent in "bc"] == ["anchor of b", None]
    assert (len(changes(ledger, "b")), changes(ledger, "c")) == (1, [])
    with pytest.raises(UnknownAgent):
        accounts.find(ledger, NOWHERE, ["d"])
    set_anchor(ledger, "a", "anchor of a", rotate=True)
    assert [new for _, new, _ in changes(ledger, "a")] == ["anchor of a", "second of a", "anchor of a"]


def test_two_that_want_one_anchor_at_once_do_not_both_get_it(ledger: Ledger) -> None:
    def wants(agent: str) -> bool:
        try:
            set_anchor(ledger, agent, "wanted")
        except AnchorTaken:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(wants, "bc")) == [False, True]
    assert sorted(str(anchor_of(ledger, agent)) for agent in "bc") == ["None", "wanted"]


def test_two_new_agents_do_not_share_an_anchor(ledger: Ledger) -> None:
    with pytest.raises(AnchorTaken):
        accounts.add(ledger, NOWHERE, {"d": 100, "e": 100}, "ann", {"d": "one", "e": "one"})
    with pytest.raises(AgentExists):
        accounts.add(ledger, NOWHERE, {"a": 100}, "ann", {"a": "one"})
    with pytest.raises(InvalidInput, match="'f'"):
        accounts.add(ledger, NOWHERE, {"d": 100}, "ann", {"f": "one"})
    with ledger.reading() as connection:
        assert list(connection.scalars(sa.select(identity_anchors.c.identity_anchor))) == ["anchor of a"]


def test_anchors_are_their_exact_bytes(ledger: Ledger) -> None:
    # Composed and decomposed, upper and lower case: four anchors.
    for number, anchor in enumerate(("caf\u00e9", "cafe\u0301", "CAF\u00c9", "cafe")):
        accounts.add(ledger, NOWHERE, {f"d{number}": 100}, "ann", {f"d{number}": anchor})
        assert anchor_of(ledger, f"d{number}") == anchor


def test_the_database_itself_keeps_anchors_unique(ledger: Ledger) -> None:
    statement = sa.update(agent_accounts).values(identity_anchor="one for all")
    with pytest.raises(sa.exc.IntegrityError), ledger.writing() as connection:
        connection.execute(statement)


def test_unknown_agents_and_bad_anchors_are_refused(ledger: Ledger) -> None:
    for work in (lambda: set_anchor(ledger, "nobody", "one"), lambda: anchors.history(ledger, "nobody")):
        with pytest.raises(UnknownAgent):
            work()
    with pytest.raises(InvalidInput, match="identity anchor"):
        set_anchor(ledger, "b", "one\n")
    with pytest.raises(InvalidInput, match="identity anchor"):
        accounts.add(ledger, NOWHERE, {"d": 100}, "ann", {"d": ""})
