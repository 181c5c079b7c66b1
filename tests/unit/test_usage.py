"""A usage that does not tell what a call used is refused, never guessed; what it tells is counted once."""

from __future__ import annotations

from collections import UserList
from enum import IntEnum, StrEnum
from types import SimpleNamespace
from typing import Any

import pytest

from daycap.errors import InvalidInput
from daycap.money import MAX_MICROS
from daycap.pricing.usage import read_usage
from daycap.pricing.usage_fields import merged
from daycap.pricing.used_tokens import Part

CHAT = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
RESPONSES = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
GOOGLE = {"prompt_token_count": 100, "candidates_token_count": 20, "total_token_count": 120}


class Modality(IntEnum):
    """As Google's proto classes have it."""

    AUDIO = 4


class MediaModality(StrEnum):
    """As its newer client has it."""

    AUDIO = "AUDIO"


def used(usage: Any) -> set[tuple[Any, ...]]:
    """The parts without what they leave open at their ends."""
    parts = set()
    for part in read_usage(usage).parts:
        fields: tuple[Any, ...] = part
        while not fields[-1]:
            fields = fields[:-1]
        parts.add(fields)
    return parts


@pytest.mark.parametrize("usage", [CHAT, RESPONSES, GOOGLE])
def test_each_shape_is_read_from_a_dict_and_from_an_object(usage: dict[str, int]) -> None:
    expected = {(100, "input", "", "text"), (20, "output", "", "text")}

    assert used(usage) == expected
    assert used(SimpleNamespace(**usage)) == expected
    assert read_usage(usage).web_searches == 0


def test_jsons_camel_case_is_read_as_well() -> None:
    google = {"promptTokenCount": 100, "candidatesTokenCount": 20, "thoughtsTokenCount": 7, "totalTokenCount": 127}
    bedrock = {
        "inputTokens": 100,
        "outputTokens": 20,
        "cacheReadInputTokens": 50,
        "cacheWriteInputTokens": 30,
        "totalTokens": 200,
    }

    assert used(google) == {
        (100, "input", "", "text"),
        (7, "output", "reasoning", "text"),
        (20, "output", "", "text"),
    }
    assert used(bedrock) == {
        (30, "input", "cache_write", "text"),
        (50, "input", "cache_read", "text"),
        (100, "input", "", "text"),
        (20, "output", "", "text"),
    }


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        7,
        "prompt_tokens",
        [CHAT],
        SimpleNamespace(),
        {"tokens": 7},
        {"prompt_tokens": 100},
        {"completion_tokens": 20},
        {"prompt_tokens": 100, "total_tokens": 120},
        {"prompt_tokens": 100, "completion_tokens": None, "total_tokens": 100},
        {"prompt_tokens": None, "completion_tokens": 20},
        {"input_tokens": 100},
        {"input_tokens": 100, "output_tokens": None},
        {"input_tokens": None, "output_tokens": 20, "cache_read_input_tokens": 5},
        {"output_tokens": 20},
        {"prompt_token_count": 100},
        {"prompt_token_count": 100, "thoughts_token_count": 5},
        {"prompt_token_count": None, "candidates_token_count": 20, "total_token_count": 120},
        {"candidates_token_count": 20, "total_token_count": 120},
    ],
)
def test_a_usage_that_does_not_tell_all_is_refused(usage: Any) -> None:
    with pytest.raises(InvalidInput, match="usage"):
        read_usage(usage)


@pytest.mark.parametrize("bad", [-1, True, False, 1.0, "7", 2**53, [7]])
@pytest.mark.parametrize(
    ("usage", "field"),
    [
        (CHAT, "prompt_tokens"),
        (CHAT, "completion_tokens"),
        (CHAT, "total_tokens"),
        (RESPONSES, "input_tokens"),
        (RESPONSES, "output_tokens"),
        (RESPONSES, "cache_read_input_tokens"),
        (RESPONSES, "cache_creation_input_tokens"),
        (GOOGLE, "prompt_token_count"),
        (GOOGLE, "candidates_token_count"),
        (GOOGLE, "thoughts_token_count"),
        (GOOGLE, "cached_content_token_count"),
        (GOOGLE, "tool_use_prompt_token_count"),
    ],
)
def test_what_is_not_a_count_is_refused_by_name(usage: dict[str, int], field: str, bad: object) -> None:
    with pytest.raises(InvalidInput, match=rf"usage\.{field}"):
        read_usage({**usage, field: bad})


@pytest.mark.parametrize("bad", [-1, True, 0.5])
def test_what_is_not_a_count_among_the_details_is_refused_by_name(bad: object) -> None:
    with pytest.raises(InvalidInput, match=r"usage\.prompt_tokens_details\.cached_tokens"):
        read_usage({**CHAT, "prompt_tokens_details": {"cached_tokens": bad}})
    with pytest.raises(InvalidInput, match=r"usage\.prompt_tokens_details is"):
        read_usage({**CHAT, "prompt_tokens_details": 7})
    with pytest.raises(InvalidInput, match=r"usage\.prompt_tokens_details\[\]\.token_count"):
        read_usage({**GOOGLE, "prompt_tokens_details": [{"modality": "AUDIO", "token_count": bad}]})


@pytest.mark.parametrize(
    "usage",
    [
        {**CHAT, "prompt_tokens_details": {"cached_tokens": 101}},
        {**CHAT, "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 41}},
        {**CHAT, "prompt_tokens_details": {"audio_tokens": 60, "image_tokens": 41}},
        {**CHAT, "completion_tokens_details": {"reasoning_tokens": 21}},
        {**RESPONSES, "input_tokens_details": {"cached_tokens": 5}, "cache_read_input_tokens": 5},
        {**RESPONSES, "cache_creation_input_tokens": 5, "cache_creation": {"ephemeral_1h_input_tokens": 6}},
        {**GOOGLE, "cached_content_token_count": 101},
        {**GOOGLE, "candidates_tokens_details": [{"modality": "IMAGE", "token_count": 21}]},
    ],
)
def test_a_usage_at_odds_with_itself_is_refused(usage: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"in all, but|both within"):
        read_usage(usage)


@pytest.mark.parametrize("usage", [{"input_tokens": 100}, {"input_tokens": 100, "output_tokens": None}])
def test_the_error_says_which_count_is_missing(usage: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="usage has no output_tokens"):
        read_usage(usage)


def test_an_embedding_says_that_nothing_came_out() -> None:
    embedding = {"prompt_tokens": 100, "total_tokens": 100}

    assert used(embedding) == used(SimpleNamespace(**embedding)) == {(100, "input", "", "text")}
    with pytest.raises(InvalidInput, match="completion_tokens"):
        read_usage(SimpleNamespace(**embedding, completion_tokens=None))


def test_the_largest_count_is_one() -> None:
    assert read_usage({"input_tokens": MAX_MICROS, "output_tokens": 0}).input_tokens == MAX_MICROS


def test_googles_counts_are_added_where_there_is_no_total() -> None:
    usage = {
        "prompt_token_count": 100,
        "tool_use_prompt_token_count": 11,
        "candidates_token_count": 20,
        "thoughts_token_count": 7,
    }
    assert (read_usage(usage).input_tokens, read_usage(usage).output_tokens) == (111, 27)


def test_more_cached_of_a_kind_than_there_is_of_it_is_taken_for_text() -> None:
    details = {"cached_tokens": 40, "cached_tokens_details": {"audio_tokens": 35}}

    assert used({**CHAT, "prompt_tokens_details": details}) - {(20, "output", "", "text")} == {
        (40, "input", "cache_read", "text"),
        (60, "input", "", "text"),
    }


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 150},
        {"input_tokens": 100, "output_tokens": 20, "total_tokens": 150},
        {"prompt_token_count": 100, "candidates_token_count": 20, "total_token_count": 150},
        {"prompt_token_count": 100, "total_token_count": 150},
    ],
)
def test_what_the_total_has_beyond_both_came_out(usage: dict[str, int]) -> None:
    assert read_usage(usage).output_tokens == 50


def test_what_is_cached_is_text_first_and_then_what_else_there_is() -> None:
    # Given 100 tokens in, 70 of them audio, 40 of them read from a cache: of which kind is not told.
    usage = {**CHAT, "prompt_tokens_details": {"audio_tokens": 70, "cached_tokens": 40}}

    assert used(usage) - {(20, "output", "", "text")} == {
        (30, "input", "cache_read", "text"),
        (10, "input", "cache_read", "audio"),
        (60, "input", "", "audio"),
    }


@pytest.mark.parametrize(
    "usage",
    [
        {
            **GOOGLE,
            "cached_content_token_count": 40,
            "prompt_tokens_details": [
                {"modality": "AUDIO", "token_count": 70},
                {"modality": "TEXT", "token_count": 30},
            ],
            "cache_tokens_details": [{"modality": "AUDIO", "token_count": 35}],
        },
        {
            **CHAT,
            "prompt_tokens_details": {
                "audio_tokens": 70,
                "cached_tokens": 40,
                "cached_tokens_details": {"audio_tokens": 35},
            },
        },
    ],
)
def test_of_which_kind_was_what_is_cached_is_believed_where_it_is_told(usage: dict[str, Any]) -> None:
    assert used(usage) - {(20, "output", "", "text")} == {
        (35, "input", "cache_read", "audio"),
        (5, "input", "cache_read", "text"),
        (35, "input", "", "audio"),
        (25, "input", "", "text"),
    }


@pytest.mark.parametrize(
    ("said", "service_tier"),
    [
        ({}, ""),
        ({"service_tier": "standard", "speed": "standard"}, ""),
        ({"service_tier": "priority"}, ""),
        ({"service_tier": "batch"}, "batch"),
        ({"service_tier": "standard", "speed": "fast"}, "fast"),
        ({"service_tier": "standard", "inference_geo": "global"}, ""),
        ({"speed": "fast", "inference_geo": "us"}, "inference_geo=us"),
        ({"traffic_type": "ON_DEMAND_PRIORITY"}, "priority"),
        ({"traffic_type": "ON_DEMAND"}, ""),
    ],
)
def test_the_service_tier_is_what_the_usage_says(said: dict[str, str], service_tier: str) -> None:
    assert read_usage({**RESPONSES, **said}).service_tier == service_tier


def test_a_part_is_of_each_kind_that_says_no_more_than_it() -> None:
    part = Part(1, "input", "cache_read", "audio")

    assert part.is_a({"direction": "input"})
    assert part.is_a({"direction": "input", "token_type": "cache_read", "modality": "audio"})
    assert not part.is_a({"direction": "output"})
    assert not part.is_a({"direction": "input", "token_type": "cache_read", "modality": "text"})


@pytest.mark.parametrize(
    ("usage", "unknown"),
    [
        ({**CHAT, "prompt_tokens_details": {"film_tokens": 5}}, "prompt_tokens_details.film_tokens"),
        ({**CHAT, "prompt_tokens_details": {"film_tokens": 5.0}}, "prompt_tokens_details.film_tokens"),
        ({**CHAT, "prompt_tokens_details": {"film_tokens": "5"}}, "prompt_tokens_details.film_tokens"),
        ({**CHAT, "completion_tokens_details": {"song": {"tokens": [0, 5]}}}, "completion_tokens_details.song.tokens"),
        ({**CHAT, "prompt_token_details": {"audio_tokens": 5}}, "prompt_token_details.audio_tokens"),
        ({**CHAT, "num_sources_used": 5}, "num_sources_used"),
        ({**CHAT, "prompt_audio_seconds": 4.5}, "prompt_audio_seconds"),
        ({**CHAT, "server_side_tool_usage_details": {"x_search_calls": 1}}, "x_search_calls"),
        ({**CHAT, "server_tool_use": {"code_execution_requests": 1}}, "code_execution_requests"),
        ({**RESPONSES, "input_tokens_details": {"film_tokens": 5}}, "input_tokens_details.film_tokens"),
        ({**RESPONSES, "input_token_details": {"flow_cache_read": 5}}, "input_token_details.flow_cache_read"),
        ({**RESPONSES, "prompt_tokens_details": {"cached_tokens": 5}}, "prompt_tokens_details.cached_tokens"),
        ({**RESPONSES, "cache_creation": {"ephemeral_9h_input_tokens": 5}}, "cache_creation.ephemeral_9h_input_tokens"),
        ({**RESPONSES, "serverToolUsage": {"webSearchRequests": 1}}, "serverToolUsage.webSearchRequests"),
        ({**GOOGLE, "film_token_count": 5}, "film_token_count"),
        ({**GOOGLE, "prompt_tokens_details": [{"modality": "TEXT", "token_count": 9, "pages": 5}]}, r"\[\].pages"),
    ],
)
def test_an_unknown_count_is_refused(usage: dict[str, Any], unknown: str) -> None:
    class Slotted:
        __slots__ = tuple(usage)

    slotted = Slotted()
    for name, value in usage.items():
        setattr(slotted, name, value)
    forms: tuple[Any, ...] = (usage, SimpleNamespace(**usage), slotted)
    for form in forms:
        with pytest.raises(InvalidInput, match=rf"{unknown} is an unknown count"):
            read_usage(form)


def test_unknown_fields_that_count_nothing_are_left_alone() -> None:
    groq = {"queue_time": 0.04, "prompt_time": 1, "completion_time": 0.2, "total_time": 1.2}
    more = {"film_tokens": 0, "note": "low", "is_byok": True, "tokens_per_sec": 9.5, "list": [], "none": None}

    assert used({**CHAT, **groq, **more, "prompt_tokens_details": more}) == used(CHAT)


def test_a_usage_nested_without_end_is_refused() -> None:
    nested: dict[str, Any] = {"x": 1}
    for _ in range(5000):
        nested = {"x": nested}
    with pytest.raises(InvalidInput, match="unknown count"):
        read_usage({**CHAT, "nested": nested})
    assert merged({"nested": nested}, {"nested": nested}) == {"nested": nested}


@pytest.mark.parametrize(
    "usage",
    [
        {**CHAT, "prompt_cache_hit_tokens": 40, "prompt_cache_miss_tokens": 61},
        {**CHAT, "prompt_cache_hit_tokens": 40, "prompt_tokens_details": {"cached_tokens": 30}},
        {**CHAT, "prompt_tokens_details": {"text_tokens": 60, "audio_tokens": 41}},
        {**CHAT, "completion_tokens_details": {"accepted_prediction_tokens": 9, "rejected_prediction_tokens": 12}},
        {**CHAT, "total_tokens": 119},
        {**CHAT, "input_tokens": 99},
        {**RESPONSES, "total_tokens": 119},
        {**GOOGLE, "total_token_count": 119},
        {**GOOGLE, "prompt_tokens_details": [{"modality": "TEXT", "token_count": 101}]},
        {
            **RESPONSES,
            "input_tokens_details": {
                "cached_tokens": 5,
                "cached_tokens_details": {"audio_tokens": 6},
                "audio_tokens": 9,
            },
        },
    ],
)
def test_counts_that_contradict_each_other_are_refused(usage: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"in all, but|contradicts itself"):
        read_usage(usage)


@pytest.mark.parametrize("shape", [CHAT, RESPONSES, GOOGLE])
def test_a_usage_without_input_was_not_reported(shape: dict[str, int]) -> None:
    # As the client of Anthropic gives it, when a stream's last event says 0.
    without = {name: 0 if name.startswith(("prompt", "input", "total")) else count for name, count in shape.items()}
    for usage in without, dict.fromkeys(shape, 0):
        with pytest.raises(InvalidInput, match=r"no input tokens.*did not report"):
            read_usage(usage)


@pytest.mark.parametrize("audio", ["AUDIO", "audio", 4, Modality.AUDIO, MediaModality.AUDIO])
@pytest.mark.parametrize("listed", [list, tuple, UserList])
def test_googles_modality_is_a_name_or_a_number(audio: object, listed: Any) -> None:
    details = listed([{"modality": audio, "token_count": 90}, SimpleNamespace(modality=5, token_count=4)])

    assert used({**GOOGLE, "prompt_tokens_details": details}) - {(20, "output", "", "text")} == {
        (90, "input", "", "audio"),
        (4, "input", "", "image"),
        (6, "input", "", "text"),
    }


@pytest.mark.parametrize("unknown", [0, 6, -1, 4.0, True, "4", "MODALITY_UNSPECIFIED", "smell", None])
def test_an_unknown_modality_is_refused(unknown: object) -> None:
    with pytest.raises(InvalidInput, match="modality"):
        read_usage({**GOOGLE, "prompt_tokens_details": [{"modality": unknown, "token_count": 9}]})
    assert used({**GOOGLE, "prompt_tokens_details": [{"modality": unknown, "token_count": 0}]}) == used(GOOGLE)


def test_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not a list"):
        read_usage({**GOOGLE, "prompt_tokens_details": {"modality": 4, "token_count": 9}})


def test_bedrocks_ttls_are_read() -> None:
    bedrock = {
        "inputTokens": 100,
        "outputTokens": 20,
        "totalTokens": 120,
        "cacheWriteInputTokens": 30,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 10}, {"ttl": "5m", "inputTokens": 20}],
    }
    assert used(bedrock) == {
        (10, "input", "cache_write", "text", "1h"),
        (20, "input", "cache_write", "text", "5m"),
        (100, "input", "", "text"),
        (20, "output", "", "text"),
    }


def test_langchains_service_tier_is_in_its_names() -> None:
    usage = {
        **RESPONSES,
        "input_token_details": {"priority": 60, "priority_cache_read": 40},
        "output_token_details": {"priority": 13, "priority_reasoning": 7},
    }
    assert read_usage(usage).service_tier == "priority"
    assert used(usage) == {
        (40, "input", "cache_read", "text"),
        (60, "input", "", "text"),
        (7, "output", "reasoning", "text"),
        (13, "output", "", "text"),
    }
    with pytest.raises(InvalidInput, match="service tier priority"):
        read_usage({**usage, "input_token_details": {"priority": 61, "priority_cache_read": 40}})


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [
        ({"input_tokens": 2100, "output_tokens": 1}, {"input_tokens": 0, "output_tokens": 35}, {"input_tokens": 2100}),
        ({"input_tokens": 2100}, {"input_tokens": None, "output_tokens": 35}, {"input_tokens": 2100}),
        ({"input_tokens": 100}, {"input_tokens": 2100, "output_tokens": 35}, {"input_tokens": 2100}),
        ({"a": {"x": 5, "y": 1}}, {"a": {"x": 0, "z": 2}}, {"a": {"x": 5, "y": 1, "z": 2}}),
        ({"a": {"x": 5}}, {"a": None}, {"a": {"x": 5}}),
        ({"tier": "a", "list": [1]}, {"tier": "b", "list": []}, {"tier": "b", "list": [1]}),
        ({"x": -1, "y": 5}, {"x": 5, "y": -1}, {"x": -1, "y": -1}),
        ({"x": 5}, {"x": "7"}, {"x": "7"}),
    ],
)
def test_a_streams_counts_never_fall(before: dict[str, Any], after: dict[str, Any], whole: dict[str, Any]) -> None:
    assert merged(before, after) == {**whole, **({"output_tokens": 35} if "output_tokens" in after else {})}
