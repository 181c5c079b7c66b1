"""The model's counter: `sync` and `publish` as pure functions, step by step like daycap/counters/scripts/*.lua.

All numbers are ints; leases are numbered; time is in ticks. A counter that is missing is None. `Terms.without` names
the guards that are left out, to see what breaks without them.
"""

from __future__ import annotations

from typing import NamedTuple

ACTIVE, PAUSED = 0, 1
WHOLE = -1


class Terms(NamedTuple):
    """The terms of every lease in ticks, the part of what remains that a wish gets, and the guards left out."""

    ttl: int = 1
    guard: int = 0
    grace: int = 0
    share: int = 1
    deltas: bool = False
    """Whether a publish carries what changed, and not every lease of the day."""
    without: tuple[str, ...] = ()


class Lease(NamedTuple):
    granted: int = 0
    returned: int = 0
    drawn: int = 0
    events: int = 0
    last_event: int = 0
    deadline: int = 0


Leases = tuple[Lease, ...]


class Counter(NamedTuple):
    """The hash of one agent's day."""

    run: int
    seq: int
    status: int
    cap: int
    spent: int
    given_up: int
    recall_until: int
    fence_until: int
    leases: Leases


class Request(NamedTuple):
    """What a sync says of lease number `lease`. `drawn` stays 0, for a runner never reports it."""

    lease: int
    run: int
    granted: int
    returned: int
    need: int = 0
    want: int = 0
    drawn: int = 0


class Reply(NamedTuple):
    answer: str
    granted: int = 0
    drawn: int = 0
    events: int = 0
    last_event: int = 0
    cap: int = 0
    spent: int = 0
    leased: int = 0
    recall: int = 0


class Snapshot(NamedTuple):
    """One publish: a snapshot of the ledger, with (drawn, events, last_event) of the day's leases, in order."""

    run: int
    seq: int
    status: int
    cap: int
    spent: int
    totals: tuple[tuple[int, int, int] | tuple[()], ...]
    """Of a delta those that did not change are ()."""
    expire_before: int = 0
    first_until: int = 0
    chosen: tuple[int, ...] = ()
    """Which leases to give up, where that is not decided by the counter: only without that guard."""
    base: int = WHOLE
    """A delta carries what changed in (base, seq]."""
    drawn: int = 0
    """Of a delta: what all leases of the day had drawn at `seq`."""


class Published(NamedTuple):
    """What a publish did; `expired`: the leases that it gave up, `lifted`: whether a fence has stood long enough."""

    opened: bool
    fenced: bool
    leased: int
    given_up: int
    expired: tuple[int, ...]
    lifted: bool
    behind: int | None = None
    """Of a delta that was not taken: the seq that changes are wanted from, `WHOLE` for all; else None."""


NEW = Lease()


def outstanding(lease: Lease, terms: Terms) -> int:
    left = lease.granted - lease.returned - lease.drawn
    return left if left > 0 or "outstanding clamped at 0" in terms.without else 0


def leased(leases: Leases, terms: Terms) -> int:
    return sum([outstanding(lease, terms) for lease in leases])


def used(spent: int, leases: Leases, terms: Terms) -> int:
    """What leases have drawn is spent though it was not all charged, because the cap was lowered meanwhile."""
    if "what is drawn is used though it was not charged" in terms.without:
        return spent
    return max(spent, sum([lease.drawn for lease in leases]))


def sync(
    counter: Counter | None, terms: Terms, now: int, said: Request, *, today: bool = True
) -> tuple[Counter | None, Reply]:
    """Take, renew, hand back and put back. `today`: whether the counter's day is the one that it is now."""
    without = terms.without
    if said.need > 0 and not today:
        return counter, Reply("WRONG_DAY")
    if counter is None or (counter.run != said.run and "run id compared" not in without):
        return counter, Reply("NOT_OPEN")

    lease = counter.leases[said.lease]
    granted = lease.granted if "put back accepted" in without else max(lease.granted, said.granted)
    lease = lease._replace(
        granted=granted,
        returned=max(lease.returned, said.returned),
        drawn=max(lease.drawn, said.drawn),
        deadline=max(lease.deadline, now + terms.ttl),
    )
    counter = counter._replace(leases=_with(counter.leases, said.lease, lease))
    answer = "OK"
    if counter.status == PAUSED:
        answer = "PAUSED"
    elif counter.fence_until > 0:
        answer = "FENCED"
    elif said.need > 0:
        answer, counter = _grant(counter, terms, now, said)

    lease, total = counter.leases[said.lease], leased(counter.leases, terms)
    told = lease.granted
    if "granted is absolute" in without:  # Instead of the running total: what this one was granted.
        told = said.granted + lease.granted - granted
    spent = used(counter.spent, counter.leases, terms)
    recall = now < counter.recall_until or spent + total > counter.cap
    return counter, Reply(
        answer, told, lease.drawn, lease.events, lease.last_event, counter.cap, spent, total, int(recall)
    )


def _grant(counter: Counter, terms: Terms, now: int, said: Request) -> tuple[str, Counter]:
    lease, total = counter.leases[said.lease], leased(counter.leases, terms)
    # What was granted beyond the runner's total went out in a reply that it never saw: that counts first.
    unseen = 0 if "granted is absolute" in terms.without else lease.granted - said.granted
    missing = said.need - unseen
    remaining = max(0, counter.cap - used(counter.spent, counter.leases, terms) - total)
    if missing > remaining:
        others = total > outstanding(lease, terms)
        return "REFUSED", counter._replace(recall_until=now + terms.ttl // 2) if others else counter
    if missing <= 0:
        return "OK", counter
    give = missing
    if now >= counter.recall_until:
        give = max(give, min(missing + said.want - said.need, remaining // terms.share))
    lease = lease._replace(granted=lease.granted + give)
    return "OK", counter._replace(leases=_with(counter.leases, said.lease, lease))


def publish(
    counter: Counter | None, terms: Terms, now: int, said: Snapshot, *, ahead: bool = False, over: bool = False
) -> tuple[Counter | None, Published]:
    """Warm the counter with one ledger snapshot; a whole one opens it where it is missing or of another server's life.

    `ahead`: the day begins more than a ttl from now; `over`: it has ended.
    """
    opened = counter is None or (counter.run != said.run and "run id compared" not in terms.without)
    if said.base != WHOLE and (behind := _behind(counter, terms, said, missing=opened)) is not None:
        return counter, Published(False, False, 0, 0, (), False, behind)
    counter = _open(counter, terms, now, said, ahead=ahead) if opened else counter
    assert counter is not None
    first = said.first_until > 0 if "first is a time limit" in terms.without else now < said.first_until
    fence_until = 0 if first and not opened else counter.fence_until
    newer = said.seq > counter.seq or (said.base == WHOLE and said.seq == counter.seq)
    if said.seq >= counter.seq or "older seq ignored" in terms.without:
        counter = counter._replace(seq=said.seq, status=said.status, cap=said.cap, spent=said.spent)

    leases, given_up, expired = list(counter.leases), 0, []
    for number, said_totals in enumerate(said.totals):
        lease = _told(leases[number], terms, said_totals, newer=newer)
        dead = lease.deadline + terms.grace < said.expire_before
        if "expiry decided inside the script" in terms.without:
            dead = number in said.chosen
        if dead and (left := outstanding(lease, terms)) > 0:
            given_up += left
            expired.append(number)
            lease = lease._replace(granted=0, returned=0)
        leases[number] = lease
    counter = counter._replace(leases=tuple(leases))

    total = leased(counter.leases, terms)
    lifted = fence_until > 0 and fence_until + terms.grace < said.expire_before
    if lifted:
        free = counter.cap - used(counter.spent, counter.leases, terms) - total
        given_up += 0 if over else max(0, free)
        fence_until = 0
    counter = counter._replace(run=said.run, given_up=counter.given_up + given_up, fence_until=fence_until)
    return counter, Published(opened, fence_until > 0, total, given_up, tuple(expired), lifted)


def _behind(counter: Counter | None, terms: Terms, said: Snapshot, *, missing: bool) -> int | None:
    """From which seq on a delta's counter lacks changes, `WHOLE` if it lacks all or has others; None if it does not."""
    if counter is None:
        return WHOLE
    if missing:
        return None if "only a whole publish opens" in terms.without else WHOLE
    if counter.seq < said.base and "a delta needs its base" not in terms.without:
        return counter.seq
    if counter.seq < said.seq and "the sum of what was drawn is compared" not in terms.without:
        changed = zip(counter.leases, said.totals, strict=True)
        drawn = sum([totals[0] if totals else lease.drawn for lease, totals in changed])
        if drawn != said.drawn:
            return WHOLE
    return None


def _told(lease: Lease, terms: Terms, totals: tuple[int, int, int] | tuple[()], *, newer: bool) -> Lease:
    """The lease with the ledger's totals of it."""
    if not totals:
        return lease
    drawn, events, last_event = totals
    if terms.deltas:
        if not newer and "an older publish changes no lease" not in terms.without:
            return lease
        return lease._replace(drawn=drawn, events=events, last_event=last_event)
    return lease._replace(
        drawn=max(lease.drawn, drawn), events=max(lease.events, events), last_event=max(lease.last_event, last_event)
    )


def _open(counter: Counter | None, terms: Terms, now: int, said: Snapshot, *, ahead: bool) -> Counter:
    known = counter is not None
    if counter is None:
        counter = Counter(said.run, 0, ACTIVE, 0, 0, 0, 0, 0, (NEW,) * len(said.totals))
    fence_until, leases = counter.fence_until, counter.leases
    first = said.first_until > 0 if "first is a time limit" in terms.without else now < said.first_until
    if (known or not first) and not ahead and "fence" not in terms.without:
        fence_until = now + terms.ttl + terms.guard
    if "what an old copy had lent is forgotten" in terms.without:
        leases = tuple([each._replace(deadline=max(each.deadline, now + terms.ttl)) for each in leases])
    else:
        leases = tuple([each._replace(granted=0, returned=0) for each in leases])
    return counter._replace(fence_until=fence_until, leases=leases)


def _with(leases: Leases, number: int, lease: Lease) -> Leases:
    return (*leases[:number], lease, *leases[number + 1 :])
