"""Whatever arrives in the queue is settled, a duplicate, a conflict or a dead letter; and the worker lives."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daycap.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK
from tests.events import event
from tests.spine import Spine
from worker.broker import UNREADABLE, well_formed


def envelope(body: Any = None, *, encoded: str | None = None, **changes: Any) -> dict[str, Any]:
    """A message as Celery makes it, with changes; a value of `...` takes the field away."""
    text = json.dumps([[], {"events": [body]}, {}]) if encoded is None else encoded
    made: dict[str, Any] = {
        "body": base64.b64encode(text.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": FINALIZE_TASK, "id": "one", "lang": "py"},
        "properties": {
            "delivery_tag": "tag",
            "delivery_info": {"exchange": "", "routing_key": FINALIZE_QUEUE},
            "body_encoding": "base64",
        },
    }
    for name, value in changes.items():
        where, _, field = name.rpartition("__")
        target = made[where] if where else made
        if value is ...:
            target.pop(field.replace("_", "-") if not where else field)
        else:
            target[field.replace("_", "-") if not where else field] = value
    return made


ODD_MESSAGES = {
    "not JSON": "not JSON",
    "not UTF-8": b"\xff\xfe\x00",
    "empty": "",
    "a number": "17",
    "null": "null",
    "a list": "[]",
    "no headers": json.dumps(envelope(headers=...)),
    "no id": json.dumps(envelope(headers__id=...)),
    "an empty id": json.dumps(envelope(headers__id="")),
    "an id that is a list": json.dumps(envelope(headers__id=[1])),
    "no task": json.dumps(envelope(headers__task=...)),
    "another task": json.dumps(envelope(headers__task="daycap.settle_everything")),
    "no properties": json.dumps(envelope(properties=...)),
    "no delivery tag": json.dumps(envelope(properties__delivery_tag=...)),
    "no delivery info": json.dumps(envelope(properties__delivery_info=...)),
    "no body": json.dumps({**envelope(), "body": None}),
    "a body that is a string": json.dumps(envelope(encoded='"text"')),
    "a body that is a list of one": json.dumps(envelope(encoded="[1]")),
    "a body of three strings": json.dumps(envelope(encoded='["a", "b", "c"]')),
    "a body that is not JSON": json.dumps(envelope(encoded="{")),
    "a body that is not base64": json.dumps({**envelope(), "body": "%%%"}),
    "a pickle": json.dumps(envelope(content_type="application/x-python-serialize")),
    "an encoding that nobody knows": json.dumps(envelope(content_encoding="klingon")),
    "compressed": json.dumps(envelope(headers__compression="zlib")),
    "arguments": json.dumps(envelope(encoded='[[1, 2], {"events": []}, {}]')),
    "no events": json.dumps(envelope(encoded="[[], {}, {}]")),
    "events that are no list": json.dumps(envelope(encoded='[[], {"events": 5}, {}]')),
    "events and more": json.dumps(envelope(encoded='[[], {"events": [1], "more": 1}, {}]')),
    "no event": json.dumps(envelope(encoded='[[], {"events": []}, {}]')),
    "deeply nested": "[" * 100_000,
}


@pytest.mark.parametrize("queue", [FINALIZE_QUEUE, CONTROL_QUEUE])
def test_odd_messages_become_dead_letters_and_the_worker_lives(spine: Spine, queue: str) -> None:
    agent = spine.add("agent-7", 5_000_000)
    broker = redis.Redis.from_url(spine.settings.broker_url)
    odd = [text for text in ODD_MESSAGES.values() if queue == FINALIZE_QUEUE or "daycap.finalize" not in str(text)]

    for number, text in enumerate(odd, start=1):
        broker.lpush(queue, text)
        broker.lpush(FINALIZE_QUEUE, json.dumps(envelope(event(agent, spine.today, number=number))))

    spine.wait_for(lambda: spine.day_row(agent)["settled_count"] == len(odd))
    spine.wait_for(lambda: spine.rows("SELECT count(*) AS n FROM dead_letters")[0]["n"] >= len({*map(str, odd)}))
    assert {row["kind"] for row in spine.rows("SELECT kind FROM dead_letters")} == {"malformed"}
    assert spine.worker.container.status == "running"
    assert spine.ask("daycap.check_ledger") is None
    broker.close()


def test_headers_that_would_delay_or_drop_an_event_do_not(spine: Spine) -> None:
    agent = spine.add("agent-7", 5_000_000)
    broker = redis.Redis.from_url(spine.settings.broker_url)
    for number, headers in enumerate(
        (
            {"expires": "2000-01-01T00:00:00"},
            {"expires": "nonsense"},
            {"eta": "2999-01-01T00:00:00"},
            {"eta": 5},
            {"timelimit": "soon"},
            {"timelimit": [1, 2]},
            {"group": "g"},
        ),
        start=1,
    ):
        message = envelope(event(agent, spine.today, number=number))
        message["headers"].update(headers)
        broker.lpush(FINALIZE_QUEUE, json.dumps(message))
    chained = envelope(encoded=json.dumps([[], {"events": [event(agent, spine.today, number=8)]}, {"chain": [1]}]))
    broker.lpush(FINALIZE_QUEUE, json.dumps(chained))

    spine.wait_for(lambda: spine.day_row(agent)["settled_count"] == 8)
    broker.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(changes=st.dictionaries(st.sampled_from(sorted(event("a", "2026-01-01"))), JSON, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_of_any_shape_end_somewhere(spine: Spine, changes: dict[str, Any]) -> None:
    spine.worker.app.set_current()
    outcome = spine.deliver({**event("agent-7", spine.today), **changes})

    assert outcome["settled"] + outcome["duplicates"] + outcome["dead_letters"] == 1


@given(item=st.binary() | st.text() | JSON.map(json.dumps) | JSON.map(lambda body: json.dumps(envelope(body))))
def test_every_item_of_the_queue_becomes_a_message_that_celery_takes(item: bytes | str) -> None:
    made = json.loads(well_formed(FINALIZE_QUEUE, item))

    args, kwargs, embed = json.loads(base64.b64decode(made["body"]))
    assert (made["headers"]["task"], made["content-type"]) == (FINALIZE_TASK, "application/json")
    assert args == []
    assert embed == {}
    assert set(kwargs) in ({"events"}, {UNREADABLE})


def test_messages_of_other_queues_are_not_looked_at() -> None:
    assert well_formed(b"celery", b"anything") == b"anything"
