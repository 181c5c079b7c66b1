"""What is read from requests and answers as they pass, without any client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daycap import InvalidInput
from daycap.integrations.http_calls import Bounds, calls_of, costs_nothing, may_be_a_call
from daycap.integrations.http_usage import UsageReader
from daycap.pricing.usage import PricedCall

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
NO_BOUNDS = Bounds()


def call_of(path: str, content: bytes, bounds: Bounds = NO_BOUNDS) -> PricedCall:
    (call,) = calls_of(path, content, bounds)
    return call


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [], "max_tokens": 10, **fields}).encode()


def response(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "max_output_tokens": 10, **fields}).encode()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_streams_usage_is_read_however_its_bytes_are_cut(end: str) -> None:
    events = [
        'event: message_start\ndata: {"type": "message_start", "message": {"usage": {"input_tokens": 3, "x": 1}}}',
        ": a comment",
        'data: {"type": "ping"}',
        'data: {"type": ["usage"], "usage": {}}',
        'data: not json, of a "usage"',
        'data: ["usage"]',
        'data:{"type":"message_delta","usage":{"output_tokens":5,"x":null}}',
        'event: message_stop\ndata: {"type": "message_stop"}',
    ]
    content = "".join(f"{event}\n\n" for event in events).replace("\n", end).encode()
    for cut in range(len(content)):
        reader = UsageReader(200, "Text/Event-Stream; charset=utf-8")

        reader.feed(content[:cut])

        assert reader.feed(content[cut:])
        assert reader.answer.usage == {"input_tokens": 3, "output_tokens": 5, "x": 1}


@pytest.mark.parametrize("last", ['"input_tokens":0,', '"input_tokens":null,', ""])
def test_a_streams_last_event_takes_no_input_back(last: str) -> None:
    reader = UsageReader(200, "text/event-stream")
    start = {"input_tokens": 2100, "output_tokens": 1, "cache_creation": {"ephemeral_1h_input_tokens": 9}}
    reader.feed(f"data: {json.dumps({'type': 'message_start', 'message': {'usage': start}})}\n".encode())
    reader.feed(
        f'data: {{"type":"message_delta","usage":{{{last}"output_tokens":35,"cache_creation":{{}}}}}}\n'
        'data: {"type":"message_stop"}\n'.encode()
    )

    assert reader.answer.usage == {**start, "output_tokens": 35}


OF_CHAT = {"prompt_tokens": 9, "completion_tokens": 1}
MORE_OF_CHAT = {"choices": [{"delta": {"role": "assistant", "content": "more"}}]}
OF_MESSAGE = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}
MORE_OF_MESSAGE = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "more"}}


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([{**MORE_OF_CHAT, "usage": OF_CHAT}, MORE_OF_CHAT], False),
        ([{**MORE_OF_CHAT, "usage": OF_CHAT}, {**MORE_OF_CHAT, "usage": None}], False),
        ([{**MORE_OF_CHAT, "usage": OF_CHAT}, {**MORE_OF_CHAT, "usage": {}}], False),
        ([{**MORE_OF_CHAT, "usage": OF_CHAT}, {"choices": [{"delta": {"role": "assistant", "content": ""}}]}], True),
        ([MORE_OF_CHAT, {**MORE_OF_CHAT, "usage": OF_CHAT}, MORE_OF_CHAT, {"choices": [], "usage": OF_CHAT}], True),
        ([OF_MESSAGE, MORE_OF_MESSAGE, {"type": "message_stop"}], False),
        ([OF_MESSAGE, MORE_OF_MESSAGE, {"type": "message_delta", "usage": {"output_tokens": 7}}], True),
    ],
)
def test_usage_before_more_came_out_is_no_usage(events: list[dict[str, Any]], told: bool) -> None:
    reader = UsageReader(200, "text/event-stream")

    for event in [*map(json.dumps, events), "[DONE]"]:
        reader.feed(f"data: {event}\n\n".encode())

    assert (reader.over, reader.answer.usage is not None) == (True, told)


@pytest.mark.parametrize("said", [b"", b"[]", b"null", b"{", b'{"usage": 7}', b"[" * 100_000, b"\xff"])
def test_what_says_no_usage_is_none(said: bytes) -> None:
    reader = UsageReader(200, "application/json")
    assert not reader.feed(said)
    reader.close(whole=True)

    assert (reader.over, reader.answer.usage) == (True, None)


def test_only_early_rejections_are_free() -> None:
    def not_billed(*, whole: bool) -> set[int]:
        readers = {status: UsageReader(status, "application/json") for status in range(200, 600)}
        for reader in readers.values():
            reader.close(whole=whole)
        return {status for status, reader in readers.items() if reader.not_billed}

    assert not_billed(whole=True) == {*range(300, 400), 400, 401, 402, 403, 404, 405, 413, 415, 422, 429}
    # What a 400 would have said of a filter is not known.
    assert not_billed(whole=False) == not_billed(whole=True) - {400}


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b'{"model": 7}', b"[" * 100_000, b"\xff"])
def test_what_names_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"JSON|model"):
        calls_of(CHAT, content, Bounds(max_output_tokens=10))


def test_what_is_another_kind_of_request_is_no_call() -> None:
    for path in ("/v1/images/generations", "/v1/threads/t/messages", "/v1/completions"):
        assert calls_of(path, body(), Bounds()) == ()


def test_what_goes_in_is_bounded_by_the_bytes_and_what_providers_add() -> None:
    plain, tools = body(messages=[{"role": "user", "content": "é"}]), body(tools=[{"type": "function"}])

    assert call_of(CHAT, plain)["input_tokens"] == len(plain) + 64
    assert call_of(CHAT, tools)["input_tokens"] == len(tools) + 1024


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "document"}]}]}),
        (CHAT, {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]}),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "i"}]}),
        (RESPONSES, {"input": [{"type": "function_call_output", "output": [{"type": "input_file"}]}]}),
        (MESSAGES, {"system": [{"type": "new"}]}),
        (MESSAGES, {"mcp_servers": [{}]}),
        (RESPONSES, {"conversation": "c"}),
        (MESSAGES, {"thread": {"type": "continue", "previous_message_id": "m"}}),
        (RESPONSES, {"input": [{"id": "msg_1"}]}),
        (RESPONSES, {"input": [{"id": "msg_1", "type": None}]}),
        (RESPONSES, {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}),
        (RESPONSES, {"input": [{"type": ["message"]}]}),
        (RESPONSES, {"context_management": [{"type": "compaction", "compact_threshold": 1000}]}),
        (CHAT, {"model": "gpt-4o-search-preview-2025-03-11"}),
        (CHAT, {"model": "openrouter/perplexity/sonar-pro"}),
        (
            MESSAGES,
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}, {"type": "compact_20260112"}]}},
        ),
    ],
)
def test_what_may_be_more_than_its_bytes_needs_a_counter(path: str, fields: Any) -> None:
    content = response(**fields) if path == RESPONSES else body(**fields)
    with pytest.raises(InvalidInput, match="count_tokens"):
        call_of(path, content)

    assert call_of(path, content, Bounds(lambda _: 7))["input_tokens"] == 7


def test_a_tool_of_no_known_type_is_refused() -> None:
    tools: tuple[Any, ...] = ({"type": ["function"]}, {}, "tool", {"google_search": {}})
    for tool in tools:
        with pytest.raises(InvalidInput, match="a tool of type"):
            call_of(CHAT, body(tools=[tool]), Bounds(lambda _: 7))
    with pytest.raises(InvalidInput, match="a tool of type 'live'"):
        call_of(CHAT, body(tools={"type": "live"}), Bounds(lambda _: 7))  # Some servers take one without a list.


def test_texts_are_bounded_by_their_bytes() -> None:
    use = {"type": "tool_use", "id": "t", "name": "draw", "input": {"type": "image", "content": [{"type": "image"}]}}
    messages = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]

    cleared = {"edits": [{"type": "clear_tool_uses_20250919"}]}

    assert call_of(MESSAGES, body(messages=messages, context_management=cleared))

    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    assert call_of(RESPONSES, response(input=[reasoning, {"role": "user", "content": "a"}]))


@pytest.mark.parametrize("fields", [{"fallbacks": "default"}, {"fallbacks": [{"model": "m"}]}, {"models": ["m"]}])
def test_a_call_that_another_model_may_answer_is_refused(fields: Any) -> None:
    with pytest.raises(InvalidInput, match="another model"):
        call_of(CHAT, body(**fields), Bounds(lambda _: 7))


def test_what_is_predicted_may_be_billed_besides_what_comes_out() -> None:
    prediction = {"type": "content", "content": "Größe" * 100}

    most = call_of(CHAT, body(prediction=prediction))["max_output_tokens"]

    assert 710 <= most <= 760, "a token for each byte"


def test_output_limit_counts_every_answer() -> None:
    assert call_of(CHAT, body(n=3, max_completion_tokens=20), Bounds(max_output_tokens=5))["max_output_tokens"] == 60
    assert call_of(CHAT, body(max_tokens=None), Bounds(max_output_tokens=5))["max_output_tokens"] == 5
    assert call_of("/v1/embeddings", b'{"model": "m", "input": "a"}')["max_output_tokens"] == 0


def test_a_call_may_be_said_to_give_nothing_out() -> None:
    assert call_of(CHAT, body(max_tokens=0))["max_output_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "tier"),
    [
        ({}, None),
        ({"service_tier": "auto"}, None),
        ({"service_tier": 7}, None),
        ({"service_tier": "priority"}, "priority"),
        ({"speed": "fast"}, "fast"),
        ({"speed": "standard", "service_tier": "flex"}, "flex"),
        ({"inference_geo": "us", "speed": "fast"}, "inference_geo=us"),
        ({"inference_geo": "global"}, None),
    ],
)
def test_a_tier_that_may_cost_otherwise_is_part_of_the_call(fields: Any, tier: str | None) -> None:
    assert call_of(CHAT, body(max_tokens=5, **fields)).get("service_tier") == tier


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", CHAT, (False, True)),
        ("POST", "/openai/deployments/mine/chat/completions", (False, True)),
        ("POST", "/v1/messages/count_tokens", (True, False)),
        ("POST", "/v1/images/generations", (False, False)),
        ("POST", "/v1/completions", (False, False)),
        ("GET", "/v1/models", (True, False)),
    ],
)
def test_paths_say_what_may_cost(method: str, path: str, expected: tuple[bool, bool]) -> None:
    assert (costs_nothing(method, path), may_be_a_call(path)) == expected
