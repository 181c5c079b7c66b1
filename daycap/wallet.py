"""The wallet: what an inference runner embeds. Reserve before a call, finalize after it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from daycap.celery_transport import CeleryTransport
from daycap.counter import UNKNOWN, Answer, Counter, DayReading, DaySnapshot, SyncReply, settled_up_to
from daycap.errors import (
    BudgetUnavailable,
    CounterUnavailable,
    InvalidSetting,
    LedgerUnavailable,
    OutboxFull,
    Unavailable,
    UnknownAgent,
)
from daycap.lease_book import Hold, LeaseBook, Pending
from daycap.ledger_follower import LedgerFollower
from daycap.ledger_reader import LedgerReader
from daycap.memory_counter import MemoryCounter
from daycap.memory_ledger import DaySource, MemoryLedger, caps_in_code
from daycap.money import micros
from daycap.outbox import AbandonedOutbox, Outbox
from daycap.publisher import Publisher, Transport
from daycap.redis_counter import RedisCounter
from daycap.settings import Settings
from daycap.wire import FinalizeEvent, agent_id

logger = logging.getLogger("daycap")

_MOST_TRIES = 20
"""How often one reserve asks the counter anew because the totals moved under its question."""

_OPEN_AGAIN_S = 1.0
"""How long to wait before asking again for a day to be opened."""


class Reading(NamedTuple):
    """An amount in micros and the tier that answered: `redis`, `ledger` or `memory`."""

    micros: int
    tier: str


@dataclass(frozen=True, slots=True)
class WalletStats:
    """What this process holds and has done since it started."""

    live_holds: int
    unsettled: int
    waiting: int
    send_failures: int
    fallthroughs: int
    resent: int
    outbox_failures: int


class Wallet:
    """Keeps agents inside their daily caps. Threads may share one; make one for each process.

    Use `Wallet.from_env()`. A wallet starts its threads with the first reserve that asks the counter, and
    `close` (or leaving it as a context manager) ends them. All amounts are int micros.
    """

    def __init__(
        self,
        counter: Counter,
        transport: Transport | Callable[[Callable[[], int | None]], Transport],
        settings: Settings | None = None,
        reader: LedgerReader | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self._counter = counter
        self._outbox = _outbox(self._settings)
        self._tier = "redis" if isinstance(counter, RedisCounter) else "memory"
        self._reader = reader
        self._book = LeaseBook(
            self._emit,
            self._settled,
            guard_ms=self._settings.guard_ms,
            slice_seconds=self._settings.slice_seconds,
        )
        self._publisher = Publisher(transport if isinstance(transport, Transport) else transport(self._book.counter_ms))
        self._begin()
        _wallets.add(self)
        self._settle_adopted()

    def _begin(self) -> None:
        self._start_lock = threading.Lock()
        self._topping_up: dict[str, threading.Lock] = {}
        self._asked_to_open: dict[tuple[str, str], float] = {}
        self._renewing = threading.Lock()
        self._renewer: threading.Thread | None = None
        self._closed = threading.Event()
        self._adopted: list[AbandonedOutbox] = []
        self._fallthroughs = 0
        self._resent = 0

    def _forget(self) -> None:
        """In a forked child, which shares nothing with its parent but the settings."""
        for adopted in self._adopted:
            adopted.forget()
        self._begin()
        if self._outbox is not None:
            self._outbox.forget()
        self._publisher.forget()
        self._counter.forget()
        if self._reader is not None:
            self._reader.forget()

    @classmethod
    def from_env(cls, *, caps: Mapping[str, int] | None = None, environ: Mapping[str, str] | None = None) -> Wallet:
        """A wallet as the environment says; the README has the table. Raises `InvalidSetting`.

        Without `DAYCAP_REDIS_URL` the counter is in this process's memory: opened from the ledger if
        `DAYCAP_LEDGER_URL` is set, else with `caps` (agent to micros a day). Without `DAYCAP_BROKER_URL` events
        are settled in memory and are gone with the process.
        """
        return cls.from_settings(Settings.from_env(environ), caps=caps)

    @classmethod
    def from_settings(cls, settings: Settings, *, caps: Mapping[str, int] | None = None) -> Wallet:
        """See `from_env`."""
        reader = LedgerReader(settings.ledger_url) if settings.ledger_url else None

        def through_celery(counter_ms: Callable[[], int | None]) -> Transport:
            return CeleryTransport(settings.broker_url, counter_ms)

        if settings.redis_url:
            if caps:
                raise InvalidSetting("caps in code are for a wallet in memory; with Redis the worker keeps them")
            if not settings.broker_url:
                raise InvalidSetting("DAYCAP_REDIS_URL is set but not DAYCAP_BROKER_URL: no event would be settled")
            counter = RedisCounter(settings.redis_url, settings.redis_timeout_seconds)
            return cls(counter, through_celery, settings, reader)
        if reader is not None and settings.broker_url:
            return cls(LedgerFollower(reader, settings.terms), through_celery, settings, reader)
        if reader is None and not caps:
            raise InvalidSetting(
                "set DAYCAP_REDIS_URL and DAYCAP_BROKER_URL, or name caps in code for a wallet in memory"
            )
        if not settings.broker_url:
            logger.warning("no DAYCAP_BROKER_URL: spending is recorded in this process's memory only")
        memory = MemoryCounter()
        source = (
            _days_of(reader) if reader is not None else caps_in_code({a: micros(c) for a, c in (caps or {}).items()})
        )

        def in_memory(counter_ms: Callable[[], int | None]) -> Transport:
            onward = through_celery(counter_ms) if settings.broker_url else None
            return MemoryLedger(memory, settings.terms, source, onward)

        return cls(memory, in_memory, settings, reader)

    # --- the runner's verbs -------------------------------------------------------------------------------

    def reserve(self, agent: str, estimate_micros: int) -> Hold:
        """Hold the most that a call can cost, in micros, before it is made.

        Answers from memory, in microseconds, while this process has leased enough for the agent; else asks the
        counter, for at most `DAYCAP_REDIS_TIMEOUT_SECONDS` an exchange.

        Raises `CapExceeded` when it would pass the agent's cap of the day, `AgentPaused`, `UnknownAgent`,
        `InvalidAmount` or `InvalidInput`, and `BudgetUnavailable` when the check could not be made safely
        (`OutboxFull` when its event could not be kept).
        """
        estimate = micros(estimate_micros)
        if self._outbox is not None and self._outbox.full:
            raise OutboxFull
        hold = self._book.reserve(agent, estimate)
        return hold if hold is not None else self._ask(agent_id(agent), estimate)

    def remaining(self, agent: str) -> Reading:
        """What could still be reserved for the agent today, this process's own free lease included.

        Read from Redis, else the ledger (cap less spent), else from what this process last heard. Raises
        `UnknownAgent`, and `BudgetUnavailable` when no tier can answer.
        """
        return self._read(
            agent,
            lambda day: day.remaining_micros + self._book.free_micros(agent),
            lambda day: max(0, day.cap_micros - day.spent_micros),
            lambda cap, spent, leased: max(0, cap - spent - leased) + self._book.free_micros(agent),
        )

    def spent(self, agent: str) -> Reading:
        """What was settled of the agent's money today. Tiers and errors as in `remaining`."""
        return self._read(
            agent, lambda day: day.spent_micros, lambda day: day.spent_micros, lambda _cap, spent, _leased: spent
        )

    def flush(self, timeout: float = 5) -> tuple[str, ...]:
        """Wait, at most `timeout` seconds, until the ledger has every event of this process.

        Those that it adopted from the outbox of one that died are counted in. Returns the reservation ids that
        were not known to be settled by then: empty is good.
        """
        end = time.monotonic() + timeout
        pause_s = 0.002
        while unsettled := self._unsettled():
            if time.monotonic() >= end:
                logger.warning("flush: %d events are not known to be settled", len(unsettled))
                break
            if not self._publisher.waiting:
                self._renew()
                self._settle_adopted()
            time.sleep(min(pause_s, max(0.0, end - time.monotonic())))
            pause_s = min(pause_s * 1.5, 0.05)
        return tuple(event.reservation for event in unsettled)

    def close(self, timeout: float = 5) -> tuple[str, ...]:
        """Flush, hand back what is leased and not held, end the threads. Returns what `flush` returns.

        Holds that are still live keep their money until their lease expires. Closing twice does nothing.
        """
        if self._closed.is_set():
            return ()
        unsettled = self.flush(timeout)
        self._closed.set()
        if live := self._book.live_holds():
            logger.warning("closing with %d live holds; their money comes back when the lease expires", live)
        self._renew(hand_back=True)
        if self._renewer is not None:
            self._renewer.join(timeout)
        self._publisher.close(timeout)
        for adopted in self._adopted:
            adopted.close()
        if self._outbox is not None:
            self._outbox.close()
        self._counter.close()
        if self._reader is not None:
            self._reader.close()
        return unsettled

    def stats(self) -> WalletStats:
        """Counts for a metrics endpoint."""
        return WalletStats(
            live_holds=self._book.live_holds(),
            unsettled=len(self._unsettled()),
            waiting=self._publisher.waiting,
            send_failures=self._publisher.failures,
            fallthroughs=self._fallthroughs,
            resent=self._resent,
            outbox_failures=self._outbox.failures if self._outbox is not None else 0,
        )

    def __enter__(self) -> Wallet:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- asking the counter -------------------------------------------------------------------------------

    def _ask(self, agent: str, estimate: int) -> Hold:
        if self._closed.is_set():
            raise BudgetUnavailable("this wallet is closed")
        self._start()
        end = time.monotonic() + self._settings.open_timeout_seconds
        with self._topping_up.setdefault(agent, threading.Lock()):
            tries, pause_s = 0, 0.002
            while tries < _MOST_TRIES:
                hold = self._book.reserve(agent, estimate)
                if hold is not None:
                    return hold
                pending = self._book.begin_top_up(agent, estimate)
                reply = self._exchange(pending)
                hold = self._book.finish_top_up(pending, reply, estimate)
                if hold is not None:
                    return hold
                if reply.answer is Answer.NOT_OPEN:
                    if time.monotonic() >= end:
                        raise BudgetUnavailable(
                            f"agent {agent}: nobody opened {pending.request.day} in the counter; is a worker running?"
                        )
                    self._ask_to_open(agent, pending.request.day)
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, 0.05)
                else:
                    tries += 1
        raise BudgetUnavailable(f"agent {agent}: the totals moved under every question; try again")

    def _exchange(self, pending: Pending) -> SyncReply:
        try:
            return self._counter.sync([pending.request])[0]
        except CounterUnavailable as error:
            self._book.abandon(pending)
            raise BudgetUnavailable(f"agent {pending.request.agent}: {error}") from error
        except BaseException:
            self._book.abandon(pending)
            raise

    def _ask_to_open(self, agent: str, day: str) -> None:
        now = time.monotonic()
        if now - self._asked_to_open.get((agent, day), -_OPEN_AGAIN_S) >= _OPEN_AGAIN_S:
            self._asked_to_open[agent, day] = now
            self._publisher.open_day(agent, day)

    # --- renewing, in the background ------------------------------------------------------------------------

    def _start(self) -> None:
        if self._renewer is None:
            with self._start_lock:
                if self._renewer is None:
                    self._renewer = threading.Thread(target=self._keep_renewing, name="daycap-renewer", daemon=True)
                    self._renewer.start()

    def _keep_renewing(self) -> None:
        while not self._closed.wait((self._book.ttl_ms / 1000 or self._settings.lease_ttl_seconds) / 3):
            try:
                self._renew()
                self._resend_what_stalled()
                self._settle_adopted()
                if self._outbox is not None:
                    self._outbox.retry()
            except Exception:
                logger.exception("renewing failed; trying again")

    def _renew(self, *, hand_back: bool = False) -> None:
        """One sync of every lease in use; a second one for those that were asked for their free money."""
        with self._renewing:
            for _ in range(2):
                pending = self._book.begin_renewal(hand_back=hand_back)
                if not pending:
                    return
                try:
                    replies = self._counter.sync([each.request for each in pending])
                except CounterUnavailable as error:
                    logger.warning("leases were not renewed: %s", error)
                    return
                recalled = False
                for each, reply in zip(pending, replies, strict=True):
                    recalled |= self._book.apply(each, reply)
                    if reply.answer is Answer.NOT_OPEN:
                        self._ask_to_open(each.request.agent, each.request.day)
                if not recalled:
                    return

    # --- keeping events until they are settled ----------------------------------------------------------------

    def _emit(self, event: FinalizeEvent) -> None:
        if self._outbox is not None:
            self._outbox.append(event)
        self._publisher.put(event)

    def _settled(self, event: FinalizeEvent) -> None:
        if self._outbox is not None:
            self._outbox.settled(event)

    def _unsettled(self) -> list[FinalizeEvent]:
        return [*self._book.unsettled(), *(event for adopted in self._adopted for event in adopted.events)]

    def _resend_what_stalled(self) -> None:
        if not self._book.unsettled() or self._publisher.waiting:
            return
        if dropped := self._book.drop_expired():
            _warn_of_expired(dropped)
        if events := self._book.stalled(self._resend_ns()):
            logger.warning("sending %d events again: nothing says that they were settled", len(events))
            self._resent += len(events)
            self._publisher.resend(events)

    def _resend_ns(self) -> int:
        # While messages are visibly waiting, so may ours be. Asked in the time that an exchange may take: the
        # leases are renewed by this thread.
        patience = 1 if self._publisher.backlog(self._settings.redis_timeout_seconds) == 0 else 10
        return int(self._settings.resend_seconds * patience * 1e9)

    def _settle_adopted(self) -> None:
        """Follow what dead processes left in the outbox until it is settled."""
        if self._outbox is None or self._closed.is_set():
            return
        with self._renewing:
            if found := self._outbox.adopt():
                self._adopted += found
                self._start()
            for adopted in list(self._adopted):
                self._follow(adopted)
                if not adopted.events:
                    self._adopted.remove(adopted)
                    adopted.close()

    def _follow(self, adopted: AbandonedOutbox) -> None:
        if adopted.sends:
            try:
                totals = self._counter.read_leases(adopted.leases)
            except CounterUnavailable as error:
                logger.warning("it is not known whether the events of an adopted outbox are settled: %s", error)
                return
            for lease, settled in zip(adopted.leases, totals, strict=True):
                if settled is not None:
                    adopted.settled(lease, settled_up_to(settled.events, settled.last_event))
                elif not self._book.expired(lease.day):
                    self._ask_to_open(lease.agent, lease.day)
                elif not self._publisher.waiting:
                    _warn_of_expired(adopted.drop(lease))
        if adopted.events and not self._publisher.waiting and adopted.due(time.monotonic_ns(), self._resend_ns()):
            logger.warning("sending %d events again that a process left in the outbox", len(adopted.events))
            self._resent += len(adopted.events)
            self._publisher.resend(adopted.events)

    # --- reading in three tiers -----------------------------------------------------------------------------

    def _read(
        self,
        agent: str,
        of_counter: Callable[[DayReading], int],
        of_ledger: Callable[[DaySnapshot], int],
        of_memory: Callable[[int, int, int], int],
    ) -> Reading:
        agent = agent_id(agent)
        day = self._book.today()
        try:
            (reading,) = self._counter.read([(agent, day)])
            if reading is not None:
                return Reading(of_counter(reading), self._tier)
        except CounterUnavailable as error:
            self._fall_through(agent, error)
        if self._reader is not None:
            try:
                (snapshot,) = self._reader.snapshots([(agent, day)])
                if snapshot.status == UNKNOWN:
                    raise UnknownAgent(agent)
                return Reading(of_ledger(snapshot), "ledger")
            except LedgerUnavailable as error:
                self._fall_through(agent, error)
        lease = self._book.last_known(agent)
        if lease is None or lease.day != day:
            return self._read_memory_ledger(agent, day, of_ledger)
        return Reading(of_memory(lease.cap, lease.spent, lease.leased), "memory")

    def _read_memory_ledger(self, agent: str, day: str, of_ledger: Callable[[DaySnapshot], int]) -> Reading:
        ledger = self._publisher.transport
        if not isinstance(ledger, MemoryLedger):
            raise BudgetUnavailable(f"agent {agent}: neither Redis nor a ledger nor memory knows {day}")
        snapshot = ledger.snapshot(agent, day)
        if snapshot.status == UNKNOWN:
            raise UnknownAgent(agent)
        return Reading(of_ledger(snapshot), "memory")

    def _fall_through(self, agent: str, error: Unavailable) -> None:
        self._fallthroughs += 1
        logger.warning("reading agent %s from the next tier: %s", agent, error)


def _outbox(settings: Settings) -> Outbox | None:
    if not settings.outbox:
        return None
    if not settings.broker_url:
        raise InvalidSetting("DAYCAP_OUTBOX keeps events for a worker: it needs DAYCAP_BROKER_URL")
    return Outbox(Path(settings.outbox), settings.outbox_megabytes * 1024 * 1024)


def _warn_of_expired(events: Sequence[FinalizeEvent]) -> None:
    logger.error(
        "%d events are so old that it cannot be known whether they were settled; the broker has them", len(events)
    )


def _days_of(reader: LedgerReader) -> DaySource:
    def source(agent: str, day: str) -> DaySnapshot | None:
        (snapshot,) = reader.snapshots([(agent, day)])
        return None if snapshot.status == UNKNOWN else snapshot

    return source


_wallets: weakref.WeakSet[Wallet] = weakref.WeakSet()


def _close_all() -> None:
    for wallet in list(_wallets):
        if wallet._renewer is not None:
            wallet.close()


def _forget_the_parent() -> None:
    for wallet in list(_wallets):
        wallet._forget()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_the_parent)
