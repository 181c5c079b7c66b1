"""The sender: one thread that hands events to the queue, so that `finalize` never waits for a broker.

It sends what has gathered while the last send was under way: one event at low load, hundreds at high load.
There is no timer and no added delay. An event stays in the lease book until it is settled; here it is only kept
until the broker has taken it.
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
from daycap.signal_safe import Busy, Signal, Turn, join

logger = logging.getLogger("daycap")

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.05, 2.0
_LONGEST_REFUSED_S = 10.0
"""The backoff from a broker that refuses: somebody may have repaired the password."""


class Sender:
    """Events and requests to open a day, on their way out. The thread starts with the first of them.

    It also does `prepare` before each send: what no caller should wait for. `tell_refused` is told when the broker
    begins to refuse this process, and when that ends.
    """

    def __init__(
        self,
        transport: Transport,
        prepare: Callable[[], None] = lambda: None,
        tell_refused: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.transport = transport
        self._prepare = prepare
        self._tell_refused = tell_refused
        self._begin()

    def forget(self) -> None:
        """In a forked child: start anew with nothing to do. The parent sends what it has."""
        self._begin()
        self.transport.forget()

    def _begin(self) -> None:
        self._starting = Turn()
        self._events: deque[FinalizeEvent] = deque()
        self._openings: dict[tuple[str, str], None] = {}
        self._wake = Signal()
        self._look = False
        self._looked = Signal()
        self._backlog: int | None = None
        self._idle = False
        self._sending = 0
        self._stop = Signal()
        self._thread: threading.Thread | None = None
        self.trouble: Exception | None = None
        """Why the last send failed; None after one that did not."""
        self.refused: str | None = None
        """Why nothing can be sent before somebody acts, and what to do; None while that is not so."""
        self.tried = Signal()
        """Set once the broker has answered, or was waited for long enough."""
        self.failures = 0
        """How many sends failed, since the start."""

    def start(self) -> None:
        """Start the thread, if it does not run. Raises `RuntimeError` where none can be had."""
        if not self._starting.mine():
            with suppress(Busy):  # Then another thread starts it, or it sees before its end what is to do.
                self._starting.take(self._start)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            thread = self._thread = threading.Thread(target=self._run, name="daycap-sender", daemon=True)
            try:
                thread.start()
            except BaseException:
                if not thread.is_alive():
                    self._thread = None
                raise

    @property
    def inside(self) -> bool:
        """Whether the thread that asks was interrupted in here."""
        return self._starting.mine()

    def put(self, event: FinalizeEvent) -> None:
        """Queue one event. Takes no lock of the thread's and never waits."""
        self._events.append(event)
        if self._idle or self._thread is None:
            self._rouse()

    def resend(self, events: Sequence[FinalizeEvent]) -> None:
        """Queue events once more."""
        self._events.extend(events)
        self._rouse()

    def open_day(self, agent: str, day: str) -> None:
        """Queue a request to open a day; the same request waits only once."""
        self._openings[agent, day] = None
        self._rouse()

    def try_broker(self, timeout_s: float) -> None:
        """Before the first money is held: see if the broker refuses this process. One that is away may come back."""
        if not self.tried.is_set():
            self._rouse()
            self.tried.wait(timeout_s)
            self.tried.set()

    @property
    def waiting(self) -> int:
        """How many events the broker has not taken yet."""
        return len(self._events) + self._sending

    def backlog(self, timeout_s: float) -> int | None:
        """How many messages wait at the broker; None if it does not say within `timeout_s`.

        The thread asks, for a broker that hangs may take far longer than whoever wants to know can wait.
        """
        self._looked.clear()
        self._look = True
        self._rouse()
        return self._backlog if self._looked.wait(timeout_s) else None

    def close(self, timeout_s: float) -> None:
        """Send what waits and end the thread, at the latest after `timeout_s`. What is put later is still sent."""
        self._stop.set()
        self._wake.set()
        if (thread := self._thread) is not None:
            join(thread, timeout_s)
        self.transport.close()

    def _rouse(self) -> None:
        if self._thread is None:
            with suppress(RuntimeError):  # No thread can be had now. The event is kept, and the next one tries again.
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
        """Whether the thread is to end: it was told to, and nothing waits or nothing can be sent."""
        if not self._stop.is_set():
            return False
        try:
            return self._starting.take(self._let_go)
        except Busy:
            return False  # Somebody is about to start one.

    def _let_go(self) -> bool:
        self._thread = None  # From here on `put`, which appends first and then looks, starts another one.
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
                self._send_some()

    def _note(self, error: Exception) -> None:
        self.trouble = error
        self.failures += 1
        log = logger.warning if self.failures in (1, 10, 100) or self.failures % 1000 == 0 else logger.debug
        log("%s", self._undone(error))
        self._note_refusal(self.transport.refusal(error))

    def _undone(self, error: Exception) -> str:
        """What failed, and what waits because of it. Without a broker it is the ledger that did not answer."""
        if isinstance(error, DaycapError):
            failed = str(error)
        else:
            failed = f"the broker did not {'take them' if self.waiting else 'answer'}: {type(error).__name__}"
        waiting = [f"{self.waiting} events"] if self.waiting else []
        if self._openings:
            waiting.append(f"{len(self._openings)} requests to open a day")
        return f"{' and '.join(waiting)} wait; {failed}" if waiting else failed

    def _note_refusal(self, refused: str | None) -> None:
        before, self.refused = self.refused, refused
        if refused != before and refused is not None:
            logger.error("%s; until then nothing is reserved, and %d events wait", refused, self.waiting)
        if (refused is None) != (before is None):
            self._tell_refused(refused is not None)

    def _send_some(self) -> None:
        events = self._events
        self._sending = count = min(
            len(events), MAX_EVENTS_PER_MESSAGE
        )  # Before they leave: `waiting` is never too few.
        some = [events.popleft() for _ in range(count)]
        try:
            self.transport.send(some)
        except BaseException:
            events.extendleft(reversed(some))
            raise
        finally:
            self._sending = 0

    def _look_at_backlog(self) -> None:
        self._look = False
        try:
            self._backlog = self.transport.backlog()
        except Exception as error:
            logger.debug("the broker does not tell its backlog: %r", error)
            self._backlog = None
        self._looked.set()

    def _sleep(self) -> None:
        # `put` looks at `_idle` after it appended; here it is set before the last look at what was appended.
        self._wake.clear()
        self._idle = True
        if not (self._events or self._openings or self._look or self._stop.is_set()):
            self._wake.wait()
        self._idle = False
