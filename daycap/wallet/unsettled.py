"""The events that the ledger is not known to have: followed, sent again, and dropped when nobody can confirm them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daycap.protocol.counter import SyncReply, settled_up_to
from daycap.protocol.resend import resend_wait_ns
from daycap.protocol.wire import FinalizeEvent
from daycap.wallet.holds import Holds
from daycap.wallet.lease import Lease
from daycap.wallet.leases import expired

_RESENDS_BEFORE_SUCCESSOR = 2


class Unsettled:
    """The unsettled events of `book`. `settled` is called with each that the ledger has, or that is dropped."""

    def __init__(self, book: Holds[Any], settled: Callable[[FinalizeEvent], None]) -> None:
        self._book = book
        self.settled = settled

    def leases(self) -> list[Lease]:
        """Return the leases that have events which the ledger is not known to have."""
        book = self._book
        book.catch_up()
        with book.lock:
            return [lease for lease in book.leases.all() if lease.unsettled]

    def events(self) -> list[FinalizeEvent]:
        """Return every event that the ledger is not known to have, oldest first within its lease."""
        book = self._book
        book.catch_up()
        with book.lock:
            return [event for lease in book.leases.all() for event in lease.unsettled]

    def stalled(self, resend_ns: int) -> list[FinalizeEvent]:
        """Return the events of leases without settling progress for `resend_ns`, doubled after each resend in a row.

        A lease that stalls repeatedly gets a successor, so that an event which never settles (a dead letter) does not
        block the events after it.
        """
        book = self._book
        now_ns = book.now_ns()
        with book.lock:
            book.catch_up_locked()
            events: list[FinalizeEvent] = []
            for lease in book.leases.all():
                if lease.unsettled and now_ns - lease.progress_ns >= resend_wait_ns(resend_ns, lease.resends):
                    lease.progress_ns = now_ns
                    lease.resends += 1
                    events += lease.unsettled
                    if lease.resends > _RESENDS_BEFORE_SUCCESSOR and book.leases.current.get(lease.agent) is lease:
                        book.leases.replace(lease)
            return events

    def drop_expired(self) -> list[FinalizeEvent]:
        """Drop and return the events of days that the counter no longer keeps, so that it cannot confirm them.

        Drops only events that were resent; call it when the broker has accepted everything that was sent.
        """
        book = self._book
        today = book.clock.today()
        with book.lock:
            book.catch_up_locked()
            dropped: list[FinalizeEvent] = []
            for lease in book.leases.all():
                if lease.resends and expired(lease.day, today):
                    dropped += lease.unsettled
                    lease.unsettled = ()
            for event in dropped:
                self.settled(event)
            return dropped

    def hear(self, lease: Lease, reply: SyncReply, now_ns: int) -> None:
        """Drop what the reply says is settled. The lock is held."""
        up_to = settled_up_to(reply.events, reply.last_event)
        if not lease.unsettled or lease.unsettled[0].number > up_to:
            return
        settled_count = up_to + 1 - lease.unsettled[0].number  # Event numbers have no gaps.
        settled, lease.unsettled = lease.unsettled[:settled_count], lease.unsettled[settled_count:] or ()
        lease.progress_ns = now_ns if lease.unsettled else 0
        lease.resends = 0
        lease.ended += sum(event.drawn_micros for event in settled)
        for event in settled:
            self._note_runs(event)
            self.settled(event)

    def _note_runs(self, event: FinalizeEvent) -> None:
        """Note what a settled event drew on runs that only this process knows: no counter says it."""
        for share in event.also:
            lease = self._book.leases.current.get(share.budget)
            if lease is not None and lease.local and lease.id == share.lease:
                held = event.held_micros if share.held_micros is None else share.held_micros
                lease.drawn += min(event.actual_micros, held)
