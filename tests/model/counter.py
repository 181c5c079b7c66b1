"""The model's counter: `sync` and `publish` as pure functions, step by step like daycap/scripts/*.lua.

All numbers are ints; time is in ticks. A counter that is missing is None. `Terms.without` names the one guard that
is left out, to see what breaks without it.
"""

from __future__ import annotations

from typing import NamedTuple

ACTIVE, PAUSED = 0, 1


class Terms(NamedTuple):
    """The terms of every lease in ticks, the part of what remains that a wish gets, and the guard left out."""

    ttl: int = 1
    guard: int = 0
    grace: int = 0
    share: int = 1
    without: str = ""


class Lease(NamedTuple):
    granted: int = 0
    returned: int = 0
    drawn: int = 0
    events: int = 0
    last_event: int = 0
    deadline: int = 0


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
    leases: tuple[Lease, ...]


class Request(NamedTuple):
    """What a sync says of lease number `lease`; `drawn` stays 0, for a runner never reports it."""

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
    """One publish: a ledger snapshot, with (drawn, events, last_event) of every lease of the day, in order."""

    run: int
    seq: int
    status: int
    cap: int
    spent: int
    totals: tuple[tuple[int, int, int], ...]
    expire_before: int = 0
    first_until: int = 0
    chosen: tuple[int, ...] = ()


class Published(NamedTuple):
    """What a publish did: leases given up and what a lifted fence stood over, and the micros of both."""

    opened: bool
    fenced: bool
    leased: int
    given_up: int
    expired: tuple[int, ...]
    lifted: bool


NEW = Lease()


def outstanding(lease: Lease, terms: Terms) -> int:
    left = lease.granted - lease.returned - lease.drawn
    return left if left > 0 or terms.without == "outstanding clamped at 0" else 0


def leased(leases: tuple[Lease, ...], terms: Terms) -> int:
    return sum(outstanding(lease, terms) for lease in leases)


def used(spent: int, leases: tuple[Lease, ...], terms: Terms) -> int:
    """What may not be lent: spent, or drawn though it was not all charged, because the cap was lowered meanwhile."""
    if terms.without == "what was drawn counts under a lowered cap":
        return spent
    return max(spent, sum(lease.drawn for lease in leases))


def sync(
    counter: Counter | None, terms: Terms, now: int, request: Request, *, today: bool = True
) -> tuple[Counter | None, Reply]:
    """Take, renew, hand back and put back. `today`: whether the counter's day is the one that it is now."""
    without = terms.without
    need = request.need
    if need > 0 and not today and without != "money only for the day that it is":
        return counter, Reply("WRONG_DAY")
    if counter is None or (counter.run != request.run and without != "run id compared"):
        return counter, Reply("NOT_OPEN")

    lease = counter.leases[request.lease]
    granted = lease.granted if without == "put back accepted" else max(lease.granted, request.granted)
    lease = lease._replace(
        granted=granted,
        returned=max(lease.returned, request.returned),
        drawn=max(lease.drawn, request.drawn),
        deadline=now + terms.ttl,
    )
    leases = _with(counter.leases, request.lease, lease)
    own, total, recall_until = outstanding(lease, terms), leased(leases, terms), counter.recall_until

    answer = "OK"
    if counter.status == PAUSED:
        answer = "PAUSED"
    elif counter.fence_until > 0:
        answer = "FENCED"
    elif need > 0:
        unseen = 0 if without == "granted is absolute" else granted - request.granted
        missing, remaining = need - unseen, max(0, counter.cap - used(counter.spent, leases, terms) - total)
        if missing > remaining:
            answer = "REFUSED"
            if total > own:
                recall_until = now + terms.ttl // 2
        elif missing > 0:
            give = missing
            if now >= recall_until:
                give = max(give, min(missing + request.want - need, remaining // terms.share))
            lease = lease._replace(granted=granted + give)
            leases = _with(counter.leases, request.lease, lease)
            total += outstanding(lease, terms) - own

    counter = counter._replace(leases=leases, recall_until=recall_until)
    if without == "granted is absolute":  # What is said is what this request was granted, beyond what it said.
        lease = lease._replace(granted=request.granted + lease.granted - granted)
    recall = int(now < recall_until or used(counter.spent, leases, terms) + total > counter.cap)
    return counter, Reply(
        answer, lease.granted, lease.drawn, lease.events, lease.last_event, counter.cap, counter.spent, total, recall
    )


def publish(counter: Counter | None, terms: Terms, now: int, said: Snapshot) -> tuple[Counter, Published]:
    """Warm the counter with one ledger snapshot; open it where it is missing or of another life of the server."""
    without = terms.without
    opened = counter is None or (counter.run != said.run and without != "run id compared")
    known = counter is not None
    if counter is None:
        counter = Counter(said.run, 0, ACTIVE, 0, 0, 0, 0, 0, (NEW,) * len(said.totals))
    seq, status, cap, spent = counter.seq, counter.status, counter.cap, counter.spent
    fence_until, leases = counter.fence_until, list(counter.leases)
    if opened:
        first = said.first_until > 0 if without == "first is a time limit" else now < said.first_until
        if (known or not first) and without != "fence":
            fence_until = now + terms.ttl + terms.guard
        if without == "what an old copy had lent is forgotten":
            leases = [each._replace(deadline=max(each.deadline, now + terms.ttl)) for each in leases]
        else:
            leases = [each._replace(granted=0, returned=0) for each in leases]
    elif now < said.first_until:
        fence_until = 0

    if said.seq >= seq or without == "older seq ignored":
        seq, status, cap, spent = said.seq, said.status, said.cap, said.spent
    for number, (drawn, events, last_event) in enumerate(said.totals):
        old = leases[number]
        leases[number] = old._replace(
            drawn=max(old.drawn, drawn), events=max(old.events, events), last_event=max(old.last_event, last_event)
        )

    given_up, expired = 0, []
    for number, lease in enumerate(leases):
        left = outstanding(lease, terms)
        over = 0 < lease.deadline + terms.grace < said.expire_before
        if without == "expiry decided inside the script":
            over = number in said.chosen
        if left > 0 and over:
            given_up += left
            leases[number] = lease._replace(granted=0, returned=0)
            expired.append(number)
    total = leased(tuple(leases), terms)
    lifted = fence_until > 0 and fence_until + terms.grace < said.expire_before
    if lifted:
        given_up += max(0, cap - used(spent, tuple(leases), terms) - total)
        fence_until = 0

    counter = Counter(
        said.run, seq, status, cap, spent, counter.given_up + given_up, counter.recall_until, fence_until, tuple(leases)
    )
    return counter, Published(opened, fence_until > 0, total, given_up, tuple(expired), lifted)


def _with(leases: tuple[Lease, ...], number: int, lease: Lease) -> tuple[Lease, ...]:
    return (*leases[:number], lease, *leases[number + 1 :])
