"""The counter in one process's memory: for set-ups without Redis, and as a reference for the Lua scripts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from daycap.clock import DAY_MS, wall_ms
from daycap.errors import CounterUnavailable
from daycap.money import MAX_MICROS
from daycap.protocol.counter import (
    DIFFERS,
    KEPT_DAYS,
    NOT_OPEN,
    NOTHING_OVERDUE,
    PAUSED,
    UNKNOWN,
    AgentDay,
    Answer,
    Counter,
    CounterLease,
    DayReading,
    DaySnapshot,
    LeaseKey,
    LeaseTerms,
    LeaseTotals,
    PublishReply,
    SyncReply,
    SyncRequest,
    span_of,
)

_UNKNOWN_MS = 10_000
_DAY_FIELDS = 12
_SWEEP_MS = 3_600_000


@dataclass(slots=True)
class _Lease:
    granted: int = 0
    returned: int = 0
    drawn: int = 0
    events: int = 0
    last_event: int = 0
    deadline_ms: int = 0
    farewell: int | None = None

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
    drawn: int = 0
    """The sum over all leases of the day."""
    folded: int = 0
    """The part of `drawn` that belongs to leases which are not here any more."""
    leased: int = 0
    given_up: int = 0
    ttl_ms: int = 0
    recall_until_ms: int = 0
    fence_until_ms: int = 0
    plan: int = 0
    plan_text: str = ""
    leases: dict[str, _Lease] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """What is spent, including what leases drew but was not charged because the cap was lowered meanwhile."""
        return max(self.spent, self.drawn)

    @property
    def open(self) -> bool:
        return self.status != UNKNOWN

    @contextmanager
    def changing(self, lease: _Lease) -> Iterator[None]:
        """Keep `leased` up to date while the lease changes."""
        before = lease.outstanding
        yield
        self.leased += lease.outstanding - before


class MemoryCounter(Counter):
    """Mirrors the scripts of `RedisCounter` step by step. `now_ms` stands in for the server's clock."""

    immediate = True

    def __init__(self, now_ms: Callable[[], int] = wall_ms) -> None:
        self._now_ms = now_ms
        self._lock = threading.RLock()
        self._days: dict[tuple[str, str], _Day] = {}
        self._swept_ms = 0

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
        overdue: Mapping[AgentDay, Sequence[str]] = NOTHING_OVERDUE,
    ) -> list[PublishReply | None]:
        with self._once():
            return [
                self._publish(each, terms, expire_before_ms, first_until_ms, overdue.get((each.agent, each.day), ()))
                for each in snapshots
            ]

    def read(self, agent_days: Sequence[AgentDay]) -> list[DayReading | None]:
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

    def read_plan(self, agent: str, day: str) -> tuple[int, str] | None:
        with self._once():
            found = self._day(agent, day, self._now_ms())
            return None if found is None or not found.plan else (found.plan, found.plan_text)

    def sizes(self, agent_days: Sequence[AgentDay]) -> list[int]:
        with self._once():
            now_ms = self._now_ms()
            days = (self._day(agent, day, now_ms) for agent, day in agent_days)
            return [0 if day is None else _DAY_FIELDS + len(day.leases) for day in days]

    def leases(self, agent_days: Sequence[AgentDay]) -> list[dict[str, CounterLease]]:
        with self._once():
            now_ms = self._now_ms()
            days = [self._day(agent, day, now_ms) for agent, day in agent_days]
            return [
                {}
                if day is None
                else {id_: CounterLease(e.outstanding, e.deadline_ms, e.farewell) for id_, e in day.leases.items()}
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

    def _sweep(self, now_ms: int) -> None:
        """Drop expired days, at most once an hour."""
        if now_ms >= self._swept_ms + _SWEEP_MS:
            self._swept_ms = now_ms
            self._days = {where: each for where, each in self._days.items() if now_ms < each.expires_ms}

    def _read_lease(self, key: LeaseKey, now_ms: int) -> LeaseTotals | None:
        day = self._day(key.agent, key.day, now_ms)
        if day is None or not day.open:
            return None
        lease = day.leases.get(key.lease, _Lease())
        return LeaseTotals(key.lease, lease.drawn, lease.events, lease.last_event)

    def _sync(self, request: SyncRequest) -> SyncReply:
        now_ms = self._now_ms()
        start_ms, end_ms = span_of(request.day, request.span)
        if request.need_micros > 0 and not start_ms <= now_ms < end_ms:
            return SyncReply(Answer.WRONG_DAY, now_ms)
        day = self._day(request.agent, request.day, now_ms)
        if day is None or not day.open:
            return SyncReply(Answer.NOT_OPEN if day is None else Answer.UNKNOWN_AGENT, now_ms)

        if request.farewell is not None and request.lease not in day.leases:
            granted = request.granted_micros
            totals = (granted, 0, 0, 0, day.ttl_ms, day.cap, day.used, day.leased)
            return SyncReply(Answer.OK, now_ms, *totals, plan=day.plan)
        lease = day.leases.setdefault(request.lease, _Lease())
        with day.changing(lease):
            lease.granted = max(lease.granted, request.granted_micros)
            lease.returned = max(lease.returned, request.returned_micros)
            if request.farewell is not None:
                lease.farewell = request.farewell
        lease.deadline_ms = max(lease.deadline_ms, now_ms + day.ttl_ms)

        answer = Answer.OK
        if day.status == PAUSED:
            answer = Answer.PAUSED
        elif day.fence_until_ms > 0:
            answer = Answer.FENCED
        elif request.need_micros > 0:
            missing = request.need_micros - (lease.granted - request.granted_micros)
            remaining = max(0, day.cap - day.used - day.leased)
            if missing > remaining:
                answer = Answer.REFUSED
                if day.leased > lease.outstanding:
                    day.recall_until_ms = now_ms + day.ttl_ms // 2
            elif missing > 0:
                give = missing
                if now_ms >= day.recall_until_ms:
                    want = missing + request.want_micros - request.need_micros
                    give = max(give, min(want, remaining // 8))
                with day.changing(lease):
                    lease.granted += min(give, MAX_MICROS - lease.granted)

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
            day.leased,
            now_ms < day.recall_until_ms or day.used + day.leased > day.cap,
            day.plan,
        )

    def _publish(
        self,
        snapshot: DaySnapshot,
        terms: LeaseTerms,
        expire_before_ms: int,
        first_until_ms: int,
        overdue: Sequence[str],
    ) -> PublishReply | None:
        now_ms = self._now_ms()
        where = (snapshot.agent, snapshot.day)
        day = self._day(*where, now_ms)
        whole = snapshot.base_seq is None
        if not snapshot.repairs and (behind := _behind(day, snapshot)) is not None:
            return PublishReply(now_ms, behind, behind=behind)
        if snapshot.status == UNKNOWN:
            if day is None or not day.open:
                self._days[where] = _Day(expires_ms=now_ms + _UNKNOWN_MS)
            return None

        start_ms, end_ms = span_of(snapshot.day, snapshot.span)
        opened = day is None or not day.open
        if day is None or not day.open:
            self._sweep(now_ms)
            day = _Day(expires_ms=end_ms + KEPT_DAYS * DAY_MS)
            if now_ms + terms.ttl_ms >= start_ms and now_ms >= first_until_ms:
                day.fence_until_ms = now_ms + terms.ttl_ms + terms.guard_ms
            self._days[where] = day
        elif now_ms < first_until_ms:
            day.fence_until_ms = 0
        repaired = not opened and day.ttl_ms != terms.ttl_ms
        day.ttl_ms = terms.ttl_ms
        if snapshot.seq > day.seq or (whole and snapshot.seq == day.seq):
            same = not opened and snapshot.seq == day.seq
            repaired |= _take(day, snapshot) and same

        given_up = 0
        for lease in day.leases.values() if whole else [day.leases[id_] for id_ in overdue if id_ in day.leases]:
            if lease.outstanding > 0 and lease.deadline_ms + terms.grace_ms < expire_before_ms:
                given_up += lease.outstanding
                with day.changing(lease):
                    lease.granted = lease.returned = 0
        if day.fence_until_ms > 0 and day.fence_until_ms + terms.grace_ms < expire_before_ms:
            if now_ms < end_ms:
                given_up += max(0, day.cap - day.used - day.leased)
            day.fence_until_ms = 0
        day.given_up += given_up
        return PublishReply(now_ms, day.seq, opened, day.fence_until_ms > 0, repaired, day.leased, given_up)


def _behind(day: _Day | None, snapshot: DaySnapshot) -> int | None:
    """Return what the counter lacks, as `PublishReply.behind` says; None if it may take the snapshot."""
    opening = snapshot.base_seq is None
    if day is None or not day.open:
        return None if opening else NOT_OPEN
    if snapshot.status == UNKNOWN:
        return None
    if day.seq < (snapshot.seq if snapshot.base_seq is None else snapshot.base_seq):
        return day.seq
    if opening or day.seq > snapshot.seq:
        return None
    drawn, missing = day.drawn, False
    for totals in snapshot.leases:
        known = day.leases.get(totals.lease, _Lease())
        drawn += max(0, totals.drawn_micros - known.drawn)
        missing |= totals.events > known.events or totals.last_event > known.last_event
    if day.seq < snapshot.seq:
        if min(drawn, MAX_MICROS) != snapshot.drawn_micros:
            return DIFFERS
        return day.seq if snapshot.plan not in (0, day.plan) and not snapshot.plan_text else None
    own = (day.status, day.cap, day.spent, day.drawn, day.plan)
    said = (snapshot.status, snapshot.cap_micros, snapshot.spent_micros, snapshot.drawn_micros, snapshot.plan)
    return DIFFERS if missing or drawn > day.drawn or own != said else None


def _take(day: _Day, snapshot: DaySnapshot) -> bool:
    """Take over what the ledger says. Returns whether anything differed, apart from the seq."""
    before = (day.status, day.cap, day.spent)
    day.seq, day.status = snapshot.seq, snapshot.status
    day.cap, day.spent = snapshot.cap_micros, snapshot.spent_micros
    day.plan, day.plan_text = snapshot.plan, snapshot.plan_text or day.plan_text
    drawn = day.drawn
    differs = before != (day.status, day.cap, day.spent) or snapshot.drawn_micros > drawn
    for totals in snapshot.leases:
        lease = day.leases.setdefault(totals.lease, _Lease())
        known = (lease.drawn, lease.events, lease.last_event)
        drawn += max(0, totals.drawn_micros - lease.drawn)
        with day.changing(lease):
            lease.drawn = max(lease.drawn, totals.drawn_micros)
            lease.events = max(lease.events, totals.events)
            lease.last_event = max(lease.last_event, totals.last_event)
        differs |= known != (lease.drawn, lease.events, lease.last_event)
    gone = [id_ for id_ in snapshot.folded if id_ in day.leases]
    for id_ in gone:
        lease = day.leases.pop(id_)
        day.folded += lease.drawn
        day.leased -= lease.outstanding
    if snapshot.base_seq is None:
        here = sum(lease.drawn for lease in day.leases.values())
        named_sum = sum(totals.drawn_micros for totals in snapshot.leases)
        drawn = max(day.drawn, snapshot.drawn_micros - named_sum + here, here)
        day.folded = drawn - here
    day.drawn = min(drawn, MAX_MICROS)
    return differs
