"""The queue's wire format: names that runner and worker share, and the finalize event."""

from __future__ import annotations

import base64
import functools
import hashlib
import operator
import re
from collections import Counter
from typing import Any, NamedTuple

from daycap.clock import day_start_ms
from daycap.errors import InvalidAmount, InvalidInput
from daycap.formats import shown
from daycap.money import MAX_MICROS, format_usd, micros
from daycap.protocol.labels import Labels, call_labels
from daycap.protocol.plan import MOST_BUDGETS, budget_id

FINALIZE_TASK = "daycap.finalize"
OPEN_DAY_TASK = "daycap.open_day"

FINALIZE_QUEUE = "daycap.finalize"
OPEN_QUEUE = "daycap.open"
"""The queue of open_day, which runners wait for and which must not wait behind a backlog of events."""

CONTROL_QUEUE = "daycap.control"
"""The queue of administration and housekeeping. A runner needs no permission to write to it."""

SENT_HEADER = "daycap_sent_ms"
"""Message header: the counter's time, in milliseconds, when the runner handed the message to the broker."""

WIRE_VERSION = 1
BUDGETS_VERSION = 2
"""The version of an event that names budgets or labels. Workers from before budgets keep it as a dead letter."""

MAX_EVENTS_PER_MESSAGE = 500
MAX_MESSAGE_BYTES = 1_000_000
"""The limit of a message body: about three times the largest message of events."""

_AGENT = re.compile(r"[A-Za-z0-9._:@-]{1,128}", re.ASCII)
_LEASE = re.compile(r"[A-Za-z0-9._:@-]{1,64}", re.ASCII)
_BOUND_LEASE = re.compile(r"([a-z2-7]{26})\.([a-z2-7]{6})", re.ASCII)
_PERIOD = re.compile(r"[0-9A-Za-z+:-]{1,32}", re.ASCII)
_HOLD_NUMBER = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)


def agent_id(value: object) -> str:
    """Return `value` if it is an agent id: 1..128 characters of `[A-Za-z0-9._:@-]`. Raises `InvalidInput`."""
    if not isinstance(value, str) or not _AGENT.fullmatch(value):
        raise InvalidInput(f"not an agent id (1..128 characters of A-Z a-z 0-9 . _ : @ -): {shown(value, 160)}")
    return value


def new_lease_id(agent: str, day: str, random: bytes) -> str:
    """Create a lease id: `random` (16 bytes, never used before), a dot, and a checksum over agent and day.

    The checksum binds the lease to its agent, so an event that names another agent is detected without a lookup.
    Runners in other languages may use any id that the wire format allows.
    """
    name = base64.b32encode(random).decode("ascii").rstrip("=").lower()
    return f"{name}.{_lease_check(name, agent, day)}"


def lease_fits(lease: str, agent: str, day: str) -> bool:
    """Return False if `new_lease_id` created `lease` for another agent or day."""
    bound = _BOUND_LEASE.fullmatch(lease)
    return bound is None or bound[2] == _lease_check(bound[1], agent, day)


def _lease_check(name: str, agent: str, day: str) -> str:
    digest = hashlib.sha256(f"{name} {day} {agent}".encode()).digest()
    return base64.b32encode(digest).decode("ascii")[:6].lower()


class Share(NamedTuple):
    """What a hold had of another budget than its agent's own: the lease of which period, and how many micros of it.

    A budget that only watches has no lease: "". `held_micros` is None where it equals the event's own.
    """

    budget: str
    period: str
    lease: str = ""
    held_micros: int | None = None


class FinalizeEvent(NamedTuple):
    """A hold that ended with a cost. All amounts are micros.

    `hold` is the hold's number within its lease, `number` the event's own; both count from 1. `also` are the other
    budgets that it counts in, by the agent's `plan` and the call's labels when it was reserved. `plan` is 0 if there
    was none, and None if the event does not say, as those of earlier releases.
    """

    lease: str
    hold: int
    number: int
    agent: str
    day: str
    held_micros: int
    actual_micros: int
    at_ms: int
    also: tuple[Share, ...] = ()
    plan: int | None = None
    labels: Labels = ()

    @property
    def reservation(self) -> str:
        """The hold's id."""
        return f"{self.lease}-{self.hold}"

    @property
    def drawn_micros(self) -> int:
        """What the hold takes from its lease."""
        return min(self.actual_micros, self.held_micros)

    def to_wire(self) -> dict[str, Any]:
        """Encode the event as the JSON object that docs/design.md describes."""
        if self.also or self.plan or self.labels:
            return self._of_budgets()
        wire = self._of_agent(WIRE_VERSION)
        if self.plan == 0:
            wire["plan"] = 0
        return wire

    def _of_budgets(self) -> dict[str, Any]:
        also = []
        for share in self.also:
            entry: dict[str, Any] = {"budget": share.budget, "period": share.period}
            if share.lease:
                entry["lease"] = share.lease
            if share.held_micros is not None:
                entry["held"] = share.held_micros
            also.append(entry)
        wire = {**self._of_agent(BUDGETS_VERSION), "also": also}
        if self.plan is not None:
            wire["plan"] = self.plan
        if self.labels:
            wire["labels"] = dict(self.labels)
        return wire

    def _of_agent(self, version: int) -> dict[str, Any]:
        return {
            "v": version,
            "reservation": self.reservation,
            "lease": self.lease,
            "event": self.number,
            "agent": self.agent,
            "day": self.day,
            "held": self.held_micros,
            "actual": self.actual_micros,
            "at_ms": self.at_ms,
        }

    @classmethod
    def from_wire(cls, payload: object) -> FinalizeEvent:
        """Decode a message from the queue. Raises `InvalidInput` or `InvalidAmount` with the reason.

        Fields that its version does not know are ignored.
        """
        if not isinstance(payload, dict):
            raise InvalidInput(f"an event is an object, not {type(payload).__name__}")
        version = payload.get("v")
        if type(version) is not int or version not in (WIRE_VERSION, BUDGETS_VERSION):
            raise InvalidInput(f"unknown version: {shown(version, 40)}")
        try:
            reservation, lease, number, agent, day, held, actual, at_ms = _in_order(payload)
        except KeyError:
            missing = [name for name in _FIELDS if name not in payload]
            raise InvalidInput(f"missing: {', '.join(missing)}") from None
        if not (type(lease) is type(agent) is type(day) is str):
            _check_lease.__wrapped__(lease, agent, day)  # Raises; the cache needs hashable arguments.
        _check_lease(lease, agent, day)
        if not isinstance(reservation, str) or not (
            reservation.startswith(f"{lease}-") and _HOLD_NUMBER.fullmatch(reservation, len(lease) + 1)
        ):
            raise InvalidInput(f"not a hold of lease {lease}: {shown(reservation, 120)}")
        # All have the range of amounts, which is exact in every language that reads JSON.
        for name, value in (("event", number), ("held", held), ("actual", actual), ("at_ms", at_ms)):
            try:
                micros(value)
            except InvalidAmount:
                raise InvalidAmount(f"{name} is not an int from 0 to {MAX_MICROS}: {shown(value, 40)}") from None
        if number == 0:
            raise InvalidInput("event counts from 1")
        # Version 1 knows no plan but 0, which its readers of earlier releases ignore.
        plan = 0 if payload.get("plan") == 0 else None
        event = cls(lease, int(reservation[len(lease) + 1 :]), number, agent, day, held, actual, at_ms, (), plan)
        return event if version == WIRE_VERSION else event._with_budgets(payload)

    def _with_budgets(self, payload: dict[str, Any]) -> FinalizeEvent:
        """Return the event with what version 2 adds."""
        also, plan = payload.get("also", []), payload.get("plan")
        if not isinstance(also, list) or len(also) >= MOST_BUDGETS:
            raise InvalidInput(f"also is not a list of at most {MOST_BUDGETS - 1} budgets: {shown(also, 80)}")
        shares = _shares(also)
        if "plan" in payload and (type(plan) is not int or not 0 <= plan <= MAX_MICROS):
            raise InvalidInput(f"not a plan: {shown(plan, 40)}")
        return self._replace(also=shares, plan=plan, labels=call_labels(payload.get("labels", {})))


def _shares(entries: list[object]) -> tuple[Share, ...]:
    for entry in entries:
        if not isinstance(entry, dict):
            raise InvalidInput(f"a budget of an event is an object, not {shown(entry, 80)}")
    each: Any = entries
    named = tuple([(entry.get("budget"), entry.get("period"), entry.get("lease")) for entry in each])
    try:
        shares = _checked_shares(named)
    except TypeError:  # Unhashable.
        shares = _checked_shares.__wrapped__(named)
    held = [entry.get("held") for entry in each]
    if held.count(None) == len(held):
        return shares
    return tuple(
        share if its is None else share._replace(held_micros=micros(its))
        for share, its in zip(shares, held, strict=True)
    )


@functools.lru_cache(maxsize=10_000)
def _checked_shares(named: tuple[tuple[object, object, object], ...]) -> tuple[Share, ...]:
    """Return the shares without what was held. Cached, because the leases of a call have many events."""
    shares = tuple(_share(*each) for each in named)
    if len({share.budget for share in shares}) < len(shares):
        raise InvalidInput("also names a budget twice")
    return shares


def _share(budget: object, period: object, lease: object) -> Share:
    if not isinstance(period, str) or not _PERIOD.fullmatch(period):
        raise InvalidInput(f"not a period's id: {shown(period, 40)}")
    if lease is None:
        lease = ""
    elif not isinstance(lease, str) or not _LEASE.fullmatch(lease) or not lease_fits(lease, budget_id(budget), period):
        raise InvalidInput(f"not a lease of budget {shown(budget, 180)} in {period}: {shown(lease, 80)}")
    return Share(budget_id(budget), period, lease)


@functools.lru_cache(maxsize=10_000)
def _check_lease(lease: object, agent: object, day: Any) -> None:
    """Raise `InvalidInput` unless `lease` fits this agent and day. Cached, because a lease has many events."""
    if not isinstance(lease, str) or not _LEASE.fullmatch(lease):
        raise InvalidInput(f"not a lease id: {shown(lease, 80)}")
    day_start_ms(day)
    if not lease_fits(lease, agent_id(agent), day):
        raise InvalidInput(f"lease {lease} was not made for agent {agent} on {day}")


_FIELDS = ("reservation", "lease", "event", "agent", "day", "held", "actual", "at_ms")
_in_order = operator.itemgetter(*_FIELDS)


_MOST_SHOWN = 2


def shown_costs(events: object) -> str:
    """Summarize encoded events for people, by cost: `agent-7 $0.012; agent-8 $0.003; +3`. Skips malformed events."""
    costs: Counter[str] = Counter()
    for payload in events if isinstance(events, list) else ():
        if isinstance(payload, dict):
            agent, actual = payload.get("agent"), payload.get("actual")
            if isinstance(agent, str) and type(actual) is int and 0 <= actual <= MAX_MICROS:
                costs[agent] += actual
    words = [f"{agent:.40} {format_usd(cost)}" for agent, cost in costs.most_common(_MOST_SHOWN)]
    if len(costs) > _MOST_SHOWN:
        words.append(f"+{len(costs) - _MOST_SHOWN}")
    return "; ".join(words)
