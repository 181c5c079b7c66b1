"""The counter in one process's memory: for set-ups without Redis, and as a reference for the Lua scripts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from daycap.clock import DAY_MS, day_start_ms, wall_ms
from daycap.errors import CounterUnavailable
from daycap.money import MAX_MICROS
from daycap.protocol.counter import (
    KEPT_DAYS,
    PAUSED,
    UNKNOWN,
    Answer,
    Counter,
    DayReading,
    DaySnapshot,
    LeaseKey,
    LeaseTerms,
    LeaseTotals,
    PublishReply,
    SyncReply,
    SyncRequest,
)

_UNKNOWN_MS = 10_000


@dataclass(slots=True)
class _Lease:
    granted: int = 0
    returned: int = 0
    drawn: int = 0
    events: int = 0
    last_event: int = 0
    deadline_ms: int = 0

    @property
    def outstanding(self) -> int:
        return max(0, self.granted - self.returned - self.drawn)


@dataclass(slots=True)
class _Day:
    expires_ms: int
    seq: int = 0
    status: str = UNKNOWN
    cap: int = 0
    spent: int = 0
    given_up: int = 0
    ttl_ms: int = 0
    recall_until_ms: int = 0
    fence_until_ms: int = 0
    leases: dict[str, _Lease] = field(default_factory=dict)

    @property
    def leased(self) -> int:
        return sum(lease.outstanding for lease in self.leases.values())

    @property
    def drawn(self) -> int:
        return sum(lease.drawn for lease in self.leases.values())

    @property
    def used(self) -> int:
        """What is spent, including what leases drew but was not charged because the cap was lowered meanwhile."""
        return max(self.spent, self.drawn)

    @property
    def open(self) -> bool:
        return self.status != UNKNOWN


class MemoryCounter(Counter):
    """Mirrors the scripts of `RedisCounter` step by step. `now_ms` stands in for the server's clock."""

    immediate = True

    def __init__(self, now_ms: Callable[[], int] = wall_ms) -> None:
        self._now_ms = now_ms
        self._lock = threading.RLock()
        self._days: dict[tuple[str, str], _Day] = {}
        self._swept = ""

    def sync(self, requests: Sequence[SyncRequest]) -> list[SyncReply]:
        with self._once():
            return [self._sync(request) for request in requests]

    def publish(
        self,
        snapshots: Sequence[DaySnapshot],
        terms: LeaseTerms,
        *,
        expire_before_ms: int = 0,
        first_until_ms: int = 0,
    ) -> list[PublishReply | None]:
        with self._once():
            return [self._publish(snapshot, terms, expire_before_ms, first_until_ms) for snapshot in snapshots]

    def read(self, agent_days: Sequence[tuple[str, str]]) -> list[DayReading | None]:
        with self._once():
            now_ms = self._now_ms()
            days = (self._day(agent, day, now_ms) for agent, day in agent_days)
            return [
                None
                if day is None or not day.open
                else DayReading(
                    now_ms,
                    day.seq,
                    day.status,
                    day.cap,
                    day.spent,
                    day.drawn,
                    day.leased,
                    day.given_up,
                    day.fence_until_ms > 0,
                )
                for day in days
            ]

    def read_leases(self, leases: Sequence[LeaseKey]) -> list[LeaseTotals | None]:
        with self._once():
            now_ms = self._now_ms()
            return [self._read_lease(lease, now_ms) for lease in leases]

    def now_ms(self) -> int:
        return self._now_ms()

    def forget(self) -> None:
        """Drop all days: a forked child shares nothing with its parent. They must be opened again."""
        self._lock = threading.RLock()
        self._days = {}

    def close(self) -> None:
        pass

    def flush(self) -> None:
        """Drop everything, as a flushed Redis does. The next publish of each day raises a fence."""
        with self._once():
            self._days.clear()

    def _once(self) -> Any:
        """Return the lock. Raises `CounterUnavailable` if this thread was interrupted while it held the lock."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise CounterUnavailable("this signal handler or finalizer interrupted the counter itself")
        return self._lock

    def _day(self, agent: str, day: str, now_ms: int) -> _Day | None:
        found = self._days.get((agent, day))
        if found is not None and now_ms >= found.expires_ms:
            del self._days[agent, day]
            return None
        return found

    def _sweep(self, day: str, now_ms: int) -> None:
        """Drop expired days, once per new day."""
        if day > self._swept:
            self._swept = day
            self._days = {where: each for where, each in self._days.items() if now_ms < each.expires_ms}

    def _read_lease(self, key: LeaseKey, now_ms: int) -> LeaseTotals | None:
        day = self._day(key.agent, key.day, now_ms)
        if day is None or not day.open:
            return None
        lease = day.leases.get(key.lease, _Lease())
        return LeaseTotals(key.lease, lease.drawn, lease.events, lease.last_event)

    def _sync(self, request: SyncRequest) -> SyncReply:
        now_ms = self._now_ms()
        start_ms = day_start_ms(request.day)
        if request.need_micros > 0 and not start_ms <= now_ms < start_ms + DAY_MS:
            return SyncReply(Answer.WRONG_DAY, now_ms)
        day = self._day(request.agent, request.day, now_ms)
        if day is None or not day.open:
            return SyncReply(Answer.NOT_OPEN if day is None else Answer.UNKNOWN_AGENT, now_ms)

        lease = day.leases.setdefault(request.lease, _Lease())
        lease.granted = max(lease.granted, request.granted_micros)
        lease.returned = max(lease.returned, request.returned_micros)
        lease.deadline_ms = max(lease.deadline_ms, now_ms + day.ttl_ms)

        answer = Answer.OK
        if day.status == PAUSED:
            answer = Answer.PAUSED
        elif day.fence_until_ms > 0:
            answer = Answer.FENCED
        elif request.need_micros > 0:
            missing = request.need_micros - (lease.granted - request.granted_micros)
            leased = day.leased
            remaining = max(0, day.cap - day.used - leased)
            if missing > remaining:
                answer = Answer.REFUSED
                if leased > lease.outstanding:
                    day.recall_until_ms = now_ms + day.ttl_ms // 2
            elif missing > 0:
                give = missing
                if now_ms >= day.recall_until_ms:
                    want = missing + request.want_micros - request.need_micros
                    give = max(give, min(want, remaining // 8))
                lease.granted += min(give, MAX_MICROS - lease.granted)

        leased = day.leased
        return SyncReply(
            answer,
            now_ms,
            lease.granted,
            lease.drawn,
            lease.events,
            lease.last_event,
            day.ttl_ms,
            day.cap,
            day.used,
            leased,
            now_ms < day.recall_until_ms or day.used + leased > day.cap,
        )

    def _publish(
        self, snapshot: DaySnapshot, terms: LeaseTerms, expire_before_ms: int, first_until_ms: int
    ) -> PublishReply | None:
        now_ms = self._now_ms()
        where = (snapshot.agent, snapshot.day)
        day = self._day(*where, now_ms)
        if snapshot.status == UNKNOWN:
            if day is None or not day.open:
                self._days[where] = _Day(expires_ms=now_ms + _UNKNOWN_MS)
            return None

        opened = day is None or not day.open
        if day is None or not day.open:
            self._sweep(snapshot.day, now_ms)
            start_ms = day_start_ms(snapshot.day)
            day = _Day(expires_ms=start_ms + (1 + KEPT_DAYS) * DAY_MS)
            if now_ms + terms.ttl_ms >= start_ms and now_ms >= first_until_ms:
                day.fence_until_ms = now_ms + terms.ttl_ms + terms.guard_ms
            self._days[where] = day
        elif now_ms < first_until_ms:
            day.fence_until_ms = 0
        same = not opened and snapshot.seq == day.seq
        repaired = (not opened and day.ttl_ms != terms.ttl_ms) or (
            same and (day.status, day.cap, day.spent) != (snapshot.status, snapshot.cap_micros, snapshot.spent_micros)
        )
        day.ttl_ms = terms.ttl_ms
        if snapshot.seq >= day.seq:
            day.seq, day.status = snapshot.seq, snapshot.status
            day.cap, day.spent = snapshot.cap_micros, snapshot.spent_micros

        for totals in snapshot.leases:
            lease = day.leases.setdefault(totals.lease, _Lease())
            before = (lease.drawn, lease.events, lease.last_event)
            lease.drawn = max(lease.drawn, totals.drawn_micros)
            lease.events = max(lease.events, totals.events)
            lease.last_event = max(lease.last_event, totals.last_event)
            repaired |= same and before != (lease.drawn, lease.events, lease.last_event)

        given_up = 0
        for lease in day.leases.values():
            if lease.outstanding > 0 and lease.deadline_ms + terms.grace_ms < expire_before_ms:
                given_up += lease.outstanding
                lease.granted = lease.returned = 0
        if day.fence_until_ms > 0 and day.fence_until_ms + terms.grace_ms < expire_before_ms:
            if now_ms < day_start_ms(snapshot.day) + DAY_MS:
                given_up += max(0, day.cap - day.used - day.leased)
            day.fence_until_ms = 0
        day.given_up += given_up
        return PublishReply(now_ms, day.seq, opened, day.fence_until_ms > 0, repaired, day.leased, given_up)
