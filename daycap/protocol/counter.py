"""The counter's contract: what runner and worker may ask of the fast tier, whatever implements it.

`RedisCounter` and `MemoryCounter` mirror this class method for method and pass the same tests. Every value on the
wire is absolute, so a message may arrive twice, late or out of order without harm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from daycap.clock import DAY_MS, day_start_ms

KEPT_DAYS = 2
"""How many days after its end a day stays in the counter."""

ACTIVE, PAUSED, UNKNOWN = "active", "paused", "unknown"
"""An agent's status on the wire; `unknown` tells waiting runners that the agent does not exist."""


class Answer(StrEnum):
    """The counter's answer to a sync. The first four took the lease's totals, the others did not."""

    OK = "OK"
    REFUSED = "REFUSED"
    FENCED = "FENCED"
    PAUSED = "PAUSED"
    NOT_OPEN = "NOT_OPEN"
    UNKNOWN_AGENT = "UNKNOWN_AGENT"
    WRONG_DAY = "WRONG_DAY"

    @property
    def taken(self) -> bool:
        """Whether the counter took the totals that the runner reported and renewed the lease."""
        return self in _TAKEN


_TAKEN = frozenset({Answer.OK, Answer.REFUSED, Answer.FENCED, Answer.PAUSED})


Span = tuple[int, int]
"""The bounds of a period: its first millisecond, and the first one after it, of the counter's time."""


def span_of(day: str, span: Span | None) -> Span:
    """Return `span`; if it is None, the bounds of the UTC date `day`."""
    if span is not None:
        return span
    start_ms = day_start_ms(day)
    return start_ms, start_ms + DAY_MS


class SyncRequest(NamedTuple):
    """A runner's totals of one lease; with `need_micros` > 0, also how much more it needs and wants.

    `farewell` makes it the last: how many events the lease had in all; of a budget's lease, what it has drawn. A
    counter that does not know the lease keeps nothing of it. `agent` and `day` may be a budget and one of its periods,
    whose bounds are then in `span`.
    """

    agent: str
    day: str
    lease: str
    granted_micros: int
    returned_micros: int
    need_micros: int = 0
    want_micros: int = 0
    farewell: int | None = None
    span: Span | None = None


class SyncReply(NamedTuple):
    """The counter's totals of the lease and its day. If the totals were not taken, only `answer` and `now_ms` are set.

    `now_ms` is the counter's own clock. `spent_micros` includes what was drawn but not charged because the cap was
    lowered meanwhile. `recall` asks for money that is set aside but not in use. `plan` is the agent's plan in force.
    """

    answer: Answer
    now_ms: int
    granted_micros: int = 0
    drawn_micros: int = 0
    events: int = 0
    last_event: int = 0
    ttl_ms: int = 0
    cap_micros: int = 0
    spent_micros: int = 0
    leased_micros: int = 0
    recall: bool = False
    plan: int = 0


def settled_up_to(events: int, last_event: int) -> int:
    """Return the number up to which every event of a lease is settled; 0 if one below the highest is missing."""
    return last_event if events == last_event else 0


AgentDay = tuple[str, str]
"""An agent and a day; or a budget's id and the id of one of its periods."""

NOTHING_OVERDUE: Mapping[AgentDay, Sequence[str]] = MappingProxyType({})


class LeaseKey(NamedTuple):
    """Identifies one lease of an agent's day."""

    agent: str
    day: str
    lease: str


class LeaseTotals(NamedTuple):
    """What the ledger has settled of one lease: micros drawn, how many events, the highest event."""

    lease: str
    drawn_micros: int
    events: int
    last_event: int


class DaySnapshot(NamedTuple):
    """One agent's day as of one ledger transaction: whole, or what changed since an earlier one (a *delta*).

    `drawn_micros` is what all leases of the day have drawn, folded ones too.
    """

    agent: str
    day: str
    seq: int
    status: str
    cap_micros: int
    spent_micros: int
    drawn_micros: int = 0
    leases: tuple[LeaseTotals, ...] = ()
    """Every lease that is not folded; of a delta, those that changed after `base_seq`."""
    base_seq: int | None = None
    """Of a delta: the seq that the changes are relative to. None: the snapshot is whole."""
    folded: tuple[str, ...] = ()
    """Of a delta: the leases that were folded after `base_seq`. Of a repair: those of the counter that are folded."""
    repairs: bool = False
    """Of a whole snapshot: that `folded` is complete, so that an open counter may take it. Others only open a day."""
    plan: int = 0
    """The agent's plan in force."""
    plan_text: str | None = None
    """Its text, if the snapshot carries it. A counter that has another plan needs it."""
    span: Span | None = None
    """The bounds of a budget's period; None for an agent's day."""

    @property
    def remaining_micros(self) -> int:
        """What is left of the cap by the ledger, which does not know what is leased."""
        return max(0, self.cap_micros - max(self.spent_micros, self.drawn_micros))


class CounterLease(NamedTuple):
    """What an operator or a worker asks of a lease in the counter. `farewell`: its events, once it has said it."""

    outstanding_micros: int
    deadline_ms: int
    farewell: int | None = None


NOT_OPEN, DIFFERS = -1, -2
"""The `behind` of a counter that is not open, and of one that must be repaired."""


class PublishReply(NamedTuple):
    """The result of a publish: whether it opened the counter, what is leased now, what it gave up.

    `seq` is the counter's sequence number now. `repaired` means that something differed from what this snapshot or
    the counter itself had written. If `behind` is set, the counter took nothing: it needs the changes since that seq
    first, or it is `NOT_OPEN`, or it `DIFFERS`.
    """

    now_ms: int
    seq: int
    opened: bool = False
    fenced: bool = False
    repaired: bool = False
    leased_micros: int = 0
    given_up_micros: int = 0
    behind: int | None = None


class DayReading(NamedTuple):
    """A day as the counter has it.

    `drawn_micros` is what all its leases have drawn: more than was spent if the cap was lowered during calls, which
    were then not charged in full. `given_up_micros` is the day's total since it was opened.
    """

    now_ms: int
    seq: int
    status: str
    cap_micros: int
    spent_micros: int
    drawn_micros: int
    leased_micros: int
    given_up_micros: int
    fenced: bool

    @property
    def remaining_micros(self) -> int:
        """What can be set aside now: 0 while fenced or paused."""
        if self.fenced or self.status != ACTIVE:
            return 0
        return max(0, self.cap_micros - max(self.spent_micros, self.drawn_micros) - self.leased_micros)


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """How long a lease lives without a sync, and its margins; the same for every runner."""

    ttl_ms: int
    guard_ms: int
    grace_ms: int


class Counter(ABC):
    """Cap, spent and leases of every (agent, day). Methods raise `CounterUnavailable`; they never guess."""

    tier: ClassVar[str] = "memory"
    """The `tier` of a `Reading` from this counter."""

    immediate: ClassVar[bool] = False
    """Whether `sync` answers without I/O, so that an event loop may call it."""

    @abstractmethod
    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        """Take, renew, hand back and restore: one reply per request, in order, in one round trip."""

    @abstractmethod
    def publish(
        self,
        snapshots: Sequence[DaySnapshot],
        terms: LeaseTerms,
        *,
        expire_before_ms: int = 0,
        first_until_ms: int = 0,
        overdue: Mapping[AgentDay, Sequence[str]] = NOTHING_OVERDUE,
    ) -> list[PublishReply | None]:
        """Update the counter from the ledger. One reply per snapshot, None for an unknown agent.

        Only a whole snapshot opens a day. A delta is taken completely or not at all (`PublishReply.behind`).
        `expire_before_ms`: remove a fence, and give up the leases named by `overdue`, if the deadline plus grace is
        before this time, on the counter's clock. Every event published before it must be settled in the snapshots.
        0 expires nothing.
        `first_until_ms`: until this time, on the counter's clock, open a missing day without a fence. Only the run
        that inserted these day rows sets it, and such a publish is never sent twice. 0 always fences, except a day
        that begins more than a ttl later: no runner can have leased from it.
        """

    @abstractmethod
    def read(self, agent_days: Sequence[AgentDay]) -> list[DayReading | None]:
        """Return the days as they are now; None for a day that is not open."""

    @abstractmethod
    def read_plan(self, agent: str, day: str) -> tuple[int, str] | None:
        """Return the id and the text of the agent's plan in force; None if the day is not open or has no plan."""

    @abstractmethod
    def sizes(self, agent_days: Sequence[AgentDay]) -> list[int]:
        """Return how many fields the counter has for each day: a dozen, and one or two for each lease; 0 if none."""

    @abstractmethod
    def leases(self, agent_days: Sequence[AgentDay]) -> list[dict[str, CounterLease]]:
        """Return every lease of each day, in many small steps: some may change, come or go meanwhile."""

    @abstractmethod
    def read_leases(self, leases: Sequence[LeaseKey]) -> list[LeaseTotals | None]:
        """Return what is settled of each lease, without renewing it; None if its day is not open."""

    @abstractmethod
    def now_ms(self) -> int:
        """Return the counter's own clock, in milliseconds since the epoch."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what is shared with the parent without touching it. Called in a forked child."""

    @abstractmethod
    def close(self) -> None:
        """Close connections. The counter stays usable and reconnects."""


class AsyncCounter(ABC):
    """The one operation of a counter that a call in an event loop awaits. Several loops may share one."""

    @abstractmethod
    async def sync(self, request: SyncRequest) -> SyncReply:
        """See `Counter.sync`. Raises `CounterUnavailable`."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what is shared with the parent without touching it. Called in a forked child."""

    @abstractmethod
    async def close(self) -> None:
        """Close the running loop's connections once pending calls are answered."""
