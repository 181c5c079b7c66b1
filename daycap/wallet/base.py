"""The base of `Wallet` and `AsyncWallet`: parts, hot path, start and close."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self

from daycap import process
from daycap.delivery.outbox import Outbox
from daycap.delivery.sender import Sender
from daycap.errors import (
    BudgetUnavailable,
    CapExceeded,
    CounterUnavailable,
    InvalidInput,
    NotYourAgent,
    OutboxFull,
    UnknownAgent,
)
from daycap.identity import identity_anchor
from daycap.money import MAX_MICROS, micros
from daycap.periods import PeriodRule
from daycap.pricing.answer_cost import CallPricing
from daycap.pricing.usage import PricedCall
from daycap.process import here
from daycap.protocol.labels import Labels, scope_patterns
from daycap.protocol.wire import FinalizeEvent, agent_id
from daycap.settings import Settings
from daycap.urls import without_secrets
from daycap.wallet import run
from daycap.wallet.binding import Binding
from daycap.wallet.hold import BaseHold, H
from daycap.wallet.lease_book import LeaseBook
from daycap.wallet.readings import Readings
from daycap.wallet.renewer import Renewer
from daycap.wallet.run import Run
from daycap.wallet.top_up import Steps, top_up
from daycap.wallet.wiring import Parts, make_parts, make_prices

if TYPE_CHECKING:
    from daycap.pricing.prices import Prices

logger = logging.getLogger("daycap")

_LAST_S = 0.25
"""How long a thread may take to end when the flush used up the timeout."""


@dataclass(frozen=True, slots=True)
class WalletStats:
    """Counts of this process: what it holds now, and what it has done since it started."""

    live_holds: int
    unsettled: int
    waiting: int
    send_failures: int
    fallthroughs: int
    resent: int
    outbox_failures: int


class BaseWallet(Generic[H]):
    """Everything in a wallet that does not wait; subclasses add the waiting."""

    _hold_type: ClassVar[type[BaseHold]]

    def __init__(self, parts: Parts, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._counter, transport, self._reader, self._outbox, self._in_loop = parts
        self._binding = Binding(self._settings.identity_anchor, self._reader)
        self._sender = Sender(
            transport,
            self._outbox.prepare if self._outbox is not None else lambda: None,
            self._on_refusal,
        )
        self._emit = _emitter(self._sender, self._outbox)
        self._book: LeaseBook[H] = LeaseBook(
            self._emit,
            self._outbox.settled if self._outbox is not None else lambda _: None,
            hold_type=self._hold_type,  # type: ignore[arg-type]
            reserve_more=self.reserve,
            guard_ms=self._settings.guard_ms,
            slice_seconds=self._settings.slice_seconds,
            trace_holds=self._settings.trace_holds,
        )
        transport.use_clock(self._book.clock.ms)
        self._renewer = Renewer(
            self._book, self._counter, self._sender, self._outbox, self._settings, transport.hear_changes
        )
        self._readings = Readings(self._book, self._counter, self._reader, transport)
        self._prices: Prices | None = None

    def _ready(self) -> None:
        """Register for forks and for the end of the process. Call it last in a subclass's `__init__`."""
        self._begin()
        process.watch(self)
        if process.without_threads() is None:
            self._renewer.follow_adopted()

    def _on_refusal(self, refused: bool) -> None:
        """Hold no money while the broker refuses this process: stop reserving, and hand back what is free."""
        self._book.ask_always(refused)

    def _begin(self) -> None:
        self._no_answer: tuple[float, CounterUnavailable] | None = None
        self._closed = False
        self._open_parts = [True]
        """Empty once the parts are closed."""

    def _forget(self) -> None:
        """Drop everything inherited from the parent, except the settings. Called in a forked child."""
        self._begin()
        self._binding.forget()
        self._book.forget()
        self._renewer.forget()
        self._sender.forget()
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
    ) -> Self:
        """Create a wallet from the `DAYCAP_` variables of the environment. Raises `InvalidSetting`.

        Without `DAYCAP_REDIS_URL` the counter is in this process's memory. It opens days from the ledger if
        `DAYCAP_LEDGER_URL` is set, otherwise from `caps` (agent to micros per day). Without `DAYCAP_BROKER_URL` too, a
        SQLite ledger belongs to this process: the wallet creates or migrates the file, and settles into it in a thread.
        Raises `InvalidSetting` while another process uses it, `LedgerUnavailable` if it cannot be read or written.
        Without a ledger, events are settled in memory and lost when the process ends.

        `anchor`, or by default `DAYCAP_IDENTITY_ANCHOR`, binds the wallet: it serves only the agent with that
        identity anchor. This needs `DAYCAP_LEDGER_URL`. Raises `InvalidInput` for an invalid anchor.
        """
        settings = Settings.from_env(environ)
        if anchor is not None:
            settings = dataclasses.replace(settings, identity_anchor=identity_anchor(anchor))
        return cls.from_settings(settings, caps=caps)

    @classmethod
    def from_settings(cls, settings: Settings, *, caps: Mapping[str, int] | None = None) -> Self:
        """Create a wallet from `settings`; see `from_env`."""
        with process.whole:
            parts = make_parts(settings, caps)
        return cls(parts, settings)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings: the other process makes its own connections, and one wallet for all copies.

        Raises `InvalidInput` if the counter is in this process's memory: a copy would lend the same money again.
        """
        if not self._settings.redis_url:
            raise InvalidInput("this wallet's counter is in memory: several processes need DAYCAP_REDIS_URL")
        return _of_this_process, (type(self), self._settings)

    def __repr__(self) -> str:
        redis_url, broker_url = self._settings.redis_url, self._settings.broker_url
        counter = without_secrets(redis_url) if redis_url else "memory"
        broker = without_secrets(broker_url) if broker_url else "none"
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {counter=!s} {broker=!s} {state} live_holds={self._book.live_holds()}>"

    def run(self, agent: str, cap_micros: int, *, shared: bool = False, hours: float = 24) -> Run[H]:
        """Begin a run of the agent: a cap for the calls of one task, whichever agents make them.

            with wallet.run("agent-7", usd("2.00")) as run:
                with run.reserve(usd("0.05")) as hold: ...
                with run.reserve(usd("0.05"), agent="agent-7.search") as hold: ...

        Each call counts in the run and in whatever else its agent's calls count in. Nothing is asked to create it. If
        it is `shared`, other processes join it by `run.id` (`join_run`); that needs DAYCAP_REDIS_URL. It ends with the
        block, and after `hours` at the latest. Raises `InvalidAmount` and `InvalidInput`.
        """
        agent_id(agent)
        if shared and not self._settings.redis_url:
            raise InvalidInput("a shared run needs DAYCAP_REDIS_URL: this wallet's counter is in memory")
        return run.begin(self, agent, cap_micros, hours, shared=shared)

    def join_run(self, run_id: str | None = None, *, agent: str | None = None) -> Run[H]:
        """Join a shared run of another process by its `id`, by default that in the variable DAYCAP_RUN.

        `agent` is whose calls these are, unless a call names another. A process may join a run several times, and ends
        it when the last of them ends. Raises `InvalidInput` for what is no id of a run, and without DAYCAP_REDIS_URL.
        """
        return run.join(self, os.environ.get("DAYCAP_RUN", "") if run_id is None else run_id, agent)

    def stats(self) -> WalletStats:
        """Return counts for a metrics endpoint."""
        return WalletStats(
            live_holds=self._book.live_holds(),
            unsettled=len(self._renewer.unsettled()),
            waiting=self._sender.waiting,
            send_failures=self._sender.failures,
            fallthroughs=self._readings.fallthroughs,
            resent=self._renewer.resent,
            outbox_failures=self._outbox.failures if self._outbox is not None else 0,
        )

    @property
    def prices(self) -> Prices:
        """The prices: `DAYCAP_PRICES_FILE` first, then genai-prices. Raises `InvalidSetting`."""
        if self._prices is None:  # Not a cached_property: a forked child would inherit its lock (in Python 3.11).
            with process.whole.lock:  # A child forked during the import could never import it.
                self._prices = make_prices(self._settings)
        return self._prices

    @prices.setter
    def prices(self, prices: Prices) -> None:
        self._prices = prices

    # --- shared steps of reserve ----------------------------------------------------------------------------

    def reserve(self, agent: str, estimate_micros: int, *, labels: Mapping[str, str] | None = None) -> Any:
        """See `Wallet.reserve`."""
        raise NotImplementedError

    def _add_agent(self, agent: str, cap_micros: int) -> None:
        agent, cap = agent_id(agent), micros(cap_micros)
        self._must_be_open()
        self._sender.transport.add_agent(agent, cap)

    def _set_cap(self, agent: str, cap_micros: int) -> None:
        agent, cap = agent_id(agent), micros(cap_micros)
        self._must_be_open()
        self._sender.transport.set_cap(agent, cap)

    def _add_group(self, name: str, agents: Collection[str], groups: Collection[str]) -> None:
        self._must_be_open()
        self._sender.transport.add_group(name, agents, groups)

    def _add_budget(
        self,
        name: str,
        cap_micros: int,
        rule: PeriodRule,
        agent: str | None,
        group: str | None,
        labels: Mapping[str, str | Sequence[str]] | None,
        mode: str,
    ) -> None:
        patterns = {key: list(values) for key, values in scope_patterns(labels or {})}
        facts = {"cap_micros": micros(cap_micros), "period": rule.to_json(), "labels": patterns, "mode": mode}
        scope = {kind: value for kind, value in (("agent", agent), ("group", group)) if value is not None}
        self._must_be_open()
        self._sender.transport.add_budget(name, {**facts, **scope})

    def _worst_case(self, estimate_micros: int | None, call: PricedCall) -> int:
        if estimate_micros is not None:
            raise InvalidInput("reserve takes an amount or a model, not both")
        return self.prices.worst_case_micros(**call)

    def _priced(self, hold: H, call: PricedCall) -> H:
        """Give the hold the prices of its call, and return it."""
        hold._pricing = CallPricing(self.prices, call["model"], call.get("provider"), call.get("service_tier"))
        return hold

    def _from_memory(self, agent: str, estimate_micros: object, labels: Labels = ()) -> H | None:
        """Reserve from what this process has leased; return None if the counter must be asked."""
        estimate = estimate_micros
        if type(estimate) is not int or not 0 <= estimate <= MAX_MICROS:
            estimate = micros(estimate)  # Raises the right error. The check is inlined because this is the hot path.
        if not here[0]:
            process.begin()
        if self._outbox is not None and self._outbox.full:
            raise OutboxFull
        try:
            return self._book.reserve(agent, estimate, labels)
        except TypeError:  # Unhashable: agent_id raises the right error.
            agent_id(agent)
            raise

    def _steps(self, agent: str, estimate: int, labels: Labels, start_s: float) -> Steps[H]:
        """Return the steps of a top-up, limited to the time that reserve may take."""
        end_s = start_s + self._settings.open_timeout_seconds
        return top_up(self._book, agent, estimate, labels, end_s=end_s, ask_to_open=self._renewer.ask_to_open)

    def _begin_to_ask(self, agent: str) -> float:
        """Check that a top-up may start, start the threads, and return the start time (monotonic seconds)."""
        agent_id(agent)
        process.check()
        self._must_be_open()
        try:
            self._renewer.start()
            self._sender.start()
        except RuntimeError as error:
            raise BudgetUnavailable(f"agent {agent}: cannot start the thread that sends events: {error}") from error
        return time.monotonic()

    def _must_be_open(self) -> None:
        if self._closed:
            raise BudgetUnavailable("this wallet is closed")
        if (why := self._sender.refused) is not None:
            raise BudgetUnavailable(why)

    @contextmanager
    def _asking(self, agent: str, locks: dict[str, Any]) -> Iterator[None]:
        """Handle the refusals of a top-up. `locks` has one lock per agent."""
        try:
            yield
        except CapExceeded:
            self._renewer.refused(agent)
            raise
        except (UnknownAgent, NotYourAgent):
            locks.pop(agent, None)
            raise

    @contextmanager
    def _exchanging(self, start_s: float) -> Iterator[None]:
        """Guard an exchange: if another one timed out while this one waited, fail with the same error at once."""
        self._must_be_open()
        if self._no_answer is not None and self._no_answer[0] >= start_s:
            raise self._no_answer[1]
        try:
            yield
        except CounterUnavailable as error:
            self._no_answer = (time.monotonic(), error)
            raise

    def _interrupted(self) -> bool:
        """Whether this is a signal handler or a finalizer that interrupted the wallet in this thread."""
        return self._book.inside() or self._renewer.inside or self._sender.inside or self._asks_here()

    def _asks_here(self) -> bool:
        """Whether this thread was interrupted while it asked the counter. Tasks of an event loop never are."""
        return False

    def _unsettled(self) -> tuple[str, ...]:
        return tuple(event.reservation for event in self._renewer.unsettled())

    def _flush(self, timeout: float) -> tuple[str, ...]:
        end = time.monotonic() + timeout
        pause_s = 0.002
        while (unsettled := self._unsettled()) and not self._interrupted():
            if time.monotonic() >= end:
                logger.warning("flush timed out: %d events are not known to be settled", len(unsettled))
                break
            if not self._sender.waiting:
                self._renewer.learn_settled()
            time.sleep(min(pause_s, max(0.0, end - time.monotonic())))
            pause_s = min(pause_s * 1.5, 0.05)
        return unsettled

    def _close(self, timeout: float, *, ending: bool = False) -> tuple[str, ...]:
        """Close; `ending`: because the process ends, so that no event is sent again unless an outbox keeps it."""
        if not self._open_parts:
            return ()
        end = time.monotonic() + timeout
        self._closed = True
        if self._interrupted():
            # Waiting would deadlock: the interrupted code below this call must continue first.
            self._renewer.finish(self._end_parts)
            return self._unsettled()
        self._book.close()
        self._flush(timeout)
        if live := self._book.live_holds():
            logger.warning("closing with %d live holds; their money is freed when the lease expires", live)
        if self._renewer.renew(hand_back=True):
            handed_over = ending and self._outbox is None and not self._sender.waiting
            self._renewer.say_farewell(handed_over=handed_over)
        unsettled = self._unsettled()
        if self._renewer.started and (live or (self._book.unsettled.events() and self._outbox is None)):
            # The renewer sends later events and follows them until they settle. (With an outbox the next process does.)
            self._renewer.finish(self._end_parts)
        else:
            self._renewer.stop(max(_LAST_S, end - time.monotonic()))
            self._end_parts(max(_LAST_S, end - time.monotonic()))
        return unsettled

    def _end_parts(self, timeout_s: float = _LAST_S) -> None:
        try:
            self._open_parts.pop()
        except IndexError:
            return  # Another thread is closing them.
        self._renewer.let_go()
        self._sender.close(timeout_s)
        if self._outbox is not None:
            self._outbox.close()
        self._counter.close()
        if self._reader is not None:
            self._reader.close()

    def _end(self, timeout_s: float) -> None:
        """Close because the process ends. A wallet that was never used needs nothing."""
        if self._renewer.started and (unsettled := self._close(timeout_s, ending=True)):
            logger.error(
                "%d events are not known to be settled as the process ends; %s",
                len(unsettled),
                "the outbox keeps them for the next process"
                if self._outbox is not None
                else f"the broker has not taken {self._sender.waiting} of them, which are lost",
            )
        self._book.emit = partial(self._emit_last, time.monotonic() + process.END_S)

    def _emit_last(self, until_s: float, event: FinalizeEvent) -> None:
        """Send an event that a later `atexit` function finalizes, before that function returns."""
        self._emit(event)
        while self._sender.waiting:
            if time.monotonic() >= until_s:
                logger.error(
                    "event %s was finalized as the process ended; the broker did not accept it", event.reservation
                )
                return
            time.sleep(0.002)


def _of_this_process(kind: type[BaseWallet[Any]], settings: Settings) -> BaseWallet[Any]:
    for wallet in process.wallets():
        if type(wallet) is kind and wallet._settings == settings and not wallet._closed:
            return wallet
    return kind.from_settings(settings)


def too_many_concurrent(agent: str) -> BudgetUnavailable:
    """Return the error of a reserve that timed out waiting for its turn."""
    return BudgetUnavailable(f"agent {agent}: too many concurrent reservations for this agent; try again")


def _emitter(sender: Sender, outbox: Outbox | None) -> Callable[[FinalizeEvent], None]:
    """Return the function that takes each new event: it writes to the outbox first, if there is one."""
    put = sender.put
    if outbox is None:
        return put

    def keep_and_put(event: FinalizeEvent) -> None:
        outbox.append(event)
        put(event)

    return keep_and_put
