"""A lease: what a runner process has been granted for one agent and day, or for a period of a budget."""

from __future__ import annotations

from daycap.clock import DAY_MS
from daycap.protocol.counter import KEPT_DAYS, Span, span_of
from daycap.protocol.labels import Labels
from daycap.protocol.wire import FinalizeEvent, Share


class _Touched:
    """The slots that a call reads or writes, adjacent in memory: Python sorts the slots of each class by name."""

    __slots__ = (
        "agent",
        "day",
        "deadline_ns",
        "finalized",
        "foreign",
        "granted",
        "id",
        "last_hold",
        "out",
        "plan",
        "progress_ns",
        "released",
        "returned",
        "routes",
        "unsettled",
        "used",
    )


class Route:
    """What the calls of one agent with the same labels draw on besides the lease of its own day.

    `others` are the leases of other budgets, `shares` what an event says of them, with budgets that only watch.
    """

    __slots__ = ("labels", "others", "plan", "shares")

    def __init__(
        self, plan: int, labels: Labels, others: tuple[Lease, ...] = (), watched: tuple[Share, ...] = ()
    ) -> None:
        self.plan = plan
        self.labels = labels
        self.others = others
        self.shares = (*(Share(lease.agent, lease.day, lease.id) for lease in others), *watched)


class Lease(_Touched):
    """What the counter has set aside for this process, one agent, one day. Amounts are micros.

    A lease of another budget has its id as `agent`, the period's id as `day`, and the period's `span`. Calls of several
    agents may draw on it; their events are counted on the leases of their own days.

    `granted` and `returned` are running totals that only grow. Free money is derived from them and `out`, so that each
    move of money is a single store, which nothing can interrupt halfway.
    """

    __slots__ = (
        "cap",
        "drawn",
        "ended",
        "leased",
        "local",
        "owed_ns",
        "questions",
        "rate",
        "recalled",
        "resends",
        "span",
        "spent",
        "ttl_ms",
        "unsure",
        "window_ns",
    )

    def __init__(self, agent: str, day: str, lease_id: str, now_ns: int, span: Span | None = None) -> None:
        self.agent = agent
        self.day = day
        self.span = span
        self.id = lease_id
        self.foreign = self.local = False
        """Whether it belongs to the parent of this forked process; whether only this process knows its run."""

        # Money.
        self.granted = 0
        """Everything that the counter ever set aside."""
        self.returned = 0
        """Everything that was ever handed back."""
        self.out = 0
        """What live holds and open questions have taken, plus what ended holds have drawn."""
        self.questions: dict[int, int] = {}
        """The free money that each open question earmarks, by the question's number."""
        self.drawn = 0
        """What the ledger has drawn, by the counter's last reply."""
        self.ended = 0
        """What settled events drew; they are no longer in `unsettled`."""

        # Holds and events.
        self.last_hold = 0
        """The number of the newest hold."""
        self.finalized = 0
        """How many holds and parts ended with an event; also the newest event's number."""
        self.released = 0
        """How many holds ended without an event."""
        self.unsettled: list[FinalizeEvent] | tuple[()] = ()
        """The events that the counter has not yet confirmed as settled."""
        self.progress_ns = 0
        """When the counter last confirmed an event, or when the first unsettled one was created."""
        self.resends = 0
        """How often the unsettled events were resent without progress."""

        # Other budgets.
        self.plan = 0
        """The agent's plan, by the counter's last reply."""
        self.routes: dict[Labels, Route] = {}
        """The route of each set of labels that calls have had since the plan changed."""

        # What the counter last said.
        self.deadline_ns = 0
        """The local deadline on the boot clock; after it no new hold is made."""
        self.cap = self.spent = self.leased = 0
        self.ttl_ms = 0
        self.recalled = False
        """Whether the counter wants the free money back."""
        self.owed_ns = 0
        """When the lease last may have kept money set aside that it does not need; 0 if that is resolved."""
        self.unsure = False
        """Whether the counter's totals may differ from these; False once it has confirmed them."""

        # The rate of use.
        self.window_ns = now_ns
        """When the current window began."""
        self.used = 0
        """What was held in the current window."""
        self.rate = 0.0
        """Micros per second in the previous window."""

    @property
    def free(self) -> int:
        """What no hold, question or event of the lease uses."""
        return self.granted - self.returned - self.out

    @property
    def live_holds(self) -> int:
        """How many holds have not ended."""
        return self.last_hold - self.finalized - self.released

    @property
    def earmarked(self) -> int:
        """What open questions earmark."""
        return sum(self.questions.values())

    @property
    def bounds(self) -> Span:
        """The first millisecond of its day or period, and the first one after it."""
        return span_of(self.day, self.span)

    def over(self, now_ms: int) -> bool:
        """Return whether its day or period is over."""
        return now_ms >= self.bounds[1]

    def expired(self, now_ms: int) -> bool:
        """Return whether the counter no longer keeps its day or period."""
        return now_ms >= self.bounds[1] + KEPT_DAYS * DAY_MS

    @property
    def held(self) -> int:
        """What live holds hold. Of another budget's lease, with what has ended but is not known to be settled."""
        if self.span is not None:
            return self.out - self.earmarked - self.drawn
        return self.out - self.earmarked - self.ended - sum(event.drawn_micros for event in self.unsettled)

    @property
    def aside(self) -> int:
        """What the counter has set aside for this lease, by its last reply."""
        return max(0, self.granted - self.returned - self.drawn)

    @property
    def owes(self) -> bool:
        """Whether the counter may have set aside more than this lease's holds and events need."""
        return self.unsure or self.free > 0 or self.earmarked > 0

    @property
    def in_use(self) -> bool:
        """Whether this lease must still be renewed."""
        if self.local:
            return False
        asked = bool(self.questions)  # What is granted to one would be set aside for nobody if the lease were gone.
        return self.owed_ns > 0 or self.free > 0 or self.live_holds > 0 or bool(self.unsettled) or asked
