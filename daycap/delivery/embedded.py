"""One process, no server, durable: the wallet's own thread settles into a SQLite file.

The process holds the ledger's lock while it lends, so its counter in memory knows every lease. An event
is in the outbox beside the file before `finalize` returns, and leaves it once it is settled. The next process
that takes the lock first settles what a killed one left.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.counters.memory import MemoryCounter
from daycap.delivery.outbox import Outbox
from daycap.delivery.transport import Transport
from daycap.errors import AgentExists, BudgetExists, GroupExists, InvalidSetting
from daycap.ledger import accounts, budgets, definitions, opening, plans
from daycap.ledger import carry_over as carrying
from daycap.ledger import groups as ledger_groups
from daycap.ledger.engine import Ledger, unavailable
from daycap.ledger.lock import LedgerInUse, LedgerLock, sqlite_file
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.retention import OpenDays, open_days, prune
from daycap.ledger.settle import Outcome, settle
from daycap.ledger.slices import all_of, slice_of
from daycap.ledger.snapshots import read_rows
from daycap.money import format_usd
from daycap.process import me, whole
from daycap.protocol.counter import KEPT_DAYS, UNKNOWN, DaySnapshot, PublishReply
from daycap.protocol.wire import MAX_EVENTS_PER_MESSAGE, FinalizeEvent
from daycap.settings import Settings

logger = logging.getLogger("daycap")


class _OnlyLender(CounterPublisher):
    """Publishes without a fence: this process made every lease.

    A day is opened by whatever comes first. The leases of former processes need not be there: their sum is.
    """

    def publish(self, ledger: Ledger, snapshots: Sequence[DaySnapshot], **options: Any) -> list[PublishReply | None]:
        readings = self.read([(snapshot.agent, snapshot.day) for snapshot in snapshots])
        new = [(each.agent, each.day) for each, reading in zip(snapshots, readings, strict=True) if reading is None]
        if new:
            with ledger.reading() as connection:
                opening = {(each.agent, each.day): each._replace(base_seq=None) for each in read_rows(connection, new)}
            snapshots = [opening.get((each.agent, each.day), each) for each in snapshots]
        return super().publish(ledger, snapshots, **{**options, "opened_at_ms": self.now_ms()})


class EmbeddedLedger(Transport):
    """Settles events in this process, into the SQLite ledger of `settings`. Create it with `of_this_process`.

    Wallets of one process share it, with its lock and counter: a program may have a `Wallet` and an `AsyncWallet`, and
    a notebook creates a new wallet each time a cell runs.
    """

    def __init__(self, file: Path, settings: Settings) -> None:
        self.file = file
        self.settings = settings
        self.url = sa.make_url(settings.ledger_url).set(database=str(file)).render_as_string(hide_password=False)
        self.outbox = Path(settings.outbox or outbox_beside(file)).absolute()
        self.counter = MemoryCounter()
        self._publisher = _OnlyLender(self.counter, settings.terms)
        self._lock = LedgerLock(file)
        self._opened: Ledger | None = None
        self._inherited: list[Ledger] = []
        self._wallets = 0
        self._last_change = self._last_budget_change = 0
        self._pruned_on = ""

    @staticmethod
    def of_this_process(settings: Settings) -> EmbeddedLedger:
        """Return the ledger for one more wallet, which must `close` it.

        Raises `LedgerInUse` if another process lends from the file, `InvalidSetting` if a wallet of this process
        does so with other settings, `LedgerUnavailable` if the file cannot be read or written.
        """
        file = sqlite_file(settings.ledger_url)
        if file is None:
            raise InvalidSetting("DAYCAP_LEDGER_URL must be sqlite:///path/to/file, without a file: URI")
        with whole:
            found = _open.get(file)
            if found is None:
                found = EmbeddedLedger(file, settings)
            elif _unbound(found.settings) != _unbound(settings):
                raise InvalidSetting(f"another wallet of this process uses {file} with other settings")
            found._own()
            _open[file] = found
            found._wallets += 1
            return found

    def send(self, events: Sequence[FinalizeEvent]) -> None:
        with whole, _database_errors():
            outcome = _settle(self._ledger, events, self._open_days())
            self._own()  # What is published may be lent.
            self._publisher.publish(self._ledger, outcome.snapshots)
            self._prune()

    def open_day(self, agent: str, day: str) -> None:
        with whole, _database_errors():
            self._own()
            opening.open_on_request(self._ledger, self._publisher, agent, day)

    def connect(self) -> None:
        with whole:
            self._own()

    def refusal(self, error: Exception) -> str | None:
        return str(error) if isinstance(error, LedgerInUse) else None

    def backlog(self) -> int:
        return 0

    def use_clock(self, counter_ms: Callable[[], int | None]) -> None:
        """The counter's clock is this process's."""

    def hear_changes(self) -> None:
        """End raises whose time is over, and publish caps and states that other processes changed in the ledger."""
        with whole, _database_errors():
            self._adjust_caps()
            last, agents = accounts.changed_since(self._ledger, self._last_change)
            changed = plans.changed_since(self._ledger, self._last_budget_change)
            agents |= changed.agents
            if not agents and not changed.periods:
                return
            now_ms = self._publisher.authoritative_ms()
            recent = {day_of(now_ms - back * DAY_MS) for back in range(-1, KEPT_DAYS + 1)}
            wanted = [(agent, day) for agent in agents for day in sorted(recent)]
            is_open = [reading is not None for reading in self.counter.read(wanted)]
            today = day_of(now_ms)
            wanted = [where for where, known in zip(wanted, is_open, strict=True) if known or where[1] == today]
            of_budgets = self.counter.read(changed.periods)
            wanted += [where for where, reading in zip(changed.periods, of_budgets, strict=True) if reading is not None]
            with self._ledger.reading() as connection:
                snapshots = read_rows(connection, wanted)
            self._publisher.publish(self._ledger, [each for each in snapshots if each.status != UNKNOWN])
            self._last_change, self._last_budget_change = last, changed.last

    def add_agent(self, agent: str, cap_micros: int) -> None:
        with whole.lock, _database_errors():
            self._own()
            try:
                accounts.add(self._ledger, self._publisher, {agent: cap_micros}, me())
            except AgentExists:
                (found,) = accounts.find(self._ledger, self._publisher, [agent])
                if found.daily_cap_micros != cap_micros:
                    cap = format_usd(found.daily_cap_micros)
                    raise AgentExists(
                        f"agent {agent} exists with a cap of {cap} a day; change it with wallet.set_cap(...), "
                        f"or: daycap cap set {agent} USD"
                    ) from None

    def set_cap(self, agent: str, cap_micros: int) -> None:
        with whole.lock, _database_errors():
            self._own()
            accounts.set_cap(self._ledger, self._publisher, agent, cap_micros, me())

    def add_group(self, name: str, agents: Collection[str], groups: Collection[str]) -> None:
        with whole.lock, _database_errors():
            self._own()
            try:
                ledger_groups.add(self._ledger, self._publisher, name, agents, groups, me())
            except GroupExists:
                (found,) = ledger_groups.find(self._ledger, [name])
                if (found.agents, found.groups) != (sorted(set(agents)), sorted(set(groups))):
                    raise GroupExists(
                        f"group {name} exists with other members; change them with: daycap group join, or leave"
                    ) from None

    def add_budget(self, name: str, facts: Mapping[str, Any]) -> None:
        with whole.lock, _database_errors():
            self._own()
            try:
                budgets.add(self._ledger, self._publisher, name, facts, me())
            except BudgetExists:
                with self._ledger.reading() as connection:
                    _, found = definitions.get(connection, name)
                if found != definitions.defined(name, facts):
                    raise BudgetExists(
                        f"budget {name} exists with another cap, scope, period or mode; change it with: "
                        f"daycap budget set {name}"
                    ) from None

    def forget(self) -> None:
        self._lock.release()
        # These connections belong to the parent. SQLite does not allow closing or collecting them in the child.
        if self._opened is not None:
            self._inherited.append(self._opened)
        self._opened = None

    def close(self) -> None:
        with whole:
            self._wallets -= 1
            if self._wallets == 0:
                _open.pop(self.file, None)
                if self._opened is not None:
                    self._opened.close()
                self._lock.release()

    @property
    def _ledger(self) -> Ledger:
        """The ledger. It is opened when it is needed: the hooks of a fork, which `forget` runs in, must be quick."""
        if self._opened is None:
            self._opened = Ledger(self.url)
        return self._opened

    def _own(self) -> None:
        """Hold the lock. When it was just taken, migrate the file and settle what a dead process left."""
        if not self._lock.take():
            return
        try:
            with _database_errors():
                self._ledger.migrate()
                settle_outbox(self._ledger, self.outbox, self._open_days())
                self._adjust_caps()
                self._last_change, _ = accounts.changed_since(self._ledger, 0)
                self._last_budget_change = plans.changed_since(self._ledger, 0).last
        except BaseException:
            self._lock.release()
            raise

    def _adjust_caps(self) -> None:
        all_of(partial(carrying.adjust_caps, self._ledger, self._publisher))

    def _open_days(self) -> OpenDays:
        return open_days(self.settings, self._publisher.authoritative_ms())

    def _prune(self) -> None:
        """Once a day delete expired rows, one slice after each send; events wait in the outbox meanwhile."""
        now_ms = self._publisher.authoritative_ms()
        if (today := day_of(now_ms)) != self._pruned_on:
            left = slice_of(partial(prune, self._ledger, self.settings, now_ms), [])
            if left.place is None:
                self._pruned_on = today


_open: dict[Path, EmbeddedLedger] = {}
"""The ledgers that wallets of this process use, by file."""


def outbox_beside(file: Path) -> Path:
    """Where an embedded wallet keeps events, unless `DAYCAP_OUTBOX` says otherwise."""
    return file.with_name(f"{file.name}-outbox")


def settle_outbox(ledger: Ledger, directory: Path, days: OpenDays) -> None:
    """Settle what dead processes left in the outbox, if it exists. Raises the database's error."""
    if not directory.is_dir():
        return
    for left in Outbox(directory, limit_bytes=0).adopt():
        try:
            events = left.events
            for start in range(0, len(events), MAX_EVENTS_PER_MESSAGE):
                _settle(ledger, events[start : start + MAX_EVENTS_PER_MESSAGE], days)
            for lease in left.leases:
                left.drop(lease)
            logger.info("settled %d events left in %s by a process that ended", len(events), directory)
        finally:
            left.close()


def _settle(ledger: Ledger, events: Sequence[FinalizeEvent], days: OpenDays) -> Outcome:
    outcome = settle(ledger, [event.to_wire() for event in events], days)
    for letter in outcome.dead_letters:
        logger.error("dead letter %s (%s): %s", letter.id, letter.kind, letter.reason)
    return outcome


def _unbound(settings: Settings) -> Settings:
    """Return what wallets of one process must agree on: everything except their bound agent and their prices."""
    return dataclasses.replace(settings, identity_anchor="", prices_file="")


@contextmanager
def _database_errors() -> Iterator[None]:
    """Raise the database's errors as `LedgerUnavailable`."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, OSError) as error:
        raise unavailable(error) from error
