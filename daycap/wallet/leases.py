"""Which leases a runner process has: a current one per agent and budget, and retired ones until nothing is left."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

from daycap.clock import DAY_MS, day_start_ms
from daycap.money import MAX_MICROS
from daycap.protocol.counter import KEPT_DAYS, Span
from daycap.protocol.wire import new_lease_id
from daycap.wallet.lease import Lease


class Leases:
    """The leases of one book, whose lock its callers hold. `random` makes the ids."""

    def __init__(self, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self.random = random
        self.clear()

    def clear(self) -> None:
        """Start with none. Called in a forked child."""
        self.current: dict[str, Lease] = {}
        """The lease of each agent, and of each other budget, that new holds are made from."""
        self.retired: dict[Lease, None] = {}
        self.replaced: dict[str, list[Lease]] = {}
        """The retired leases whose day is not over, by owner: their free money counts against it."""

    def all(self) -> tuple[Lease, ...]:
        """Return every lease."""
        return (*self.current.values(), *self.retired)

    def last_known(self, agent: str) -> Lease | None:
        """Return the agent's current lease if the counter has granted to it."""
        lease = self.current.get(agent)
        return lease if lease is not None and lease.granted > 0 else None

    def drawn_on(self, agents: Iterable[str]) -> list[Lease]:
        """Return the current leases that calls of these agents draw on, those of other budgets included."""
        own = [lease for agent in agents if (lease := self.last_known(agent)) is not None]
        others = {other for lease in own for route in [*lease.routes.values()] for other in route.others}
        return [*own, *(lease for lease in others if self.current.get(lease.agent) is lease)]

    def find(self, agent: str, day: str, estimate: int, now_ns: int, span: Span | None = None) -> Lease:
        """Return the lease that can hold `estimate` on `day`, which is today. Retires what cannot, and makes one.

        `agent` and `day` may be a budget and its current period, whose bounds are `span`.
        """
        former = 0
        lease = self.current.get(agent)
        if lease is not None and lease.day != day:
            former = lease.plan
            self.retire(lease)
            lease = None
        elif lease is not None and lease.granted + estimate > MAX_MICROS and estimate <= lease.cap - lease.spent:
            # Its running totals would exceed what every tier counts exactly. (A request that the counter refuses anyway
            # stays on this lease. If the cap was raised and it does not refuse, it grants what it can.)
            former = lease.plan
            self.replace(lease)
            lease = None
        if lease is None:
            lease = Lease(agent, day, new_lease_id(agent, day, self.random(16)), now_ns, span)
            lease.plan = former  # A guess, which saves an exchange; the counter's reply confirms it.
            self.current[agent] = lease
        return lease

    def replace(self, lease: Lease) -> None:
        """Retire the lease during its day: the next question starts a new one."""
        self.retire(lease)
        self.replaced.setdefault(lease.agent, []).append(lease)

    def retire(self, lease: Lease) -> None:
        """Make no new hold from the lease; it is renewed while in use."""
        lease.deadline_ns = 0
        self.retired[lease] = None  # First, so that the lease stays in the book wherever this is interrupted.
        del self.current[lease.agent]

    def tidy(self, lease: Lease, now_ms: int) -> bool:
        """Retire the lease if its day is over; remove it and return True if it is no longer needed."""
        if self.current.get(lease.agent) is lease:
            if lease.over(now_ms):
                self.retire(lease)
            elif lease.granted == 0 and not lease.in_use:
                del self.current[lease.agent]  # Made for a question that was refused.
        if lease not in self.retired:
            return False
        let_go = not lease.in_use or (lease.expired(now_ms) and not lease.unsettled)
        if let_go:
            del self.retired[lease]
            if lease in (replaced := self.replaced.get(lease.agent, [])):
                replaced.remove(lease)
                if not replaced:
                    del self.replaced[lease.agent]
        return let_go

    def handed_back(self, lease: Lease) -> int | None:
        """Return what the leases that it replaced have handed back; None if one may owe more.

        A removed lease has handed back everything, so the sum changes when it is removed.
        """
        total = 0
        for other in self.replaced.get(lease.agent, ()):
            if other.day == lease.day:
                if other.owes:
                    return None
                total += other.returned
        return total


def expired(day: str, today: str) -> bool:
    """Return whether the counter no longer keeps `day`."""
    return day_start_ms(today) > day_start_ms(day) + KEPT_DAYS * DAY_MS
