"""What a runner process has been granted."""

from __future__ import annotations

from daycap.protocol.wire import FinalizeEvent


class _Touched:
    """What a call reads or writes of its lease, side by side in memory: Python sorts the slots of one class by name."""

    __slots__ = (
        "agent",
        "day",
        "deadline_ns",
        "events",
        "foreign",
        "granted",
        "id",
        "last_hold",
        "out",
        "progress_ns",
        "released",
        "returned",
        "unsettled",
        "used",
    )


class Lease(_Touched):
    """What the counter has set aside for this process, one agent, one day. Amounts are micros.

    `granted` and `returned` are running totals that only grow, as they are reported. Free money is derived from them
    and `out`, so that each move of money is one store, which nothing can interrupt halfway.
    """

    __slots__ = (
        "cap",
        "drawn",
        "ended",
        "leased",
        "owed_ns",
        "questions",
        "rate",
        "recalled",
        "resends",
        "spent",
        "ttl_ms",
        "unsure",
        "window_ns",
    )

    def __init__(self, agent: str, day: str, lease_id: str, now_ns: int) -> None:
        self.agent = agent
        self.day = day
        self.id = lease_id
        self.foreign = False
        """Whether it is the parent's: this process was forked from the one that the counter lent to."""

        # Money.
        self.granted = 0
        """All that the counter ever set aside."""
        self.returned = 0
        """All that was ever handed back."""
        self.out = 0
        """What live holds and open questions have taken, and what ended holds have drawn."""
        self.questions: dict[int, int] = {}
        """What each reservation that is asking the counter keeps of the free money, by the question's number."""
        self.drawn = 0
        """What the counter says that the ledger has drawn."""
        self.ended = 0
        """What the events drew that are settled and no longer kept in `unsettled`."""

        # Holds and events.
        self.last_hold = 0
        """The number of the newest hold."""
        self.events = 0
        """The number of the newest event."""
        self.released = 0
        """How many holds ended without an event."""
        self.unsettled: list[FinalizeEvent] | tuple[()] = ()
        """Each event until the counter says that the ledger has it."""
        self.progress_ns = 0
        """When the counter last said so of some event, or when the first unsettled one came."""
        self.resends = 0
        """How often the unsettled events were resent without progress."""

        # What the counter last said.
        self.deadline_ns = 0
        """The local deadline on the boot clock: past it there is no new hold."""
        self.cap = self.spent = self.leased = 0
        self.ttl_ms = 0
        self.recalled = False
        """Whether the counter wants the free money back."""
        self.owed_ns = 0
        """When something last happened that may leave money set aside which is not needed here; 0 if nothing did."""
        self.unsure = False
        """Whether the counter may have other totals than these, until it has answered to them."""

        # The rate of use.
        self.window_ns = now_ns
        """When the current window began."""
        self.used = 0
        """What was held in it."""
        self.rate = 0.0
        """Micros a second in the window before."""

    @property
    def free(self) -> int:
        """What no hold, no question and no event has of the lease."""
        return self.granted - self.returned - self.out

    @property
    def live_holds(self) -> int:
        """How many holds have not ended."""
        return self.last_hold - self.events - self.released

    @property
    def earmarked(self) -> int:
        """What reservations keep that ask the counter just now."""
        return sum(self.questions.values())

    @property
    def held(self) -> int:
        """What live holds have."""
        return self.out - self.earmarked - self.ended - sum(event.drawn_micros for event in self.unsettled)

    @property
    def aside(self) -> int:
        """What the counter has set aside for this lease, by its last answer."""
        return max(0, self.granted - self.returned - self.drawn)

    @property
    def owes(self) -> bool:
        """Whether the counter may have set aside more than this lease's holds and events need."""
        return self.unsure or self.free > 0 or self.earmarked > 0

    @property
    def in_use(self) -> bool:
        """Whether the counter must go on hearing of this lease."""
        return self.owed_ns > 0 or self.free > 0 or self.live_holds > 0 or bool(self.unsettled)
