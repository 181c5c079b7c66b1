"""The counter's contract: what runner and worker may ask of the fast tier, whatever it is made of.

`RedisCounter` and `MemoryCounter` mirror this class method for method and pass the same tests. Every value
that travels is absolute, so each message may arrive twice, late or out of order and do no harm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

KEPT_DAYS = 2
"""How many days after its end a day stays in the counter."""

ACTIVE, PAUSED, UNKNOWN = "active", "paused", "unknown"
"""The states of an agent on the wire; `unknown` tells waiting runners that there is no such agent."""


class Answer(StrEnum):
    """What the counter says to a sync. The first four took the lease's totals, the others did not."""

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


class SyncRequest(NamedTuple):
    """A runner's totals of one lease and, with `need_micros` > 0, how much more it needs and wants."""

    agent: str
    day: str
    lease: str
    granted_micros: int
    returned_micros: int
    need_micros: int = 0
    want_micros: int = 0


class SyncReply(NamedTuple):
    """The counter's totals of the lease and its day. Only `answer` and `now_ms` mean anything if not taken.

    `now_ms` is the counter's own clock; `spent_micros` counts with what was drawn and not charged, because the cap
    was lowered meanwhile; `recall` asks for money that is set aside and not in use.
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


def settled_up_to(events: int, last_event: int) -> int:
    """Every event of a lease up to this number is settled; 0 where one is missing below the highest."""
    return last_event if events == last_event else 0


class LeaseKey(NamedTuple):
    """Names one lease of an agent's day."""

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
    """One agent's day as one ledger transaction saw it, with every lease of the day."""

    agent: str
    day: str
    seq: int
    status: str
    cap_micros: int
    spent_micros: int
    leases: tuple[LeaseTotals, ...] = ()

    @property
    def remaining_micros(self) -> int:
        """What is left of the cap, as far as the ledger knows: leases that are out are not subtracted."""
        drawn = sum(lease.drawn_micros for lease in self.leases)
        return max(0, self.cap_micros - max(self.spent_micros, drawn))


class PublishReply(NamedTuple):
    """What a publish found: whether it opened the counter, what is leased now, what it gave up.

    `seq` stands in the counter now; `repaired` says that something was not as this snapshot, or as the counter
    itself, had left it.
    """

    now_ms: int
    seq: int
    opened: bool
    fenced: bool
    repaired: bool
    leased_micros: int
    given_up_micros: int


class DayReading(NamedTuple):
    """A day as the counter knows it.

    `drawn_micros` is what all its leases have drawn: more than was spent if the cap was lowered while calls were
    made, which so were not all charged. `given_up_micros` is the total of the day since it was opened.
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
        """What could be set aside now: 0 while fenced or paused."""
        if self.fenced or self.status != ACTIVE:
            return 0
        return max(0, self.cap_micros - max(self.spent_micros, self.drawn_micros) - self.leased_micros)


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """How long a lease lives without a sync, and the margins around it; the same for every runner."""

    ttl_ms: int
    guard_ms: int
    grace_ms: int


class Counter(ABC):
    """Cap, spent and leases of every (agent, day). Methods raise `CounterUnavailable`, never guess."""

    tier: ClassVar[str] = "memory"
    """What a `Reading` of this counter names as its tier."""

    immediate: ClassVar[bool] = False
    """Whether `sync` answers without I/O, so that an event loop may call it."""

    @abstractmethod
    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        """Take, renew, hand back and put back: one reply per request, in order, in one round trip."""

    @abstractmethod
    def publish(
        self,
        snapshots: Sequence[DaySnapshot],
        terms: LeaseTerms,
        *,
        expire_before_ms: int = 0,
        first_until_ms: int = 0,
    ) -> list[PublishReply | None]:
        """Warm the counter from the ledger. One reply per snapshot, None for an unknown agent.

        `expire_before_ms`: leases whose deadline and grace lie before this time of the counter are given up;
        every event published before it must have been settled in the snapshots. 0 expires nothing.
        `first_until_ms`: set only by the run that inserted these day rows: until this time of the counter a
        missing day is opened without a fence. Such a publish is never sent twice. 0 always fences, but for a
        day that begins more than a ttl later: nobody can have leased of it.
        """

    @abstractmethod
    def read(self, agent_days: Sequence[tuple[str, str]]) -> list[DayReading | None]:
        """The days as they are now; None where the counter has not been opened."""

    @abstractmethod
    def read_leases(self, leases: Sequence[LeaseKey]) -> list[LeaseTotals | None]:
        """What is settled of each lease, without renewing it; None where its day has not been opened."""

    @abstractmethod
    def now_ms(self) -> int:
        """The counter's own clock, in milliseconds since the epoch."""

    @abstractmethod
    def forget(self) -> None:
        """In a forked child: let go of what is shared with the parent without touching it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections. The counter can still be used and connects anew."""


class AsyncCounter(ABC):
    """The one verb of a counter that a call in an event loop waits for. Several loops may share one."""

    @abstractmethod
    async def sync(self, request: SyncRequest) -> SyncReply:
        """See `Counter.sync`. Raises `CounterUnavailable`."""

    @abstractmethod
    def forget(self) -> None:
        """In a forked child: let go of what is shared with the parent without touching it."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the running loop's connections, once pending calls are answered."""
