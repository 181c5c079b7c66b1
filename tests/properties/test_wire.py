"""Events survive the wire, and whatever else arrives is refused with a reason."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from daycap import MAX_MICROS, InvalidAmount, InvalidInput
from daycap.protocol.labels import call_labels
from daycap.protocol.wire import FinalizeEvent, Share, new_lease_id

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
PROFILE = settings(max_examples=20_000 if THOROUGH else 100, derandomize=not THOROUGH, database=None, deadline=None)

NAMES = st.from_regex(r"[A-Za-z0-9._:@-]{1,20}", fullmatch=True)
AMOUNTS = st.integers(0, MAX_MICROS)
LABELS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_.-]{0,31}", fullmatch=True),
    st.text(min_size=1, max_size=128).filter(str.isprintable),
    max_size=8,
).map(call_labels)


@st.composite
def shares(draw: st.DrawFn) -> Share:
    where = f"{draw(NAMES)}/{draw(st.integers(1, 10**9))}", draw(st.from_regex(r"[0-9A-Za-z+:-]{1,32}", fullmatch=True))
    leases = st.one_of(st.just(""), NAMES, st.binary(min_size=16, max_size=16).map(lambda b: new_lease_id(*where, b)))
    return Share(*where, draw(leases), draw(st.none() | AMOUNTS))


@st.composite
def events(draw: st.DrawFn) -> FinalizeEvent:
    agent, day = draw(NAMES), draw(st.dates()).isoformat()
    lease = new_lease_id(agent, day, draw(st.binary(min_size=16, max_size=16)))
    counts = st.integers(1, 10**15)
    also = draw(st.lists(shares(), max_size=15, unique_by=lambda share: share.budget))
    amounts = draw(AMOUNTS), draw(AMOUNTS), draw(AMOUNTS)
    return FinalizeEvent(
        lease, draw(counts), draw(counts), agent, day, *amounts, tuple(also), draw(AMOUNTS), draw(LABELS)
    )


@PROFILE
@given(events())
def test_event_round_trips(event: FinalizeEvent) -> None:
    wire = event.to_wire()
    assert FinalizeEvent.from_wire(json.loads(json.dumps(wire))) == event
    assert wire["v"] == (1 if event[8:] == ((), 0, ()) else 2)


@PROFILE
@given(events())
def test_event_of_one_budget_is_as_ever(event: FinalizeEvent) -> None:
    """But that it says so, in a field that earlier releases ignore."""
    facts = (
        f'{{"v": 1, "reservation": "{event.lease}-{event.hold}", "lease": "{event.lease}", "event": {event.number}, '
        f'"agent": "{event.agent}", "day": "{event.day}", "held": {event.held_micros}, '
        f'"actual": {event.actual_micros}, "at_ms": {event.at_ms}'
    )
    alone = event._replace(also=(), plan=0, labels=())
    assert json.dumps(alone.to_wire()) == facts + ', "plan": 0}'
    unsaid = alone._replace(plan=None)
    assert json.dumps(unsaid.to_wire()) == facts + "}"
    assert FinalizeEvent.from_wire(unsaid.to_wire()) == unsaid


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
PATHS = ["v", "reservation", "lease", "event", "agent", "day", "held", "actual", "at_ms", "also", "plan", "labels"]
INSIDE = ["budget", "period", "lease", "held"]


@PROFILE
@given(events(), st.sampled_from(PATHS), st.sampled_from(INSIDE), JSON, st.booleans(), st.integers(0, 14))
def test_other_json_is_refused(
    event: FinalizeEvent, name: str, inside: str, other: Any, is_inside: bool, nth: int
) -> None:
    wire = event.to_wire()
    if is_inside and wire.get("also"):
        wire["also"][nth % len(wire["also"])][inside] = other
    else:
        wire[name] = other
    for payload in (wire, other):
        with suppress(InvalidInput, InvalidAmount):
            assert isinstance(FinalizeEvent.from_wire(payload), FinalizeEvent)
