"""A wallet that is bound to an identity anchor, on every database: it serves that anchor's agent and no other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from daycap import InvalidInput, NotYourAgent, UnknownAgent, Wallet
from daycap.ledger import accounts, anchors
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.protocol.counter import LeaseTerms
from tests.in_loop import FACES, locks_of

NOWHERE = CounterPublisher(None, LeaseTerms(30_000, 1_000, 10_000))

Bound = Callable[..., Wallet]


@pytest.fixture(autouse=True)
def agents(ledger: Ledger) -> None:
    """Two agents with anchors and one without."""
    accounts.add(ledger, NOWHERE, {"a": 100, "b": 100, "c": 100}, "ann", {"a": "anchor of a", "b": "anchor of b"})


@pytest.fixture(params=FACES)
def bound(request: pytest.FixtureRequest, ledger_url: str) -> Iterator[Bound]:
    """Wallets that read the ledger, and ask for each reserve: nothing is leased ahead."""
    wallets: list[Any] = []

    def make(variable: str = "", anchor: str | None = None) -> Wallet:
        environ = {"DAYCAP_LEDGER_URL": ledger_url, "DAYCAP_SLICE_SECONDS": "0", "DAYCAP_IDENTITY_ANCHOR": variable}
        wallets.append(FACES[request.param].from_env(environ=environ, anchor=anchor))
        return wallets[-1]

    yield make
    for wallet in wallets:
        wallet.close()


def test_a_bound_wallet_serves_its_own_agent_and_no_other(bound: Bound) -> None:
    wallet = bound("anchor of a")

    wallet.reserve("a", 60).finalize(50)
    for other in ("b", "c"):
        for _ in range(2):
            with pytest.raises(NotYourAgent, match="DAYCAP_IDENTITY_ANCHOR") as refused:
                wallet.reserve(other, 1)
            assert refused.value.agent == other
    with pytest.raises(UnknownAgent):
        wallet.reserve("nobody", 1)

    # Then it may spend on, nothing of the others is leased, and what was refused has left nothing behind
    wallet.reserve("a", 40).release()
    assert [wallet.remaining(agent).micros for agent in "abc"] == [50, 100, 100]
    assert list(locks_of(wallet)) == ["a"]


def test_an_anchor_in_code_goes_before_that_of_the_environment(bound: Bound) -> None:
    wallet = bound("anchor of a", anchor="anchor of b")

    wallet.reserve("b", 1).release()
    with pytest.raises(NotYourAgent):
        wallet.reserve("a", 1)


def test_a_wallet_that_is_not_bound_serves_all(bound: Bound) -> None:
    wallet = bound()
    for agent in "abc":
        wallet.reserve(agent, 1).release()


def test_a_rotation_is_noticed_by_processes_that_begin_after_it(ledger: Ledger, bound: Bound) -> None:
    # Given a wallet that has served its agent, and another that has not yet
    before, idle = bound("anchor of a"), bound("anchor of a")
    before.reserve("a", 1).release()

    anchors.set_anchor(ledger, NOWHERE, "a", "new anchor of a", "ann", rotate=True)

    before.reserve("a", 2).release()  # More than it has leased: it has to ask.
    bound("new anchor of a").reserve("a", 1).release()
    for wallet in (idle, bound("anchor of a")):
        with pytest.raises(NotYourAgent):
            wallet.reserve("a", 1)
    assert served_in_a_child(before) == "NotYourAgent"


def served_in_a_child(wallet: Wallet) -> str:
    """What a forked child is told that reserves with its parent's wallet."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            wallet.reserve("a", 1)
            said = "served"
        except BaseException as error:
            said = type(error).__name__
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_a_binding_is_verified_with_the_ledger_as_it_is_now(ledger: Ledger, bound: Bound) -> None:
    wallet = bound()
    assert wallet.verify_identity_binding("a", "anchor of a") is True
    assert wallet.verify_identity_binding("a", "anchor of b") is False
    assert wallet.verify_identity_binding("c", "anchor of a") is False
    anchors.set_anchor(ledger, NOWHERE, "a", "new anchor of a", "ann", rotate=True)
    assert wallet.verify_identity_binding("a", "anchor of a") is False
    assert wallet.verify_identity_binding("a", "new anchor of a") is True
    with pytest.raises(UnknownAgent):
        wallet.verify_identity_binding("nobody", "anchor of a")
    for agent, anchor in (("a", ""), ("a", "\ud800"), ("a b", "anchor")):
        with pytest.raises(InvalidInput):
            wallet.verify_identity_binding(agent, anchor)
