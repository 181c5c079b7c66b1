"""Whatever arrives in the queue is settled, a duplicate, a conflict or a dead letter; and the worker lives."""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK, OPEN_QUEUE
from tests.events import event
from tests.spine import Spine
from worker.broker import well_formed
from worker.sanitize import REASON, UNREADABLE


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


ODD_MESSAGES: dict[str, Any] = {
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
    "closed and deeply nested": "[" * 100_000 + "]" * 100_000,
    "a deeply nested body": json.dumps(envelope(encoded='[[], {"events": ' + "[" * 5_000 + "]" * 5_000 + "}, {}]")),
    "a type that kombu does not know": json.dumps(envelope(headers__x={"__type__": "x", "__value__": 1}, encoded="[")),
    "arguments of such a type": json.dumps(envelope(encoded='[[{"__type__": "x", "__value__": 1}], {}, {}]')),
    "a number without end": json.dumps(envelope()).replace('"one"', "1" * 5_000),
    "UTF-16": json.dumps(envelope(headers__id="utf-16 body")).encode("utf-16"),
    "a body in UTF-16": json.dumps({**envelope(), "body": base64.b64encode("[[], {}, {}]".encode("utf-16")).decode()}),
    "a lone surrogate": json.dumps({**envelope(properties__body_encoding=...), "body": '[[], {"x": "\ud800"}, {}]'}),
    "50 MB": json.dumps(envelope(encoded='[["' + "x" * 50_000_000 + '"], {}, {}]')),
}


@pytest.mark.parametrize("queue", [FINALIZE_QUEUE, OPEN_QUEUE, CONTROL_QUEUE])
def test_odd_messages_become_dead_letters(spine: Spine, queue: str) -> None:
    agent = spine.add("agent-7", 5_000_000)
    broker = redis.Redis.from_url(spine.settings.broker_url)
    odd = [text for text in ODD_MESSAGES.values() if queue != CONTROL_QUEUE or "daycap.finalize" not in str(text)]

    for number, text in enumerate(odd, start=1):
        broker.lpush(queue, text)
        broker.lpush(FINALIZE_QUEUE, json.dumps(envelope(event(agent, spine.today, number=number))))

    spine.wait_for(lambda: spine.day_row(agent)["settled_count"] == len(odd))
    spine.wait_for(lambda: spine.rows("SELECT count(*) AS n FROM dead_letters")[0]["n"] >= len({*map(str, odd)}))
    assert {row["kind"] for row in spine.rows("SELECT kind FROM dead_letters")} == {"malformed"}
    assert spine.worker.container.status == "running"
    assert spine.ask("daycap.check_ledger") is None
    broker.close()


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("daycap.set_cap", {"agent": "agent-7", "cap_micros": 1.5, "changed_by": "test"}),
        ("daycap.set_cap", {"agent": "agent-7", "cap_micros": True, "changed_by": "test"}),
        ("daycap.set_cap", {"agent": "agent-7", "cap_micros": 2**53, "changed_by": "test"}),
        ("daycap.set_cap", {"agent": ["agent-7"], "cap_micros": 5, "changed_by": "test"}),
        ("daycap.set_cap", {"agent": "agent-7", "cap_micros": 5, "changed_by": 5}),
        ("daycap.set_cap", {"agent": "agent-7", "cap_micros": 5, "changed_by": "a\0b"}),
        ("daycap.set_cap", {"agent": "agent-7", "cap_micros": 5, "changed_by": "\ud800"}),
        ("daycap.set_cap", {"agent": "agent-7", "cap_micros": 5}),
        ("daycap.set_cap", {"agent": "agent-7", "cap_micros": 5, "changed_by": "test", "more": 1}),
        ("daycap.set_status", {"agent": "agent-7", "status": {}, "changed_by": "test"}),
        ("daycap.add_agents", {"caps": ["agent-7"], "changed_by": "test"}),
        ("daycap.add_agents", {"caps": {"a b": 5}, "changed_by": "test"}),
        ("daycap.add_agents", {"caps": {"a": None}, "changed_by": "test"}),
        ("daycap.find_agents", {"agents": 5}),
        ("daycap.find_agents", {"agents": [{}]}),
        ("daycap.find_agents", {"limit": "many"}),
        ("daycap.find_agents", {"limit": -1}),
        ("daycap.find_agents", {"after": 5}),
        ("daycap.add_budget", {"name": "x", "facts": {"agent": "a", "cap_micros": 1.5}, "changed_by": "test"}),
        ("daycap.add_budget", {"name": "x", "facts": {"labels": {"tool": 5}}, "changed_by": "test"}),
        ("daycap.join_group", {"group": "x", "agents": "agent-7", "member_groups": [], "changed_by": "test"}),
        ("daycap.apply_budgets", {"groups_wanted": {"x": ["a"]}, "budgets_wanted": {}, "changed_by": "test"}),
        ("daycap.audit", {"day": "someday"}),
        ("daycap.audit", {"day": 5}),
        ("daycap.open_day", {"agent": "a b", "day": "2026-01-01"}),
        ("daycap.no_such_task", {}),
        ("os.system", {"command": "true"}),
    ],
)
def test_bad_arguments_are_refused_in_words_and_the_worker_lives(
    spine: Spine, task: str, arguments: dict[str, Any]
) -> None:
    spine.add("agent-7", 5_000_000)

    sent = spine.app.send_task(task, kwargs=arguments, queue=CONTROL_QUEUE, ignore_result=False)
    try:
        said = sent.get(timeout=10)
    except Exception as error:
        said = {"error": type(error).__name__, "message": str(error)}

    assert said["error"] in ("InvalidAmount", "InvalidInput", "NotRegistered")
    assert said["message"]
    assert spine.rows("SELECT count(*) AS n FROM cap_changes")[0]["n"] == 1
    assert spine.ask("daycap.check_ledger") is None


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


HEADERS = (
    *("lang", "root_id", "parent_id", "group", "group_index", "meth", "shadow", "eta", "expires", "retries"),
    *("timelimit", "argsrepr", "kwargsrepr", "origin", "ignore_result", "stamped_headers", "stamps"),
    *("replaced_task_nesting", "delay", "delivery_info", "redelivered", "reply_to", "daycap_sent_ms", "__proto__"),
)
NONSENSE = (5, -1.5, "soon", "\ud800", [1, 2], {"a": 1}, {"__type__": "uuid", "__value__": "no"}, True, None)


def test_nonsense_in_a_header_changes_nothing(spine: Spine) -> None:
    agent = spine.add("agent-7", 5_000_000)
    broker = redis.Redis.from_url(spine.settings.broker_url)
    pairs = [(name, value) for name in HEADERS for value in NONSENSE]

    for number, (name, value) in enumerate(pairs, start=1):
        message = envelope(event(agent, spine.today, number=number, actual=1))
        message["headers"][name] = value
        broker.lpush(FINALIZE_QUEUE, json.dumps(message))
        broker.lpush(CONTROL_QUEUE, json.dumps(envelope(encoded="[[], {}, {}]", headers__task="daycap.check_ledger")))

    spine.wait_for(lambda: spine.day_row(agent)["settled_count"] == len(pairs))
    assert spine.ask("daycap.check_ledger") is None
    assert spine.rows("SELECT * FROM dead_letters") == []
    broker.close()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_one_bad_event_does_not_stop_the_rest_of_its_message(spine: Spine) -> None:
    agent = spine.add("agent-7", 5_000_000)
    broker = redis.Redis.from_url(spine.settings.broker_url)
    bad = {
        "a number without end": json.dumps(event(agent, spine.today)).replace("31200", "1" * 5_000),
        "not a number": json.dumps(event(agent, spine.today, actual=float("nan"))),
        "infinity": json.dumps(event(agent, spine.today, held=float("-inf"))),
        "more than a float can say": json.dumps(event(agent, spine.today)).replace("31200", "1e999"),
        "nested": json.dumps(event(agent, spine.today, actual=nested(600))),
        "a type of kombu's": json.dumps({"__type__": "decimal", "__value__": "no decimal"}),
        "a type that nobody knows": json.dumps(event(agent, spine.today, at_ms={"__type__": "x", "__value__": 1})),
        "a newline": json.dumps(event(f"{agent}\n", spine.today)),
        "a newline in a hold": json.dumps(event(agent, spine.today, reservation="a" * 32 + "-1\n")),
        "NUL": json.dumps(event("a\0b", spine.today)),
        "a lone surrogate": json.dumps(event("\ud800", spine.today)),
    }
    good = [json.dumps(event(agent, spine.today, number=number)) for number in (1, 2)]
    # Fields that version 1 does not know are ignored, whatever is in them; of a field that comes twice the last counts.
    odd = json.dumps(event(agent, spine.today, number=3, more=nested(20), text="\0\ud800"))
    twice = json.dumps(event(agent, spine.today, number=4)).replace('"v"', '"actual": 9, "v"')
    message = envelope(
        encoded=f'[[], {{"events": [{", ".join([good[0], *bad.values(), odd, twice, good[1]])}]}}, {{}}]'
    )

    broker.lpush(FINALIZE_QUEUE, json.dumps(message))

    spine.wait_for(lambda: spine.day_row(agent)["settled_count"] == 4)
    assert spine.day_row(agent)["spent_micros"] == 4 * 31_200
    letters = spine.rows("SELECT kind, payload FROM dead_letters")
    assert {letter["kind"] for letter in letters} == {"malformed"}
    assert len(letters) == len(bad)
    broker.close()


def test_events_that_are_nested_more_and_more_are_all_kept(spine: Spine) -> None:
    # Somewhere on the way the worker can read what Celery, deeper in the stack, no longer can.
    spine.add("agent-7", 5_000_000)
    broker = redis.Redis.from_url(spine.settings.broker_url)
    depths = range(20, 1_100, 20)

    for depth in depths:
        body = f'[[], {{"events": [{"[" * depth}{"]" * depth}]}}, {{}}]'
        broker.lpush(FINALIZE_QUEUE, json.dumps(envelope(encoded=body)))

    spine.wait_for(lambda: spine.rows("SELECT count(*) AS n FROM dead_letters")[0]["n"] == len(depths))
    broker.close()


def test_a_message_of_more_events_than_allowed_is_settled_in_parts(spine: Spine) -> None:
    agent = spine.add("agent-7", 5_000_000)
    events = [event(agent, spine.today, number=number, actual=1) for number in range(1, 2_002)]

    assert spine.deliver(*events)["settled"] == 2_001
    assert spine.deliver(*events)["duplicates"] == 2_001


MB = 1_000_000
TOO_LARGE: dict[str, Callable[[], str]] = {
    "many events": lambda: '{"events": [' + "0, " * (MB // 4) + "0]}",
    "2 MB of events": lambda: '{"events": [' + "0, " * (2 * MB // 3) + "0]}",
    "8 MB of events": lambda: '{"events": [' + "0, " * (8 * MB // 3) + "0]}",
    "8 MB of text": lambda: json.dumps({"events": ["x" * 8 * MB]}),
    "8 MB of digits": lambda: '{"events": [' + "9" * 8 * MB + "]}",
    "8 MB of brackets": lambda: "[" * 8 * MB,
    "8 MB of objects": lambda: '{"events": [' + "{}, " * (2 * MB) + "{}]}",
}


@pytest.mark.parametrize("encoding", ["base64", None])
@pytest.mark.parametrize("what", TOO_LARGE)
def test_a_large_message_is_one_dead_letter(spine: Spine, what: str, encoding: str | None) -> None:
    agent = spine.add("agent-7", 5_000_000)
    body = f"[[], {TOO_LARGE[what]()}, {{}}]"
    good = event(agent, spine.today)
    began_s = time.monotonic()

    push(spine, body, encoding)
    push(spine, json.dumps([[], {"events": [good]}, {}]), encoding)

    spine.wait_for(lambda: spine.rows("SELECT * FROM settlements"))
    assert time.monotonic() - began_s < 3
    (letter,) = spine.rows("SELECT kind, reason, times, length(payload) AS length FROM dead_letters")
    assert (letter["kind"], letter["times"]) == ("malformed", 1)
    assert letter["length"] <= MB
    assert "a message of " in letter["reason"]


def test_a_compressed_message_is_not_unpacked(spine: Spine) -> None:
    bomb = base64.b64encode(zlib.compress(b"0" * 200 * MB)).decode()
    push(spine, bomb, None, compression="application/x-gzip")
    push(spine, bomb, "base64", compression="application/x-gzip")

    spine.wait_for(lambda: len(spine.rows("SELECT * FROM dead_letters")) == 2)
    assert spine.worker.container.status == "running"


def push(spine: Spine, body: str, encoding: str | None, **headers: str) -> None:
    """Put a message at the end of the queue."""
    made = envelope(encoded=body)
    made["headers"] |= {"ignore_result": True, **headers}
    if encoding is None:
        made |= {"body": body}
        del made["properties"]["body_encoding"]
    with redis.Redis.from_url(spine.settings.broker_url) as broker:
        broker.lpush(FINALIZE_QUEUE, json.dumps(made))


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

    args, kwargs, embed = json.loads(made["body"])
    assert (made["headers"]["task"], made["content-type"]) == (FINALIZE_TASK, "application/json")
    assert args == []
    assert embed == {}
    assert set(kwargs) in ({"events"}, {UNREADABLE, REASON})


def test_messages_of_other_queues_are_not_looked_at() -> None:
    assert well_formed(b"celery", b"anything") == b"anything"
