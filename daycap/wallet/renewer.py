"""The renewer: one thread that renews leases and resends events until the ledger has them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from daycap.delivery.outbox import AbandonedOutbox, Outbox
from daycap.delivery.sender import Sender
from daycap.errors import CounterUnavailable, LedgerUnavailable
from daycap.protocol.counter import Answer, Counter, settled_up_to
from daycap.protocol.wire import FinalizeEvent
from daycap.settings import Settings
from daycap.signal_safe import Background, Busy, Signal, Turn, join
from daycap.wallet.lease import Lease
from daycap.wallet.lease_book import LeaseBook
from daycap.wallet.leases import expired

logger = logging.getLogger("daycap")

_OPEN_AGAIN_S = 1.0
"""How long to wait before asking again for a day to be opened."""

_AT_ONCE = 500
"""How many leases to renew in one exchange: the reply to a larger one might be too old when it is applied."""

_LONGEST_RENEWAL_S = 5.0
"""How long to wait for another thread that renews: its exchanges are bounded, but there may be many."""

_FINISH_S = 0.1
"""How often to check, after a close, whether anything is left."""

_LOOK_S = 0.5
"""How often to check whether a renewal is due: a new lease may have a shorter ttl."""


class Renewer(Background):
    """Renews the leases of `book` every third of a ttl, and resends what is not settled in time."""

    _thread_name = "daycap-renewer"

    def __init__(
        self,
        book: LeaseBook[Any],
        counter: Counter,
        sender: Sender,
        outbox: Outbox | None,
        settings: Settings,
        hear_changes: Callable[[], None] = lambda: None,
    ) -> None:
        self._book = book
        self._counter = counter
        self._sender = sender
        self._outbox = outbox
        self._settings = settings
        self._hear_changes = hear_changes
        self._adopted: list[AbandonedOutbox] = []
        self._begin()

    def _begin(self) -> None:
        self._reset_thread()
        self._renewing = Turn()
        self._stop = Signal()
        self._finish: Callable[[], None] | None = None
        self._finish_s = _FINISH_S
        self._asked_to_open: dict[tuple[str, str], float] = {}
        self._refused: set[str] = set()
        self._adopted = []
        self.resent = 0
        """How many events were resent since the start."""

    def forget(self) -> None:
        """Start over with nothing to renew. Called in a forked child."""
        for adopted in self._adopted:
            adopted.forget()
        self._begin()

    @property
    def started(self) -> bool:
        return self._thread is not None

    @property
    def inside(self) -> bool:
        """Whether the calling thread was interrupted in here."""
        return self._renewing.mine() or self._starting.mine()

    def finish(self, then: Callable[[], None]) -> None:
        """End the thread once nothing is live or unsettled, and call `then`, which closes the rest."""
        self._finish = then

    def stop(self, timeout_s: float) -> None:
        """End the thread. Adopted events that are not settled are left to the next process."""
        self._stop.set()
        if self._thread is not None:
            join(self._thread, timeout_s)
        self.let_go()

    def let_go(self) -> None:
        """Leave adopted outboxes to the next process."""
        for adopted in self._adopted:
            adopted.close()

    def unsettled(self) -> list[FinalizeEvent]:
        """Return every event that the ledger is not known to have, including those adopted from dead processes."""
        return [*self._book.unsettled.events(), *(event for adopted in self._adopted for event in adopted.events)]

    def learn_settled(self) -> None:
        """Ask now which events are settled."""
        self.renew(self._book.unsettled.leases())
        self.follow_adopted()

    def ask_to_open(self, agent: str, day: str) -> None:
        """Ask a worker to open the day, at most once a second."""
        now = time.monotonic()
        if now - self._asked_to_open.get((agent, day), -_OPEN_AGAIN_S) >= _OPEN_AGAIN_S:
            self._asked_to_open[agent, day] = now
            self._sender.open_day(agent, day)

    def refused(self, agent: str) -> None:
        """Note that the agent was refused, so that recalled free money of this process is handed back soon."""
        self._refused.add(agent)

    def renew(self, only: list[Lease] | None = None, *, hand_back: bool = False) -> bool:
        """Sync every lease in use, or only the given ones. Returns whether all of them were renewed."""

        def renew() -> bool:
            leases = self._book.exchanges.leases() if only is None else only
            batches = [leases[start : start + _AT_ONCE] for start in range(0, len(leases), _AT_ONCE)]
            renewed = [self._renew(batch, hand_back=hand_back) for batch in batches]  # Even after one that failed.
            return all(renewed)

        if self.inside:
            return False
        try:
            return self._renewing.take(renew, _LONGEST_RENEWAL_S)
        except (CounterUnavailable, Busy) as error:
            logger.warning("leases were not renewed: %s", str(error) or "another thread is renewing them")
            return False

    def say_farewell(self, *, handed_over: bool) -> None:
        """Tell the counter which leases are over; see `LeaseBook.begin_farewell`. Without an answer they expire."""

        def say_farewell() -> None:
            pending = self._book.exchanges.begin_farewell(handed_over=handed_over)
            for start in range(0, len(pending), _AT_ONCE):
                batch = pending[start : start + _AT_ONCE]
                for each, reply in zip(batch, self._counter.sync([each.request for each in batch]), strict=True):
                    self._book.exchanges.apply(each, reply)

        with suppress(CounterUnavailable, Busy):
            self._renewing.take(say_farewell, _LONGEST_RENEWAL_S)

    def _renew(self, leases: Sequence[Lease], *, hand_back: bool) -> bool:
        """Sync once, and once more to hand back free money that others need. Raises `CounterUnavailable`."""
        renewed = True
        for _ in range(2):
            pending = self._book.exchanges.begin_renewal(leases, hand_back=hand_back)
            if not pending:
                break
            replies = self._counter.sync([each.request for each in pending])
            leases = []
            for each, reply in zip(pending, replies, strict=True):
                if self._book.exchanges.apply(each, reply):
                    leases.append(each.lease)
                if reply.answer is Answer.NOT_OPEN:
                    self.ask_to_open(each.request.agent, each.request.day)
                    renewed = False
            hand_back = True
        return renewed

    def follow_adopted(self) -> None:
        """Adopt what dead processes left in the outbox, and resend it until it is settled."""
        if self._outbox is not None and not self._stop.is_set() and not self.inside:
            with suppress(Busy):  # Another thread is doing it.
                self._renewing.take(partial(self._follow_adopted, self._outbox), _LONGEST_RENEWAL_S)

    def _follow_adopted(self, outbox: Outbox) -> None:
        if found := outbox.adopt():
            self._adopted += found
            self.start()
        for adopted in list(self._adopted):
            self._follow(adopted)
            if not adopted.events:
                self._adopted.remove(adopted)
                adopted.close()

    def _run(self) -> None:
        begun_s, part = time.monotonic(), 3
        while not self._stop.is_set():
            ttl_s = self._book.exchanges.ttl_ms / 1000
            left_s = begun_s + ttl_s / part - time.monotonic() if ttl_s else _LOOK_S
            wait_s = max(0.0, min(left_s, _LOOK_S)) if self._finish is None else self._finish_s
            if self._stop.wait(wait_s):
                return
            try:
                self._note()
                if self._finish is not None:
                    if self._finished():
                        self._finish()
                        return
                    continue
                if left_s > _LOOK_S:
                    self._hand_back_recalled()
                    continue
                # Measured from start to start, however long a round takes; sooner if leases were not renewed.
                begun_s = time.monotonic()
                part = 3 if self._tick() else 12
            except Exception:
                logger.exception("renewing leases failed; retrying")

    def _note(self) -> None:
        """Log what the book cannot log under its lock."""
        for hold in self._book.take_dropped():
            logger.error(
                "agent %s: a hold was dropped after %.1f s without being finalized or released, and charged in full: "
                "%d micros%s",
                hold.agent,
                hold.age_s,
                hold.micros,
                f" (reserved at {hold.where})" if hold.where else "",
                extra={"agent": hold.agent, "micros": hold.micros, "age_s": hold.age_s},
            )
        error, self._book.trouble = self._book.trouble, None
        if error is not None:
            logger.error("an event could not be queued; it is kept and will be resent", exc_info=error)

    def _finished(self) -> bool:
        """Whether nothing is left after a close; otherwise renew and resend what is."""
        self._book.close()
        if unsettled := self._book.unsettled.leases():
            renewed = self.renew(unsettled, hand_back=True)
            self._finish_s = (
                _FINISH_S if renewed else self._book.exchanges.ttl_ms / 1000 / 12
            )  # As often as before the close.
            self._resend_what_stalled()
            if self._outbox is not None:
                self._outbox.retry()
        if self._book.live_holds() or self._book.unsettled.events():
            return False
        self.say_farewell(handed_over=False)
        return True

    def _hand_back_recalled(self) -> None:
        """Hand recalled money back now, not at the next renewal: others may be refused because it is idle here."""
        if not self._refused:
            return
        agents, self._refused = self._refused, set()
        leases = self._book.leases.drawn_on(agents)
        if recalled := [lease for lease in leases if lease.recalled and lease.free > 0]:
            self.renew(recalled)

    def _tick(self) -> bool:
        try:
            self._hear_changes()
        except LedgerUnavailable as error:
            logger.warning("changes of caps are not known: %s", error)
        renewed = self.renew()
        self._resend_what_stalled()
        self.follow_adopted()
        if self._outbox is not None:
            self._outbox.retry()
        oldest = time.monotonic() - _OPEN_AGAIN_S
        self._asked_to_open = {where: at for where, at in self._asked_to_open.copy().items() if at > oldest}
        return renewed

    def _resend_what_stalled(self) -> None:
        if self._sender.trouble is not None or not self._book.unsettled.events():
            return
        if not self._sender.waiting and (dropped := self._book.unsettled.drop_expired()):
            _warn_of_expired(dropped)
        if events := self._book.unsettled.stalled(self._resend_ns()):
            self._resend(events, "resending %d unconfirmed events")

    def _follow(self, adopted: AbandonedOutbox) -> None:
        if adopted.sends:
            try:
                totals = self._counter.read_leases(adopted.leases)
            except CounterUnavailable as error:
                logger.warning("cannot check whether the events of an adopted outbox are settled: %s", error)
                return
            for lease, settled in zip(adopted.leases, totals, strict=True):
                if settled is not None:
                    adopted.settled(lease, settled_up_to(settled.events, settled.last_event))
                elif not expired(lease.day, self._book.clock.today()):
                    self.ask_to_open(lease.agent, lease.day)
                elif not self._sender.waiting:
                    _warn_of_expired(adopted.drop(lease))
        if adopted.events and self._sender.trouble is None and adopted.due(time.monotonic_ns(), self._resend_ns()):
            self._resend(adopted.events, "resending %d events that a dead process left in the outbox")

    def _resend(self, events: Sequence[FinalizeEvent], message: str) -> None:
        logger.warning(message, len(events))
        self.resent += len(events)
        self._sender.resend(events)

    def _resend_ns(self) -> int:
        # While messages wait at the broker, ours may be among them. The timeout is short, because this thread also
        # renews the leases.
        patience = 1 if self._sender.backlog(self._settings.redis_timeout_seconds) == 0 else 10
        return int(self._settings.resend_seconds * patience * 1e9)


def _warn_of_expired(events: Sequence[FinalizeEvent]) -> None:
    logger.error("%d events are too old to confirm that they were settled; the broker accepted them", len(events))
