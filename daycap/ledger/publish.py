"""Publish: copy the ledger's state to the counter. An unavailable counter never fails the caller."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from daycap.clock import boot_ns, wall_ms
from daycap.errors import CounterUnavailable
from daycap.ledger.engine import Ledger
from daycap.ledger.snapshots import read_changes, read_repairs
from daycap.protocol.counter import (
    DIFFERS,
    NOT_OPEN,
    NOTHING_OVERDUE,
    AgentDay,
    Counter,
    CounterLease,
    DayReading,
    DaySnapshot,
    LeaseTerms,
    PublishReply,
)
from daycap.protocol.runs import is_run

logger = logging.getLogger("daycap.worker")

_FIRST_FOR_MS = 10_000
"""How long after the counter's time was read a new day may be opened without a fence: longer than a ledger
transaction, much shorter than the time between two data losses of a counter."""

_MOST_ROUNDS = 4
"""How often a publish is repaired: when other workers publish all the time, the last one repairs everything."""


class CounterPublisher:
    """Publishes ledger snapshots to `counter`, or nowhere if the set-up has no counter."""

    def __init__(self, counter: Counter | None, terms: LeaseTerms) -> None:
        self.counter = counter
        self._terms = terms
        self._clock_offset_ms: int | None = None

    def now_ms(self) -> int | None:
        """Return the counter's time; None if it does not answer, or there is no counter."""
        if self.counter is None:
            return None
        try:
            return self._heard(self.counter.now_ms())
        except CounterUnavailable as error:
            logger.warning("the counter did not return its time: %s", error)
            return None

    def authoritative_ms(self) -> int:
        """Return the time that decides which day it is: the counter's, or an estimate if it does not answer."""
        now_ms = self.now_ms()
        return self.last_heard_ms() if now_ms is None else now_ms

    def last_heard_ms(self) -> int:
        """Return the counter's time, estimated from its last answer; the host's time if it has never answered."""
        if self._clock_offset_ms is None:
            return wall_ms()
        return _boot_ms() + self._clock_offset_ms

    def _heard(self, now_ms: int) -> int:
        self._clock_offset_ms = now_ms - _boot_ms()
        return now_ms

    def publish(
        self,
        ledger: Ledger,
        snapshots: Sequence[DaySnapshot],
        *,
        expire_before_ms: int = 0,
        opened_at_ms: int | None = None,
        overdue: Mapping[AgentDay, Sequence[str]] = NOTHING_OVERDUE,
    ) -> list[PublishReply | None]:
        """Publish in one round trip, and in another one what a counter that is behind lacks.

        Returns the last reply for each day, in order; none after a failure of the counter, which is logged.
        `opened_at_ms`: the counter's time, read before the transaction that inserted these days' rows.
        """
        if self.counter is None or not snapshots:
            return []
        first_until_ms = 0
        if opened_at_ms is not None:
            # Shorter than any fence lasts, so no fence can have been raised and lifted since then.
            first_until_ms = opened_at_ms + min(_FIRST_FOR_MS, self._terms.ttl_ms + self._terms.guard_ms)
        replies: dict[AgentDay, PublishReply | None] = {}
        try:
            for _ in range(_MOST_ROUNDS):
                answers = self.counter.publish(
                    snapshots,
                    self._terms,
                    expire_before_ms=expire_before_ms,
                    first_until_ms=first_until_ms,
                    overdue=overdue,
                )
                replies |= self._note_replies(snapshots, answers)
                lacking = {
                    where: reply.behind
                    for where, reply in replies.items()
                    # Only a runner that shares a run opens its counter.
                    if reply and reply.behind is not None and not (reply.behind == NOT_OPEN and is_run(where[0]))
                }
                if not lacking:
                    break
                snapshots = self._read_lacking(ledger, lacking)
        except CounterUnavailable as error:
            self._note_failure(len(snapshots), error)
            return []
        return list(replies.values())

    def _read_lacking(self, ledger: Ledger, lacking: dict[AgentDay, int]) -> list[DaySnapshot]:
        """Read what the counter lacks of these days."""
        differing = self.leases([where for where, behind in lacking.items() if behind == DIFFERS])
        since = {where: behind for where, behind in lacking.items() if behind != DIFFERS}
        with ledger.reading() as connection:
            return [*read_changes(connection, since), *read_repairs(connection, differing)]

    def _note_replies(
        self, snapshots: Sequence[DaySnapshot], answers: Sequence[PublishReply | None]
    ) -> dict[AgentDay, PublishReply | None]:
        """Return the last answer for each day."""
        for snapshot, reply in zip(snapshots, answers, strict=True):
            if reply is not None:
                self._heard(reply.now_ms)
                if reply.behind is None:
                    self._note_reply(snapshot, reply)
        return {(each.agent, each.day): reply for each, reply in zip(snapshots, answers, strict=True)}

    def read(self, agent_days: Sequence[AgentDay]) -> list[DayReading | None]:
        """Return the counter's reading of each day. Raises `CounterUnavailable`."""
        return [] if self.counter is None else self.counter.read(agent_days)

    def sizes(self, agent_days: Sequence[AgentDay]) -> dict[AgentDay, int]:
        """Return how many fields the counter has for each day. Raises `CounterUnavailable`."""
        return {} if self.counter is None else dict(zip(agent_days, self.counter.sizes(agent_days), strict=True))

    def overdue(self, agent_days: Sequence[AgentDay], before_ms: int) -> dict[AgentDay, dict[str, CounterLease]]:
        """Return the leases whose deadline plus grace is before `before_ms`. Raises `CounterUnavailable`."""
        latest_ms = before_ms - self._terms.grace_ms
        return {
            where: {lease: each for lease, each in leases.items() if each.deadline_ms < latest_ms}
            for where, leases in self.leases(agent_days).items()
        }

    def leases(self, agent_days: Sequence[AgentDay]) -> dict[AgentDay, dict[str, CounterLease]]:
        """Return every lease that the counter has of these days. Raises `CounterUnavailable`."""
        if self.counter is None:
            return {}
        return dict(zip(agent_days, self.counter.leases(agent_days), strict=True))

    def _note_failure(self, count: int, error: CounterUnavailable) -> None:
        """Log that `count` days were not published."""
        logger.warning("%d days were not published; the next publish or reconcile will publish them: %s", count, error)

    def _note_reply(self, snapshot: DaySnapshot, reply: PublishReply) -> None:
        """Log what an operator should know about a publish."""
        if reply.opened and reply.fenced:
            logger.warning("agent %s on %s: opened behind a fence", snapshot.agent, snapshot.day)
        if reply.given_up_micros:
            logger.warning("agent %s on %s: gave up %d micros", snapshot.agent, snapshot.day, reply.given_up_micros)

    def close(self) -> None:
        """Close the connections."""
        if self.counter is not None:
            self.counter.close()


def _boot_ms() -> int:
    return boot_ns() // 1_000_000
