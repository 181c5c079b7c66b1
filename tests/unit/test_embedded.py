"""A wallet with a SQLite file of its own: it settles by itself, alone, and hears what others change in the file."""

from __future__ import annotations

import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from daycap import (
    AgentExists,
    AgentPaused,
    BudgetExists,
    BudgetUnavailable,
    CapExceeded,
    GroupExists,
    InvalidAmount,
    InvalidInput,
    InvalidSetting,
    LedgerUnavailable,
    Settings,
    UnknownAgent,
    UnknownGroup,
    Wallet,
)
from daycap.clock import DAY_MS, day_of, wall_ms
from daycap.delivery import embedded
from daycap.delivery.outbox import Outbox
from daycap.ledger import accounts, budgets
from daycap.ledger import raises as cap_raises
from daycap.ledger.audit import audit
from daycap.ledger.engine import Ledger
from daycap.ledger.lock import LedgerInUse, LedgerLock
from daycap.ledger.publish import CounterPublisher
from daycap.protocol.wire import FinalizeEvent
from tests.in_loop import FACES
from tests.processes import ROOT
from tests.spine import wait_for

M = 1_000_000
QUICK = {"lease_ttl_seconds": 0.6, "redis_timeout_seconds": 0.05}
"""Leases that are renewed every 0.2 s."""

Open = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "spend.db"


@pytest.fixture(params=FACES)
def opened(request: pytest.FixtureRequest, file: Path) -> Iterator[Open]:
    """Make wallets of one face on the file; they are closed at the end."""
    wallets: list[Any] = []

    def make(**given: Any) -> Any:
        wallets.append(FACES[request.param].from_settings(Settings(ledger_url=f"sqlite:///{file}", **given)))
        return wallets[-1]

    yield make
    for wallet in wallets:
        wallet.close()


@pytest.fixture
def operator(file: Path) -> Callable[..., None]:
    """Somebody else who changes accounts in the file."""
    publisher = CounterPublisher(None, Settings().terms)

    def change(what: Callable[..., Any], *given: Any, **named: Any) -> None:
        with closing(Ledger(f"sqlite:///{file}")) as ledger:
            what(ledger, publisher, *given, "ann", **named)

    return change


def settled(file: Path) -> tuple[int, int]:
    """How many settlements the file has, and what they charged."""
    with closing(sqlite3.connect(file)) as connection:
        count, micros = connection.execute(
            "SELECT count(*), coalesce(sum(charged_micros), 0) FROM settlements"
        ).fetchone()
        return count, micros


# --- durable ----------------------------------------------------------------------------------------------


def test_next_wallet_knows_what_was_spent(opened: Open, file: Path) -> None:
    first = opened()
    first.add_agent("agent-7", 5 * M)
    first.reserve("agent-7", 50_000).finalize(31_200)
    assert first.close() == ()
    assert settled(file) == (1, 31_200)

    again = opened()
    assert again.spent("agent-7").micros == 31_200
    again.reserve("agent-7", 5 * M - 31_200).release()  # At once: there is no fence.
    with pytest.raises(CapExceeded):
        again.reserve("agent-7", 5 * M)


def test_leftovers_are_settled_before_lending(opened: Open, file: Path) -> None:
    """P4: what a killed process spent counts before the next one may spend."""
    with opened() as first:
        first.add_agent("agent-7", 100)
    killed = Outbox(Path(f"{file}-outbox"), 2**20)
    killed.append(FinalizeEvent("a" * 26, 1, 1, "agent-7", day_of(wall_ms()), 90, 90, 1))
    killed.forget()  # Its lock goes, its files stay.

    with pytest.raises(CapExceeded, match="spent"):
        opened().reserve("agent-7", 20)
    assert settled(file) == (1, 90)
    assert list(Path(f"{file}-outbox").iterdir()) == []


def test_events_wait_in_the_outbox_for_a_busy_file(opened: Open, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daycap.ledger.engine._BUSY_TIMEOUT_S", 0.05)
    wallet = opened()
    wallet.add_agent("agent-7", 5 * M)
    wallet.reserve("agent-7", 1_000).finalize(900)
    assert wallet.flush() == ()

    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for _ in range(10):
            wallet.reserve("agent-7", 10).finalize(9)  # Of what is leased already.
        wait_for(lambda: wallet.stats().send_failures)
        assert len(wallet.flush(0.01)) == 10
        writer.execute("ROLLBACK")

    assert wallet.flush(10) == ()
    assert settled(file) == (11, 900 + 90)


def test_old_rows_are_pruned(opened: Open, file: Path) -> None:
    with opened() as first:
        first.add_agent("agent-7", 5 * M)
    old = day_of(wall_ms() - 30 * DAY_MS)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO lease_totals VALUES ('b', 'agent-7', ?, 1, 1, 1, 1, 0)", (old,))

    with opened() as wallet:
        wallet.reserve("agent-7", 10).finalize(9)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM lease_totals WHERE lease_id = 'b'").fetchone() == (0,)


def test_a_new_day_opens_on_demand(opened: Open, file: Path) -> None:
    wallet = opened()
    wallet.add_agent("agent-7", 100)
    wallet.reserve("agent-7", 100).finalize(100)
    assert wallet.flush() == ()

    wallet._sender.transport.counter._now_ms = lambda: wall_ms() + DAY_MS
    wallet._renewer.renew()  # It hears the counter's time.

    wallet.reserve("agent-7", 100).finalize(60)
    assert wallet.flush() == ()
    assert settled(file) == (2, 160)


# --- alone ------------------------------------------------------------------------------------------------

_RESERVE = """
import sys, daycap
try:
    with daycap.Wallet.from_env() as wallet:
        wallet.reserve("agent-7", 10).finalize(9)
except daycap.DaycapError as error:
    print(type(error).__name__, error)
"""


def other_process(file: Path) -> str:
    """What another process is told that spends from the file."""
    done = subprocess.run(
        [sys.executable, "-c", _RESERVE],
        cwd=ROOT,
        env={**os.environ, "DAYCAP_LEDGER_URL": f"sqlite:///{file}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_second_process_is_refused(opened: Open, file: Path, tmp_path: Path) -> None:
    wallet = opened()
    wallet.add_agent("agent-7", 5 * M)
    (tmp_path / "link.db").symlink_to(file)
    for path in (file, tmp_path / "link.db"):
        said = other_process(path)
        assert said.startswith("LedgerInUse the ledger ")
        assert f"process {os.getpid()} on {os.uname().nodename}" in said
        assert "DAYCAP_REDIS_URL" in said

    wallet.close()
    assert other_process(file) == ""
    assert settled(file) == (1, 9)


def test_a_refusal_is_an_invalid_setting() -> None:
    assert issubclass(LedgerInUse, InvalidSetting)


def test_wallets_of_one_process_share_the_budget(opened: Open) -> None:
    one, other = opened(), opened()
    one.add_agent("agent-7", 100)
    hold = one.reserve("agent-7", 60)
    with pytest.raises(CapExceeded):
        other.reserve("agent-7", 60)
    other.reserve("agent-7", 40).finalize(40)
    one.close()
    hold.finalize(60)
    assert other.flush() == ()
    wait_for(lambda: other.spent("agent-7").micros == 100)


def test_other_settings_in_one_process_are_refused(opened: Open) -> None:
    opened()
    with pytest.raises(InvalidSetting, match="with other settings"):
        opened(lease_ttl_seconds=60)


def test_copies_and_spawned_children_are_refused(opened: Open, file: Path) -> None:
    wallet = opened()
    if isinstance(wallet, Wallet):
        with pytest.raises(InvalidInput, match="DAYCAP_REDIS_URL"):
            pickle.dumps(wallet)
    with get_context("spawn").Pool(1) as pool, pytest.raises(InvalidSetting, match=f"process {os.getpid()}"):
        pool.apply(_in_child, (str(file),))


def _in_child(file: str) -> None:
    Wallet.from_settings(Settings(ledger_url=f"sqlite:///{file}"))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_never_lends_beside_its_parent(opened: Open, file: Path) -> None:
    wallet = opened()
    wallet.add_agent("agent-7", 100)
    wallet.reserve("agent-7", 100).finalize(30)

    said = in_fork(lambda: wallet.reserve("agent-7", 10))
    assert said.startswith("BudgetUnavailable")
    assert f"in use by a wallet (process {os.getpid()}" in said

    # The parent goes on, and nobody else was let in
    wallet.reserve("agent-7", 70).finalize(70)
    assert wallet.flush() == ()
    assert "LedgerInUse" in other_process(file)
    assert settled(file) == (2, 100)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_child_takes_over_when_its_parent_ends(opened: Open, file: Path) -> None:
    """A daemon forks, and the process that made the wallet ends."""
    wallet = opened()
    wallet.add_agent("agent-7", 100)
    wallet.reserve("agent-7", 90).finalize(90)
    assert wallet.flush() == ()
    parent_closed, close = os.pipe()

    def spend() -> None:
        os.close(close)
        os.read(parent_closed, 1)
        with pytest.raises(CapExceeded):
            wallet.reserve("agent-7", 20)
        wallet.reserve("agent-7", 10).finalize(10)
        assert wallet.flush() == ()

    def end() -> None:
        wallet.close()
        os.close(close)

    said = in_fork(spend, meanwhile=end)
    assert said == ""
    assert settled(file) == (2, 100)


def in_fork(work: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> str:
    """The error, if any, that `work` raised in a forked child."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        said = ""
        try:
            os.close(read)
            work()
        except BaseException as error:
            said = f"{type(error).__name__} {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    meanwhile()
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_lost_lock_stops_lending(opened: Open, file: Path) -> None:
    wallet = opened()
    wallet.add_agent("agent-7", 5 * M)
    hold = wallet.reserve("agent-7", 10)
    other = LedgerLock(file.with_name("other.db"))
    other.take()
    file.with_name("other.db.lock").replace(f"{file}.lock")  # At once: the wallet would lock a file that is not there.
    hold.finalize(9)
    wait_for(lambda: wallet.stats().send_failures)
    with pytest.raises(BudgetUnavailable, match="in use by a wallet"):
        wallet.reserve("agent-7", 10)

    other.release()
    assert wallet.flush(25) == ()  # It tries again within ten seconds.


def test_workers_share_and_keep_wallets_out(file: Path) -> None:
    one, other, wallet = LedgerLock(file, shared=True), LedgerLock(file, shared=True), LedgerLock(file)
    assert one.take()
    assert not one.take()
    assert other.take()
    one.release()
    with pytest.raises(LedgerInUse, match="in use by a worker"):
        wallet.take()
    other.release()
    assert wallet.take()
    with pytest.raises(LedgerInUse, match="stop that program"):
        one.take()
    wallet.release()


# --- agents -----------------------------------------------------------------------------------------------


def test_adding_an_agent_again_changes_nothing(opened: Open, file: Path) -> None:
    wallet = opened()
    for _ in range(2):
        wallet.add_agent("agent-7", 100)
    with pytest.raises(AgentExists, match="daycap cap set agent-7"):
        wallet.add_agent("agent-7", 200)
    for given, error in (((5, 1), InvalidInput), (("agent 8", 1), InvalidInput), (("agent-8", 0.5), InvalidAmount)):
        with pytest.raises(error):
            wallet.add_agent(*given)

    wallet.set_cap("agent-7", 200)
    wallet.reserve("agent-7", 200).release()
    with pytest.raises(UnknownAgent):
        wallet.set_cap("nobody", 1)
    with closing(sqlite3.connect(file)) as connection:
        changes = connection.execute("SELECT new_cap_micros, changed_by FROM cap_changes").fetchall()
    assert [cap for cap, _ in changes] == [100, 200]
    assert all("@" in by for _, by in changes)


def test_adding_a_budget_again_changes_nothing(opened: Open, file: Path) -> None:
    wallet = opened()
    wallet.add_agent("agent-7", 100)
    for _ in range(2):
        wallet.add_group("team", ["agent-7"])
        wallet.add_budget(
            "week", 500, group="team", period="week", zone="Europe/Zurich", weekday=7, labels={"tool": "x"}
        )
    for call, error in (
        (lambda: wallet.add_group("team"), GroupExists),
        (lambda: wallet.add_group("other", ["agent-8"]), UnknownAgent),
        (lambda: wallet.add_group("other", "agent-7"), InvalidInput),
        (lambda: wallet.add_budget("week", 501, group="team"), BudgetExists),
        (lambda: wallet.add_budget("day", 1, group="nobody"), UnknownGroup),
        (lambda: wallet.add_budget("day", 1, agent="agent-7", zone="Mars"), InvalidInput),
        (lambda: wallet.add_budget("day", 1, agent="agent-7", group="team"), InvalidInput),
        (lambda: wallet.add_budget("day", 0.5, agent="agent-7"), InvalidAmount),
    ):
        with pytest.raises(error):
            call()
    with closing(sqlite3.connect(file)) as connection:
        changes = connection.execute("SELECT name, changed_by FROM budget_changes").fetchall()
    assert [name for name, _ in changes] == ["team", "team", "week"]
    assert all("@" in by for _, by in changes)


@pytest.mark.parametrize("face", FACES.values())
def test_other_set_ups_name_the_command(face: Any) -> None:
    servers: dict[str, Any] = {"redis_url": "redis://127.0.0.1:1/0", "broker_url": "redis://127.0.0.1:1/1"}
    for wallet in (face.from_env(caps={"a": 1}, environ={}), face.from_settings(Settings(**servers))):
        with wallet:
            with pytest.raises(InvalidSetting, match="daycap agent add agent-7 --cap USD"):
                wallet.add_agent("agent-7", 100)
            with pytest.raises(InvalidSetting, match="daycap cap set agent-7 USD"):
                wallet.set_cap("agent-7", 100)
            with pytest.raises(InvalidSetting, match="daycap group add team"):
                wallet.add_group("team")
            with pytest.raises(InvalidSetting, match="daycap budget add day --cap USD"):
                wallet.add_budget("day", 1, agent="agent-7")


def test_cap_changed_by_others_applies_at_renewal(opened: Open, operator: Callable[..., None]) -> None:
    wallet = opened(**QUICK)
    wallet.add_agent("agent-7", 100)
    wallet.reserve("agent-7", 50).finalize(50)
    operator(accounts.set_cap, "agent-7", 60)
    wait_for(lambda: raises(CapExceeded, lambda: wallet.reserve("agent-7", 20)), 2)

    operator(accounts.set_cap, "agent-7", 200)
    wait_for(lambda: not raises(CapExceeded, lambda: wallet.reserve("agent-7", 150)), 2)


def test_raise_ends_without_a_worker(opened: Open, operator: Callable[..., None]) -> None:
    wallet = opened(**QUICK)
    wallet.add_agent("agent-7", 100)
    wallet.reserve("agent-7", 50).finalize(50)
    operator(cap_raises.raise_cap, "agent-7", None, 100, for_ms=1500)
    wait_for(lambda: not raises(CapExceeded, lambda: wallet.reserve("agent-7", 80)), 2)
    wait_for(lambda: raises(CapExceeded, lambda: wallet.reserve("agent-7", 51)), 4)


def test_raise_that_ended_while_nobody_ran(opened: Open, operator: Callable[..., None]) -> None:
    wallet = opened()
    wallet.add_agent("agent-7", 100)
    wallet.close()
    operator(cap_raises.raise_cap, "agent-7", None, 50, for_ms=1)
    end_ms = wall_ms() + 1
    wait_for(lambda: wall_ms() > end_ms, 1)
    with pytest.raises(CapExceeded):
        opened().reserve("agent-7", 101)


def test_budget_by_others_applies_at_renewal(opened: Open, operator: Callable[..., None]) -> None:
    wallet = opened(**QUICK)
    wallet.add_agent("agent-7", 5 * M)
    wallet.reserve("agent-7", 50).finalize(50)
    operator(budgets.add, "tool", {"agent": "agent-7", "cap_micros": 60, "labels": {"tool": ["search"]}})
    wait_for(lambda: raises(CapExceeded, lambda: wallet.reserve("agent-7", 61, labels={"tool": "search"})), 2)
    wallet.reserve("agent-7", 61).release()

    operator(budgets.alter, "tool", {"cap_micros": 100})
    wait_for(lambda: not raises(CapExceeded, lambda: wallet.reserve("agent-7", 61, labels={"tool": "search"})), 2)


def test_pause_by_others_applies_at_renewal(opened: Open, operator: Callable[..., None]) -> None:
    wallet = opened(**QUICK)
    wallet.add_agent("agent-7", 5 * M)
    for _ in range(20):
        wallet.reserve("agent-7", 50).finalize(50)  # Some is leased ahead.
    operator(accounts.set_status, "agent-7", "paused")
    wait_for(lambda: raises(AgentPaused, lambda: wallet.reserve("agent-7", 1)), 2)

    operator(accounts.set_status, "agent-7", "active")
    wait_for(lambda: not raises(AgentPaused, lambda: wallet.reserve("agent-7", 1)), 2)


def test_agent_added_by_others_is_served(opened: Open, operator: Callable[..., None]) -> None:
    wallet = opened(**QUICK)
    with pytest.raises(UnknownAgent):
        wallet.reserve("agent-7", 1)
    operator(accounts.add, {"agent-7": 100})
    wait_for(lambda: not raises(UnknownAgent, lambda: wallet.reserve("agent-7", 1)), 2)


def raises(kind: type[Exception], call: Callable[[], Any]) -> bool:
    try:
        call().release()
    except kind:
        return True
    return False


# --- files that cannot work -------------------------------------------------------------------------------


def test_a_file_that_cannot_work_is_refused(opened: Open, file: Path, tmp_path: Path) -> None:
    file.write_text("This is no database, and much longer than the header of one. " * 50)
    with pytest.raises(LedgerUnavailable, match="not a database"):
        opened()
    assert not raises_in_use(file), "it is not left locked"
    for url in ("sqlite://", "sqlite:///:memory:", f"sqlite:///file:{file}?uri=true", f"sqlite:///{tmp_path}/no/x.db"):
        with pytest.raises(InvalidSetting, match="DAYCAP_LEDGER_URL"):
            Wallet.from_settings(Settings(ledger_url=url))


def test_a_file_of_a_later_release_is_refused(opened: Open, file: Path) -> None:
    opened().close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_since_9999'")
    with pytest.raises(LedgerUnavailable, match="upgrade daycap"):
        opened()


def raises_in_use(file: Path) -> bool:
    lock = LedgerLock(file.resolve())
    try:
        lock.take()
    except LedgerInUse:
        return True
    lock.release()
    return False


def test_budget_that_watches_meanwhile(opened: Open, operator: Callable[..., None], file: Path) -> None:
    wallet = opened(**QUICK)
    wallet.add_agent("agent-7", 5 * M)
    wallet.add_budget("tool", 100, agent="agent-7")

    def refuses(micros: int) -> bool:
        return raises(CapExceeded, lambda: wallet.reserve("agent-7", micros))

    # Given a call under way that the budget has lent to
    hold = wallet.reserve("agent-7", 60)
    assert refuses(41)
    # When it watches, nothing is refused, and what is spent counts
    operator(budgets.alter, "tool", {"mode": "watch"})
    wait_for(lambda: not refuses(200), 3)
    wallet.reserve("agent-7", 30).finalize(30)
    # Then, when it refuses again, that is gone, and so is what the first call holds
    operator(budgets.alter, "tool", {"mode": "enforce"})
    wait_for(lambda: refuses(11), 3)
    wait_for(lambda: not refuses(10), 3)
    hold.finalize(60)
    assert wallet.flush() == ()
    assert refuses(11)
    wallet.reserve("agent-7", 10).finalize(10)
    assert wallet.flush() == ()
    publisher = CounterPublisher(embedded._open[file].counter, Settings().terms)
    with closing(Ledger(f"sqlite:///{file}")) as ledger:
        (found,) = budgets.find(ledger, publisher, ["tool"])
        assert (found.spent_micros, found.uncovered_micros, found.settled_count) == (100, 0, 3)
        assert audit(ledger, publisher, Settings()).differences == []
