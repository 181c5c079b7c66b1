"""The model's counter: `sync` and `publish` as pure functions, step by step like daycap/counters/scripts/*.lua.

All numbers are ints; leases are numbered; time is in ticks. A counter that is missing is None. `Terms.without` names
the guards that are left out, to see what breaks without them.
"""

from __future__ import annotations

from typing import NamedTuple

ACTIVE, PAUSED = 0, 1
WHOLE, REPAIR = -1, -2
"""The base of a publish that carries all: for a counter that is not open, and for one whose sums differ."""
NEVER = -1


class Terms(NamedTuple):
    """The terms of every lease in ticks, the part of what remains that a wish gets, and the guards left out."""

    ttl: int = 1
    guard: int = 0
    grace: int = 0
    share: int = 1
    without: tuple[str, ...] = ()


class Lease(NamedTuple):
    granted: int = 0
    returned: int = 0
    drawn: int = 0
    events: int = 0
    last_event: int = 0
    deadline: int = 0
    known: int = 0
    """Whether the hash has it."""
    farewell: int = NEVER
    """How many events its runner's farewell named."""


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
    drawn: int = 0
    """The sum of every lease of the day, folded ones too."""
    folded: int = 0
    """The part of `drawn` that belongs to folded leases."""


class Request(NamedTuple):
    """What a sync says of lease number `lease`. `drawn` stays 0, for a runner never reports it."""

    lease: int
    run: int
    granted: int
    returned: int
    need: int = 0
    want: int = 0
    drawn: int = 0
    farewell: int = NEVER
    """The lease's last sync says how many events it had."""


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
    """() of those that it does not name: a delta those that did not change, all of them those that have no row or are
    folded."""
    expire_before: int = 0
    first_until: int = 0
    chosen: tuple[int, ...] = ()
    """Suspects that the worker found: the counter decides. Only without that guard does it give up all of them."""
    base: int = WHOLE
    """A delta carries what changed in (base, seq]; `WHOLE` and `REPAIR` are of publishes that carry all."""
    drawn: int = 0
    """What all leases of the day had drawn at `seq`."""
    folded: tuple[int, ...] = ()
    """The leases that were folded in (base, seq]; of a repair those of the leases that the worker saw in the hash."""


class Published(NamedTuple):
    """What a publish did; `expired`: the leases that it gave up, `lifted`: whether a fence has stood long enough."""

    opened: bool
    fenced: bool
    leased: int
    given_up: int
    expired: tuple[int, ...]
    lifted: bool
    behind: int | None = None
    """Of a publish that was not taken: the seq that changes are wanted from, `WHOLE` or `REPAIR` for all; else None."""


NEW = Lease()


def outstanding(lease: Lease, terms: Terms) -> int:
    left = lease.granted - lease.returned - lease.drawn
    return left if left > 0 or "outstanding clamped at 0" in terms.without else 0


def leased(leases: Leases, terms: Terms) -> int:
    return sum([outstanding(lease, terms) for lease in leases])


def used(counter: Counter, terms: Terms) -> int:
    """What leases have drawn is spent though it was not all charged, because the cap was lowered meanwhile."""
    if "what is drawn is used though it was not charged" in terms.without:
        return counter.spent
    return max(counter.spent, counter.drawn)


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
    if said.farewell != NEVER and not lease.known and "a farewell creates no lease" not in without:
        return counter, Reply("OK")
    granted = lease.granted if "put back accepted" in without else max(lease.granted, said.granted)
    lease = lease._replace(
        granted=granted,
        returned=max(lease.returned, said.returned),
        drawn=max(lease.drawn, said.drawn),
        deadline=max(lease.deadline, now + terms.ttl),
        known=1,
        farewell=max(lease.farewell, said.farewell),
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
    spent = used(counter, terms)
    recall = now < counter.recall_until or spent + total > counter.cap
    return counter, Reply(
        answer, told, lease.drawn, lease.events, lease.last_event, counter.cap, spent, total, int(recall)
    )


def _grant(counter: Counter, terms: Terms, now: int, said: Request) -> tuple[str, Counter]:
    lease, total = counter.leases[said.lease], leased(counter.leases, terms)
    # What was granted beyond the runner's total went out in a reply that it never saw: that counts first.
    unseen = 0 if "granted is absolute" in terms.without else lease.granted - said.granted
    missing = said.need - unseen
    remaining = max(0, counter.cap - used(counter, terms) - total)
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
    if (behind := _behind(counter, terms, said, missing=opened)) is not None:
        return counter, Published(False, False, 0, 0, (), False, behind)
    counter = _open(counter, terms, now, said, ahead=ahead) if opened else counter
    assert counter is not None
    first = said.first_until > 0 if "first is a time limit" in terms.without else now < said.first_until
    fence_until = 0 if first and not opened else counter.fence_until
    whole = said.base < 0
    counter = _told_whole(counter, terms, said, opened=opened) if whole else _told_changes(counter, terms, said)
    if said.seq >= counter.seq or "older seq ignored" in terms.without:
        counter = counter._replace(seq=said.seq, status=said.status, cap=said.cap, spent=said.spent)

    leases, given_up, expired = list(counter.leases), 0, []
    for number, lease in enumerate(leases):
        dead = number in said.chosen
        if "expiry decided inside the script" not in terms.without:
            dead = dead and lease.deadline + terms.grace < said.expire_before
        if dead and (left := outstanding(lease, terms)) > 0:
            given_up += left
            expired.append(number)
            leases[number] = lease._replace(granted=0, returned=0)
    counter = counter._replace(leases=tuple(leases))

    total = leased(counter.leases, terms)
    lifted = fence_until > 0 and fence_until + terms.grace < said.expire_before
    if lifted:
        free = counter.cap - used(counter, terms) - total
        given_up += 0 if over else max(0, free)
        fence_until = 0
    counter = counter._replace(run=said.run, given_up=counter.given_up + given_up, fence_until=fence_until)
    return counter, Published(opened, fence_until > 0, total, given_up, tuple(expired), lifted)


def _told(lease: Lease, totals: tuple[int, int, int], without: tuple[str, ...] = ()) -> Lease:
    """The lease with the ledger's totals of it."""
    drawn, events, last_event = totals
    if "a lease keeps what it was told" in without:
        return lease._replace(drawn=drawn, events=events, last_event=last_event, known=1)
    return lease._replace(
        drawn=max(lease.drawn, drawn),
        events=max(lease.events, events),
        last_event=max(lease.last_event, last_event),
        known=1,
    )


def _behind(counter: Counter | None, terms: Terms, said: Snapshot, *, missing: bool) -> int | None:
    """Why a publish is not taken; None if it is.

    The seq from which on the counter lacks changes, `WHOLE` if it is not open, `REPAIR` if its sums differ.
    """
    without = terms.without
    if counter is None or missing:
        return WHOLE if said.base >= 0 and (counter is None or "only a whole publish opens" not in without) else None
    if said.base == WHOLE and counter.seq < said.seq and "a whole publish only opens" not in without:
        return counter.seq
    if said.base < 0:
        return None
    if counter.seq < said.base and "a delta needs its base" not in without:
        return counter.seq
    if counter.seq == said.seq and "sums are compared at the same seq" not in without:
        own = (counter.status, counter.cap, counter.spent, counter.drawn)
        if own != (said.status, said.cap, said.spent, said.drawn):
            return REPAIR
        if "a named lease is compared at the same seq" in without:
            return None
        named = [(lease, totals) for lease, totals in zip(counter.leases, said.totals, strict=True) if totals]
        return None if all(_told(lease, totals) == lease for lease, totals in named) else REPAIR
    if counter.seq < said.seq and "the sum of what was drawn is compared" not in without:
        return None if _told_changes(counter, terms, said).drawn == said.drawn else REPAIR
    return None


def _told_changes(counter: Counter, terms: Terms, said: Snapshot) -> Counter:
    """The counter with the leases that a delta names."""
    if said.seq <= counter.seq and "an older delta changes no lease" not in terms.without:
        return counter
    leases, folded = list(counter.leases), counter.folded
    for number, totals in enumerate(said.totals):
        leases[number] = _told(leases[number], totals, terms.without) if totals else leases[number]
    drawn = counter.drawn + sum([lease.drawn for lease in leases]) - sum([lease.drawn for lease in counter.leases])
    for number in said.folded if "a folded lease leaves the counter" not in terms.without else ():
        folded += leases[number].drawn
        leases[number] = NEW
    return counter._replace(leases=tuple(leases), drawn=drawn, folded=folded)


def _told_whole(counter: Counter, terms: Terms, said: Snapshot, *, opened: bool) -> Counter:
    """The counter with the leases of a whole publish, and without those that are folded."""
    without = terms.without
    if said.seq < counter.seq and "an older whole publish changes no lease" not in without:
        return counter
    leases = list(counter.leases)
    for number, totals in enumerate(said.totals):
        lease = leases[number]
        left = opened and "a copy's lease that is not named leaves" not in without
        if totals:
            leases[number] = _told(lease, totals, without)
        elif left or number in said.folded or "a lease that is not named stays" in without:
            leases[number] = NEW
    named = sum([totals[0] for totals in said.totals if totals])
    in_hash = sum([lease.drawn for lease in leases])
    drawn = said.drawn - named + in_hash
    if "what was drawn does not shrink" not in without:
        drawn = max(drawn, counter.drawn)
    return counter._replace(leases=tuple(leases), drawn=drawn, folded=drawn - in_hash)


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
