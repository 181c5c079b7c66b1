"""Children of multiprocessing that end cleanly have booked all that they spent."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable

import pytest

from daycap import InvalidInput, Wallet
from tests.integration.processes.programs.children import AGENTS, CALLS, CHILDREN, COST, KINDS
from tests.integration.processes.session import run
from tests.spine import Spine

ALL = (CHILDREN * CALLS, CHILDREN * CALLS * COST)
SETUPS = {
    "redis": ("DAYCAP_REDIS_URL", "DAYCAP_BROKER_URL"),
    "ledger": ("DAYCAP_LEDGER_URL", "DAYCAP_BROKER_URL"),
    "caps": ("DAYCAP_BROKER_URL",),
}


@pytest.fixture
def book_all(spine: Spine) -> Callable[[str, str, str], None]:
    """The program ends with status 0 and says nothing, and the ledger has 12,000 micros for each kind of child."""
    spine.ask("daycap.add_agents", caps=dict.fromkeys(AGENTS, 100_000), changed_by="test")

    def check(method: str, face: str, setup: str) -> None:
        given = {name: spine.environment[name] for name in SETUPS[setup]}
        status, written, said = run("children", method, face, setup, environment=given)
        assert (status, said) == (0, "")
        ended = json.loads(written)
        assert set(map(tuple, ended.values())) == {(0,) * CHILDREN}
        if setup == "caps":  # There "settled" means that the broker has it.
            spine.wait_for(lambda: {agent: spine.settled_once(agent) for agent in ended} == dict.fromkeys(ended, ALL))
        assert {agent: spine.settled_once(agent) for agent in ended} == dict.fromkeys(ended, ALL)

    return check


@pytest.mark.parametrize("face", ["threads", "loop"])
@pytest.mark.parametrize("method", KINDS)
def test_children_book_all(book_all: Callable[..., None], method: str, face: str) -> None:
    book_all(method, face, "redis")


@pytest.mark.parametrize("face", ["threads", "loop"])
@pytest.mark.parametrize("setup", ["ledger", "caps"])
def test_children_book_all_without_redis(book_all: Callable[..., None], setup: str, face: str) -> None:
    book_all("fork", face, setup)


# --- pickled ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_faces")
def test_pickled_wallet_is_one_for_the_process(spine: Spine) -> None:
    wallet = spine.wallet()
    wallet = getattr(wallet, "_wallet", wallet)

    assert pickle.loads(pickle.dumps(wallet)) is wallet
    wallet._close(1)
    other = pickle.loads(pickle.dumps(wallet))

    assert other is not wallet
    assert (type(other), other._settings) == (type(wallet), wallet._settings)


def test_wallet_in_memory_is_not_pickled() -> None:
    with pytest.raises(InvalidInput, match="several processes need DAYCAP_REDIS_URL"):
        pickle.dumps(Wallet.from_env(caps={"agent-7": 1}, environ={}))


def test_hold_is_not_pickled() -> None:
    wallet = Wallet.from_env(caps={"agent-7": 1}, environ={})
    hold = wallet.reserve("agent-7", 1)

    with pytest.raises(InvalidInput, match="in the process that reserved it"):
        pickle.dumps(hold)

    hold.release()
    wallet.close()
