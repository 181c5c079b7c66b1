"""A usage that does not tell what a call used is refused, never guessed; what it tells is counted once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from daycap.errors import InvalidInput
from daycap.money import MAX_MICROS
from daycap.usage import Part, read_usage

CHAT = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
RESPONSES = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
GOOGLE = {"prompt_token_count": 100, "candidates_token_count": 20, "total_token_count": 120}


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
    with pytest.raises(InvalidInput, match=r"more than that|both among"):
        read_usage(usage)


@pytest.mark.parametrize("usage", [dict.fromkeys(shape, 0) for shape in (CHAT, RESPONSES, GOOGLE)])
def test_a_usage_of_nothing_is_refused_for_it_was_not_reported(usage: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="not reported"):
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
