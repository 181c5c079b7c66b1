"""The wallet: what an inference runner embeds. Reserve before a call, finalize after it."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from daycap.binding import Binding
from daycap.counter import SyncReply
from daycap.errors import BudgetUnavailable, CounterUnavailable, NotYourAgent, OutboxFull, UnknownAgent
from daycap.identity import identity_anchor
from daycap.keeper import Keeper
from daycap.lease import Hold
from daycap.lease_book import LeaseBook, Pending
from daycap.money import micros
from daycap.outbox import Outbox
from daycap.publisher import Publisher
from daycap.readings import Reading, Readings
from daycap.settings import Settings
from daycap.setups import Parts, make_parts
from daycap.top_up import top_up
from daycap.wire import FinalizeEvent, agent_id

logger = logging.getLogger("daycap")


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

    Use `Wallet.from_env()`. A wallet starts its threads when it first has something for them to do, and `close`
    (or leaving it as a context manager) ends them. All amounts are int micros.
    """

    def __init__(self, parts: Parts, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._counter, transport, self._reader, self._outbox = parts
        self._binding = Binding(self._settings.identity_anchor, self._reader)
        self._publisher = Publisher(transport)
        self._book = LeaseBook(
            _emitter(self._publisher, self._outbox),
            self._outbox.settled if self._outbox is not None else lambda _: None,
            guard_ms=self._settings.guard_ms,
            slice_seconds=self._settings.slice_seconds,
        )
        transport.use_clock(self._book.counter_ms)
        self._keeper = Keeper(self._book, self._counter, self._publisher, self._outbox, self._settings)
        self._readings = Readings(self._book, self._counter, self._reader, transport)
        self._begin()
        _wallets.add(self)
        self._keeper.follow_adopted()

    def _begin(self) -> None:
        self._topping_up: dict[str, threading.Lock] = {}
        self._no_answer: tuple[float, CounterUnavailable] | None = None
        self._closed = False

    def _forget(self) -> None:
        """In a forked child, which shares nothing with its parent but the settings."""
        self._begin()
        self._binding.forget()
        self._book.forget()
        self._keeper.forget()
        self._publisher.forget()
        self._counter.forget()
        if self._outbox is not None:
            self._outbox.forget()
        if self._reader is not None:
            self._reader.forget()

    @classmethod
    def from_env(
        cls,
        *,
        caps: Mapping[str, int] | None = None,
        environ: Mapping[str, str] | None = None,
        anchor: str | None = None,
    ) -> Wallet:
        """A wallet as the environment says; the README has the table. Raises `InvalidSetting`.

        Without `DAYCAP_REDIS_URL` the counter is in this process's memory: opened from the ledger if
        `DAYCAP_LEDGER_URL` is set, else with `caps` (agent to micros a day). Without `DAYCAP_BROKER_URL` events
        are settled in memory and are gone with the process.

        With `anchor`, else `DAYCAP_IDENTITY_ANCHOR`, the wallet is bound: it serves the agent of that identity anchor
        and no other. That needs `DAYCAP_LEDGER_URL`. Raises `InvalidInput` for what cannot be an anchor.
        """
        settings = Settings.from_env(environ)
        if anchor is not None:
            settings = dataclasses.replace(settings, identity_anchor=identity_anchor(anchor))
        return cls.from_settings(settings, caps=caps)

    @classmethod
    def from_settings(cls, settings: Settings, *, caps: Mapping[str, int] | None = None) -> Wallet:
        """See `from_env`."""
        return cls(make_parts(settings, caps), settings)

    # --- the runner's verbs -------------------------------------------------------------------------------

    def reserve(self, agent: str, estimate_micros: int) -> Hold:
        """Hold the most that a call can cost, in micros, before it is made.

        Answers from memory, in microseconds, while this process has leased enough for the agent; else asks the
        counter, for at most `DAYCAP_REDIS_TIMEOUT_SECONDS` an exchange.

        Raises `CapExceeded` when it would pass the agent's cap of the day, `AgentPaused`, `UnknownAgent`,
        `NotYourAgent`, `InvalidAmount` or `InvalidInput`, and `BudgetUnavailable` when the check could not be made
        safely (`OutboxFull` when its event could not be kept).
        """
        estimate = micros(estimate_micros)
        if self._outbox is not None and self._outbox.full:
            raise OutboxFull
        try:
            hold = self._book.reserve(agent, estimate)
        except TypeError:  # It cannot even be looked up: agent_id says why.
            hold = None
        return hold if hold is not None else self._ask(agent_id(agent), estimate)

    def remaining(self, agent: str) -> Reading:
        """What could still be reserved for the agent today, this process's own free lease included.

        Read from Redis, else the ledger (cap less spent), else from what this process last heard. Raises
        `UnknownAgent`, and `BudgetUnavailable` when no tier can answer.
        """
        return self._readings.remaining(agent)

    def spent(self, agent: str) -> Reading:
        """What was settled of the agent's money today. Tiers and errors as in `remaining`."""
        return self._readings.spent(agent)

    def verify_identity_binding(self, agent: str, anchor: str) -> bool:
        """Whether `anchor` is the agent's identity anchor now, says the ledger. False too where it has none.

        Raises `UnknownAgent`, `InvalidInput`, `LedgerUnavailable` when the ledger does not answer, and
        `InvalidSetting` when there is no `DAYCAP_LEDGER_URL` to ask.
        """
        return self._binding.verify(agent, anchor)

    def flush(self, timeout: float = 5) -> tuple[str, ...]:
        """Wait, at most `timeout` seconds, until the ledger has every event of this process.

        Those that it adopted from the outbox of one that died are counted in. Returns the reservation ids that
        were not known to be settled by then: empty is good.
        """
        end = time.monotonic() + timeout
        pause_s = 0.002
        while unsettled := self._keeper.unsettled():
            if time.monotonic() >= end:
                logger.warning("flush: %d events are not known to be settled", len(unsettled))
                break
            if not self._publisher.waiting:
                self._keeper.learn_settled()
            time.sleep(min(pause_s, max(0.0, end - time.monotonic())))
            pause_s = min(pause_s * 1.5, 0.05)
        return tuple(event.reservation for event in unsettled)

    def close(self, timeout: float = 5) -> tuple[str, ...]:
        """Flush, hand back what is leased and not held, end the threads. Returns what `flush` returns.

        There is no new hold from now on. Holds that are still live can be ended: their events are sent, and their
        money comes back when their lease expires. Closing twice does nothing.
        """
        if self._closed:
            return ()
        self._closed = True
        self._book.close()
        self.flush(timeout)
        if live := self._book.live_holds():
            logger.warning("closing with %d live holds; their money comes back when the lease expires", live)
        self._keeper.renew(hand_back=True)
        unsettled = tuple(event.reservation for event in self._keeper.unsettled())
        self._keeper.stop(timeout)
        self._publisher.close(timeout)
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
            unsettled=len(self._keeper.unsettled()),
            waiting=self._publisher.waiting,
            send_failures=self._publisher.failures,
            fallthroughs=self._readings.fallthroughs,
            resent=self._keeper.resent,
            outbox_failures=self._outbox.failures if self._outbox is not None else 0,
        )

    def __enter__(self) -> Wallet:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------------------

    def _ask(self, agent: str, estimate: int) -> Hold:
        """Drive a top-up: one at a time for each agent, for as long as reserve may take."""
        if self._closed:
            raise BudgetUnavailable("this wallet is closed")
        self._keeper.start()
        start_s = time.monotonic()
        lock = self._topping_up.setdefault(agent, threading.Lock())
        if not lock.acquire(timeout=self._settings.open_timeout_seconds):
            raise BudgetUnavailable(f"agent {agent}: too many ask for its money at once; try again")
        try:
            self._binding.check(agent)  # Whoever has a lease in the book came by here.
            return self._top_up(agent, estimate, start_s)
        except (UnknownAgent, NotYourAgent):
            self._topping_up.pop(agent, None)
            raise
        finally:
            lock.release()

    def _top_up(self, agent: str, estimate: int, start_s: float) -> Hold:
        end_s = start_s + self._settings.open_timeout_seconds
        steps = top_up(self._book, agent, estimate, end_s=end_s, ask_to_open=self._keeper.ask_to_open)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pending):
                    try:
                        reply = self._exchange(step, start_s)
                    except BaseException as error:
                        step = steps.throw(error)
                    else:
                        step = steps.send(reply)
                else:
                    time.sleep(step)
                    step = next(steps)
        except StopIteration as done:
            hold: Hold = done.value
            return hold

    def _exchange(self, pending: Pending, start_s: float) -> SyncReply:
        # Who waited while another's question got no answer does not ask again and wait as long once more.
        if self._no_answer is not None and self._no_answer[0] >= start_s:
            raise self._no_answer[1]
        try:
            return self._counter.sync([pending.request])[0]
        except CounterUnavailable as error:
            self._no_answer = (time.monotonic(), error)
            raise


def _emitter(publisher: Publisher, outbox: Outbox | None) -> Callable[[FinalizeEvent], None]:
    """What is done with each event at once: it is kept on disk first, where there is an outbox."""
    put = publisher.put
    if outbox is None:
        return put

    def keep_and_put(event: FinalizeEvent) -> None:
        outbox.append(event)
        put(event)

    return keep_and_put


_wallets: weakref.WeakSet[Wallet] = weakref.WeakSet()


def _close_all() -> None:
    for wallet in list(_wallets):
        if wallet._keeper.started:
            wallet.close()


def _forget_the_parent() -> None:
    for wallet in list(_wallets):
        wallet._forget()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_the_parent)
