"""The sender: one thread that hands events to the queue, so that `finalize` never waits for a broker.

Each send takes the events that were queued during the last one: one event at low load, hundreds at high load.
There is no timer and no added delay. The lease book keeps an event until it is settled; the sender keeps it only
until the broker has accepted it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from daycap.delivery.transport import Transport
from daycap.errors import DaycapError
from daycap.protocol.wire import MAX_EVENTS_PER_MESSAGE, FinalizeEvent
from daycap.signal_safe import Background, Busy, Signal, join

logger = logging.getLogger("daycap")

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.05, 2.0
_LONGEST_REFUSED_S = 10.0
"""The longest backoff while the broker refuses this process: someone may fix the password meanwhile."""


class Sender(Background):
    """Queues events and requests to open a day, and sends them. Its thread starts with the first of them.

    The thread calls `prepare` before each send, for work that no caller should wait for, and `on_refusal` when the
    broker starts or stops refusing this process.
    """

    _thread_name = "daycap-sender"

    def __init__(
        self,
        transport: Transport,
        prepare: Callable[[], None] = lambda: None,
        on_refusal: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.transport = transport
        self._prepare = prepare
        self._on_refusal = on_refusal
        self._begin()

    def forget(self) -> None:
        """Start over with empty queues: the parent sends its events. Called in a forked child."""
        self._begin()
        self.transport.forget()

    def _begin(self) -> None:
        self._reset_thread()
        self._events: deque[FinalizeEvent] = deque()
        self._openings: dict[tuple[str, str], None] = {}
        self._wake = Signal()
        self._look = False
        self._looked = Signal()
        self._backlog: int | None = None
        self._idle = False
        self._sending = 0
        self._stop = Signal()
        self.trouble: Exception | None = None
        """Why the last send failed; None if it succeeded."""
        self.refused: str | None = None
        """Why nothing can be sent until someone acts, and what to do; None otherwise."""
        self.tried = Signal()
        """Set once the broker has answered, or the wait for it has timed out."""
        self.failures = 0
        """How many sends failed since the start."""

    @property
    def inside(self) -> bool:
        """Whether the calling thread was interrupted in here."""
        return self._starting.mine()

    def put(self, event: FinalizeEvent) -> None:
        """Queue one event. Takes no lock and never waits."""
        self._events.append(event)
        if self._idle or self._thread is None:
            self._rouse()

    def resend(self, events: Sequence[FinalizeEvent]) -> None:
        """Queue events again."""
        self._events.extend(events)
        self._rouse()

    def open_day(self, agent: str, day: str) -> None:
        """Queue a request to open a day, unless the same request is already queued."""
        self._openings[agent, day] = None
        self._rouse()

    def try_broker(self, timeout_s: float) -> None:
        """Wait for the first contact with the broker, so that a refusal is known before any money is held.

        Gives up after `timeout_s`: a broker that is down may come back.
        """
        if not self.tried.is_set():
            self._rouse()
            self.tried.wait(timeout_s)
            self.tried.set()

    @property
    def waiting(self) -> int:
        """How many events the broker has not accepted yet."""
        return len(self._events) + self._sending

    def backlog(self, timeout_s: float) -> int | None:
        """Return how many messages wait at the broker; None if it does not answer within `timeout_s`.

        The sender's thread asks, because a hanging broker may take far longer than the caller can wait.
        """
        self._looked.clear()
        self._look = True
        self._rouse()
        return self._backlog if self._looked.wait(timeout_s) else None

    def close(self, timeout_s: float) -> None:
        """Send what is queued and end the thread, within `timeout_s`. Events that are put later are still sent."""
        self._stop.set()
        self._wake.set()
        if (thread := self._thread) is not None:
            join(thread, timeout_s)
        self.transport.close()

    def _rouse(self) -> None:
        if self._thread is None:
            with suppress(RuntimeError):  # No thread can start now. The event is kept, and the next one tries again.
                self.start()
        self._wake.set()

    def _run(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                if self.refused is not None or not self.tried.is_set():
                    self.transport.connect()
                self._send_all()
                if self._look:
                    self._look_at_backlog()
                self.trouble = None
                self._note_refusal(None)
                backoff_s = _FIRST_BACKOFF_S
            except Exception as error:
                self._note(error)
            self.tried.set()
            if self._ends():
                return
            if self.trouble is None:
                self._sleep()
            else:
                self._stop.wait(backoff_s)
                backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S if self.refused is None else _LONGEST_REFUSED_S)

    def _ends(self) -> bool:
        """Whether the thread must end: it was stopped, and the queues are empty or sends fail."""
        if not self._stop.is_set():
            return False
        try:
            return self._starting.take(self._let_go)
        except Busy:
            return False  # Another thread is starting one.

    def _let_go(self) -> bool:
        self._thread = None  # From here on `put`, which appends first and then checks, starts a new thread.
        if self.trouble is None and (self._events or self._openings):
            self._thread = threading.current_thread()
            return False
        return True

    def _send_all(self) -> None:
        while self._events or self._openings:
            while self._openings:
                where = next(iter(self._openings))
                self.transport.open_day(*where)
                self._openings.pop(where, None)
            if self._events:
                self._prepare()
                self._send_batch()

    def _note(self, error: Exception) -> None:
        self.trouble = error
        self.failures += 1
        log = logger.warning if self.failures in (1, 10, 100) or self.failures % 1000 == 0 else logger.debug
        log("%s", self._failure(error))
        self._note_refusal(self.transport.refusal(error))

    def _failure(self, error: Exception) -> str:
        """Say what failed and what waits because of it. Without a broker, the ledger is what failed."""
        if isinstance(error, DaycapError):
            failed = str(error)
        else:
            failed = f"the broker did not {'accept them' if self.waiting else 'answer'}: {type(error).__name__}"
        waiting = [f"{self.waiting} events"] if self.waiting else []
        if self._openings:
            waiting.append(f"{len(self._openings)} requests to open a day")
        return f"{' and '.join(waiting)} wait; {failed}" if waiting else failed

    def _note_refusal(self, refused: str | None) -> None:
        before, self.refused = self.refused, refused
        if refused != before and refused is not None:
            logger.error("%s; until then nothing is reserved, and %d events wait", refused, self.waiting)
        if (refused is None) != (before is None):
            self._on_refusal(refused is not None)

    def _send_batch(self) -> None:
        events = self._events
        # Set before they leave the queue, so that `waiting` is never too low.
        self._sending = count = min(len(events), MAX_EVENTS_PER_MESSAGE)
        batch = [events.popleft() for _ in range(count)]
        try:
            self.transport.send(batch)
        except BaseException:
            events.extendleft(reversed(batch))
            raise
        finally:
            self._sending = 0

    def _look_at_backlog(self) -> None:
        self._look = False
        try:
            self._backlog = self.transport.backlog()
        except Exception as error:
            logger.debug("cannot read the broker's backlog: %r", error)
            self._backlog = None
        self._looked.set()

    def _sleep(self) -> None:
        # `put` appends and then reads `_idle`; here `_idle` is set before the queues are checked.
        self._wake.clear()
        self._idle = True
        if not (self._events or self._openings or self._look or self._stop.is_set()):
            self._wake.wait()
        self._idle = False
