"""Which price a call has: by context, hour, date, service tier and kind of token. The prices are made up here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal, localcontext
from typing import Any

import pytest
from genai_prices.data_snapshot import DataSnapshot, get_snapshot, set_custom_snapshot
from genai_prices.types import (
    ClauseEquals,
    ClauseStartsWith,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)

from daycap import InvalidAmount, InvalidInput, UnknownModel
from daycap.prices import Prices

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def flat(**prices: str) -> ModelPrice:
    """Prices in dollars by genai-prices' keys."""
    return ModelPrice(**{key: Decimal(price) for key, price in prices.items()})


def tiered(base: int, *tiers: tuple[int, int]) -> TieredPrices:
    return TieredPrices(Decimal(base), [Tier(start, Decimal(price)) for start, price in tiers])


def model(name: str, prices: ModelPrice | list[ConditionalPrice], *variants: PriceVariant) -> ModelInfo:
    return ModelInfo(name, ClauseEquals(name), prices=prices, price_variants=list(variants))


MODELS = [
    model("plain", flat(input_mtok="1", output_mtok="4")),
    model("odd", flat(input_mtok="0.1", output_mtok="0.0000001")),
    model(
        "cached",
        flat(input_mtok="10", cache_read_mtok="1", cache_write_mtok="12.5", cache_write_1h_mtok="20", output_mtok="50"),
    ),
    model(
        "audio",
        flat(
            input_mtok="2",
            cache_read_mtok="1",
            input_audio_mtok="40",
            cache_audio_read_mtok="3",
            output_mtok="8",
            output_audio_mtok="80",
            output_reasoning_mtok="9",
        ),
    ),
    model("reasoning", flat(input_mtok="2", output_mtok="8", output_reasoning_mtok="9")),
    model("large", ModelPrice(input_mtok=tiered(1, (100, 3), (200, 2)), output_mtok=tiered(10, (100, 20)))),
    model(
        "hours",
        [
            ConditionalPrice(prices=flat(input_mtok="1", output_mtok="2")),
            ConditionalPrice(
                TimeOfDateConstraint(time(16, tzinfo=UTC), time(8, tzinfo=UTC)),
                prices=flat(input_mtok="3", output_mtok="6"),
            ),
        ],
    ),
    model(
        "cheap nights",
        [
            ConditionalPrice(prices=flat(input_mtok="3", output_mtok="6")),
            ConditionalPrice(TimeOfDateConstraint(time(20), time(8)), prices=flat(input_mtok="1", output_mtok="2")),
        ],
    ),
    model(
        "falls",
        [
            ConditionalPrice(prices=flat(input_mtok="9", output_mtok="9")),
            ConditionalPrice(StartDateConstraint(date(2026, 11, 25)), prices=flat(input_mtok="1", output_mtok="1")),
        ],
    ),
    model(
        "begins",
        [
            ConditionalPrice(StartDateConstraint(date(2027, 1, 1)), prices=flat(input_mtok="9", output_mtok="9")),
            ConditionalPrice(StartDateConstraint(date(2028, 1, 1)), prices=flat(input_mtok="8", output_mtok="8")),
        ],
    ),
    model(
        "dates",
        [
            ConditionalPrice(prices=flat(input_mtok="9", output_mtok="9")),
            ConditionalPrice(StartDateConstraint(date(2026, 1, 1)), prices=flat(input_mtok="1", output_mtok="1")),
            ConditionalPrice(StartDateConstraint(date(2026, 11, 25)), prices=flat(input_mtok="2", output_mtok="2")),
            ConditionalPrice(StartDateConstraint(date(2026, 11, 26)), prices=flat(input_mtok="7", output_mtok="7")),
        ],
    ),
    model(
        "tiers",
        flat(input_mtok="4", output_mtok="8", cache_read_mtok="1"),
        PriceVariant({"service_tier": "priority"}, flat(input_mtok="6", output_mtok="16")),
        PriceVariant({"processing": "batch"}, flat(input_mtok="2", output_mtok="4")),
        PriceVariant({"service_tier": "fast"}, flat(input_mtok="60"), StartDateConstraint(date(2026, 11, 25))),
        PriceVariant({"speed": "fast"}, flat(input_mtok="50", output_mtok="70")),
        PriceVariant({"service_tier": "soon"}, flat(input_mtok="60"), StartDateConstraint(date(2026, 11, 25))),
        PriceVariant({"service_tier": "night"}, flat(input_mtok="7"), TimeOfDateConstraint(time(20), time(8))),
    ),
    model(
        "requests",
        flat(input_mtok="1", requests_kcount="5"),
        PriceVariant({"search_type": "web"}, flat(requests_kcount="7")),
        PriceVariant({"search_type": "flex"}, flat(requests_kcount="3")),
    ),
    model("searches", flat(input_mtok="1", output_mtok="1", web_searches_kcount="10", requests_kcount="5")),
    model("a-search-preview", flat(input_mtok="1", output_mtok="1", web_searches_kcount="10")),
    model("a-search-api", flat(input_mtok="1", output_mtok="1")),
    model("sonar", flat(input_mtok="1", output_mtok="1", requests_kcount="5")),
    model("embedding", flat(input_mtok="0.02")),
    model("whisper", flat(input_mtok="1", output_mtok="1", audio_hours="0.36")),
    ModelInfo("many", ClauseStartsWith("many-"), prices=flat(input_mtok="1")),
    model("priceless", ModelPrice()),
    model("gift:free", ModelPrice()),
]
SHOP = Provider("shop", "Shop", "", model_match=ClauseStartsWith(""), models=MODELS)
AZURE = Provider("azure", "Azure", "", fallback_model_providers=["shop"], models=[model("own", MODELS[0].prices)])
GOOGLE = Provider("google", "Google", "", models=[model("gem", flat(input_mtok="5", output_mtok="5"))])


@pytest.fixture(autouse=True)
def _the_shop() -> Iterator[None]:
    set_custom_snapshot(DataSnapshot([SHOP, AZURE, GOOGLE], from_auto_update=False))
    yield
    set_custom_snapshot(None)


def worst(name: str, input_tokens: int = 0, max_output_tokens: int = 0, *, now: datetime = NOON, **how: Any) -> int:
    prices = Prices(now=lambda: now)
    return prices.worst_case_micros(name, input_tokens=input_tokens, max_output_tokens=max_output_tokens, **how)


def actual(name: str, prompt: int, completion: int, *, now: datetime = NOON, **how: Any) -> int:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    for each in ("prompt_tokens_details", "completion_tokens_details"):
        if each in how:
            usage[each] = how.pop(each)
    return Prices(now=lambda: now).actual_micros(name, usage, **how)


def test_a_price_for_a_million_in_dollars_is_one_for_a_token_in_micros() -> None:
    assert worst("plain", 1000, 500) == 1000 + 2000
    assert actual("plain", 1000, 500) == 1000 + 2000


def test_fractions_round_up_once_in_any_context() -> None:
    with localcontext(prec=2, rounding="ROUND_DOWN"):
        assert worst("odd", 11) == actual("odd", 11, 0) == 2
        assert worst("odd", 10) == actual("odd", 10, 0) == 1
        assert worst("odd", 10, 1) == actual("odd", 10, 1) == 2
        assert worst("plain", 123_457) == actual("plain", 123_457, 0) == 123_457


def test_the_worst_case_writes_all_into_the_dearest_cache() -> None:
    assert worst("cached", 1000) == 20_000


def test_each_kind_of_cached_token_has_its_own_price() -> None:
    usage = {
        "input_tokens": 100,
        "cache_read_input_tokens": 10,
        "cache_creation_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2},
        "output_tokens": 1,
    }
    # 2 of the 7 are neither 5m nor 1h: they have the usual price of a write, as 5m has where it has none of its own.
    assert Prices.default().actual_micros("cached", usage) == 100 * 10 + 10 * 1 + 40 + 63 + 50  # 5 * 12.5 rounded up


def test_unpriced_kind_takes_the_wider_price() -> None:
    details = {"cached_tokens": 10, "cache_write_tokens": 5, "audio_tokens": 3}
    assert actual("plain", 100, 10, prompt_tokens_details=details) == 100 + 40


def test_the_closest_kind_with_a_price_counts() -> None:
    cached_audio = {"audio_tokens": 100, "cached_tokens": 30}
    assert actual("audio", 100, 0, prompt_tokens_details=cached_audio) == 70 * 40 + 30 * 3
    spoken = {"audio_tokens": 5, "reasoning_tokens": 2, "text_tokens": 3}
    assert actual("audio", 1, 10, completion_tokens_details=spoken) == 2 + 5 * 80 + 2 * 9 + 3 * 8
    assert worst("audio", 1, 1) == 40 + 80


def test_the_worst_case_is_all_reasoning_where_that_is_dearest() -> None:
    assert (
        worst("reasoning", 0, 10) == actual("reasoning", 1, 10, completion_tokens_details={"reasoning_tokens": 10}) - 2
    )
    assert worst("reasoning", 0, 10) == 90


def test_unpriced_cache_time_is_refused() -> None:
    kept = {"cache_write_tokens": 5, "cache_write_tokens_details": {"ttl_30m_tokens": 4, "ttl_12h_tokens": 1}}
    with pytest.raises(UnknownModel, match="12h"):
        Prices.default().actual_micros("cached", {"input_tokens": 9, "output_tokens": 1, "input_tokens_details": kept})

    kept["cache_write_tokens_details"] = {"ttl_30m_tokens": 5, "ttl_12h_tokens": 0}
    usage = {"input_tokens": 9, "output_tokens": 0, "input_tokens_details": kept}
    assert Prices.default().actual_micros("cached", usage) == 40 + 63


@pytest.mark.parametrize(
    ("prompt", "input_price", "output_price"), [(1, 1, 10), (100, 1, 10), (101, 3, 20), (200, 3, 20), (201, 2, 20)]
)
def test_a_context_past_a_start_has_its_price_for_all_tokens(prompt: int, input_price: int, output_price: int) -> None:
    assert actual("large", prompt, 7) == prompt * input_price + 7 * output_price


def test_what_is_cached_belongs_to_the_context() -> None:
    usage = {"input_tokens": 1, "cache_read_input_tokens": 100, "output_tokens": 1}
    assert Prices.default().actual_micros("large", usage) == 101 * 3 + 20


def test_the_worst_case_takes_the_dearest_context_that_can_be_reached() -> None:
    assert worst("large", 100, 1) == 100 * 1 + 10
    assert worst("large", 101, 1) == 101 * 3 + 20
    assert worst("large", 201, 1) == 201 * 3 + 20  # A call of 200 would be dearer for each token.


@pytest.mark.parametrize(("hour", "price"), [(7, 3), (8, 1), (12, 1), (16, 3), (23, 3)])
def test_price_follows_the_hour(hour: int, price: int) -> None:
    now = datetime(2026, 11, 24, hour, tzinfo=UTC)
    assert actual("hours", 10, 0, now=now) == 10 * price
    assert worst("hours", 10, 1, now=now) == 10 * 3 + 6


def test_a_discount_at_night_is_no_worst_case_at_night() -> None:
    night = datetime(2026, 11, 24, 23, tzinfo=UTC)
    assert actual("cheap nights", 10, 0, now=night) == 10
    assert worst("cheap nights", 10, now=night) == 30


def test_a_price_that_falls_tomorrow_is_todays_today() -> None:
    assert actual("falls", 10, 0) == worst("falls", 10) == 90


def test_before_its_first_price_a_model_has_that() -> None:
    assert actual("begins", 10, 0) == worst("begins", 10) == 90


@pytest.mark.parametrize(
    ("day", "price", "dearest"),
    [("2025-12-30", 9, 9), ("2026-11-23", 1, 1), ("2026-11-24", 1, 2), ("2026-11-25", 2, 7)],
)
def test_prices_may_begin_tomorrow_only(day: str, price: int, dearest: int) -> None:
    now = datetime.fromisoformat(f"{day}T12:00:00+00:00")
    assert actual("dates", 10, 0, now=now) == 10 * price
    assert worst("dates", 10, now=now) == 10 * dearest


def test_service_tier_has_its_own_price() -> None:
    details = {"cached_tokens": 50}
    assert actual("tiers", 100, 10, service_tier="priority", prompt_tokens_details=details) == 300 + 50 + 160
    assert actual("tiers", 100, 10, service_tier="batch") == 200 + 40
    assert actual("tiers", 100, 10, service_tier="Priority") == 600 + 160
    for usual in (None, "", "auto", "default", "flex", "on_demand", "scale", "standard", "standard_only"):
        assert actual("tiers", 100, 10, service_tier=usual) == worst("tiers", 100, 10, service_tier=usual) == 480
    with pytest.raises(InvalidInput, match="service_tier"):
        worst("tiers", 100, 10, service_tier=["priority"])


def test_tiers_worst_case_covers_the_usual_one() -> None:
    assert worst("tiers", 100, 10, service_tier="priority") == 600 + 160
    assert worst("tiers", 100, 10, service_tier="batch") == worst("tiers", 100, 10) == 480


def test_a_service_tiers_price_of_tomorrow_is_possible_today() -> None:
    tomorrow = datetime(2026, 11, 25, tzinfo=UTC)
    assert actual("tiers", 100, 10, service_tier="fast") == 5000 + 700
    assert worst("tiers", 100, 10, service_tier="fast") == 6000 + 700
    assert actual("tiers", 100, 10, service_tier="fast", now=tomorrow) == 6000 + 700


def test_a_dearer_service_tier_has_no_price_before_its_first_one_begins() -> None:
    with pytest.raises(UnknownModel, match="soon"):
        worst("tiers", 100, service_tier="soon")
    with pytest.raises(UnknownModel, match="soon"):
        actual("tiers", 100, 1, service_tier="soon")
    assert worst("tiers", 100, service_tier="soon", now=datetime(2026, 11, 25, tzinfo=UTC)) == 6000


def test_a_service_tiers_price_by_the_hour_is_possible_at_any_hour() -> None:
    assert actual("tiers", 100, 0, service_tier="night") == 400
    assert worst("tiers", 100, service_tier="night") == 700


def test_usages_service_tier_goes_before_the_callers() -> None:
    usage = {"input_tokens": 100, "output_tokens": 10, "service_tier": "batch"}
    assert Prices.default().actual_micros("tiers", usage, service_tier="priority") == 240


@pytest.mark.parametrize(("name", "provider"), [("plain", None), ("tiers", "azure")])
def test_a_dearer_service_tier_without_prices_is_refused(name: str, provider: str | None) -> None:
    # Azure sells the shop's models at its usual prices; what its service tiers cost is not known.
    with pytest.raises(UnknownModel, match="priority"):
        worst(name, 1, provider=provider, service_tier="priority")
    with pytest.raises(UnknownModel, match="priority"):
        actual(name, 1, 1, provider=provider, service_tier="priority")
    assert worst(name, 1, provider=provider, service_tier="flex") == worst(name, 1)


def test_requests_and_searches_are_paid_for_each() -> None:
    assert worst("searches") == 5000
    assert worst("searches", 1, 1, max_web_searches=3) == 5000 + 2 + 30_000
    usage = {"input_tokens": 1, "output_tokens": 1, "server_tool_use": {"web_search_requests": 2}}
    assert Prices.default().actual_micros("searches", usage) == 5000 + 2 + 20_000
    with pytest.raises(UnknownModel, match="web searches"):
        Prices.default().actual_micros("plain", usage)
    with pytest.raises(UnknownModel, match="web searches"):
        worst("plain", max_web_searches=1)


def test_model_that_always_searches_is_charged_for_it() -> None:
    told = {"prompt_tokens": 1, "completion_tokens": 1, "server_tool_use": {"web_search_requests": 2}}
    assert worst("a-search-preview", 1, 1) == actual("a-search-preview", 1, 1) == 2 + 10_000
    assert worst("a-search-preview", 1, 1, max_web_searches=2) == 2 + 20_000
    assert Prices.default().actual_micros("a-search-preview", told) == 2 + 20_000
    assert worst("sonar", 1, 1) == actual("sonar", 1, 1) == 2 + 5000
    with pytest.raises(UnknownModel, match="web searches"):
        worst("a-search-api", 1, 1)
    with pytest.raises(UnknownModel, match="web searches"):
        actual("a-search-api", 1, 1)


@pytest.mark.parametrize(("tier", "micros", "most"), [("", 5000, 5000), ("web", 7000, 7000), ("flex", 3000, 5000)])
def test_a_request_may_cost_more_in_a_service_tier(tier: str, micros: int, most: int) -> None:
    assert actual("requests", 1, 0, service_tier=tier) == micros + 1
    assert worst("requests", 1, service_tier=tier) == most + 1


def test_an_embedding_has_no_price_for_what_comes_out() -> None:
    assert worst("embedding", 100) == Prices.default().actual_micros(
        "embedding", {"prompt_tokens": 100, "total_tokens": 100}
    )
    with pytest.raises(UnknownModel, match="output tokens"):
        worst("embedding", 100, 1)
    with pytest.raises(UnknownModel, match="output tokens"):
        actual("embedding", 100, 1)


def test_no_price_at_all_is_not_taken_for_free_unless_it_is_called_so() -> None:
    with pytest.raises(UnknownModel, match="not what it costs"):
        worst("priceless", 1)
    with pytest.raises(UnknownModel, match="not what it costs"):
        actual("priceless", 1, 1)
    assert worst("gift:free", 1, 1) == actual("gift:free", 1, 1) == 0


def test_what_is_billed_by_more_than_tokens_is_refused() -> None:
    with pytest.raises(UnknownModel, match="audio_hours"):
        worst("whisper", 1)
    with pytest.raises(UnknownModel, match="audio_hours"):
        actual("whisper", 1, 1)


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("plain", None),
        ("PLAIN", None),
        ("shop/plain", None),
        ("plain", "shop"),
        ("plain", " Shop "),
        ("shop/plain", "shop"),
        ("azure/plain", None),
        ("azure_ai/own", None),
        ("azure/chat/own", None),
    ],
)
def test_a_model_is_found_by_each_spelling(name: str, provider: str | None) -> None:
    assert worst(name, 10, 1, provider=provider) == 14


@pytest.mark.parametrize("name", ["models/gem", "gemini/gem", "vertex_ai/gem", "gemini/models/gem"])
def test_litellms_and_googles_names_for_google_are_known(name: str) -> None:
    assert worst(name, 10, 1) == 55


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("nonesuch", None),
        ("", None),
        ("/", None),
        ("gateway/plain", None),
        ("shop_like/plain", None),
        ("plain", "gateway"),
        ("plain", ""),
        ("google/plain", None),
        ("azure/deployment-7", None),
        ("azure/eu/plain", None),
    ],
)
def test_unknown_model_error_says_how_to_price_it(name: str, provider: str | None) -> None:
    # A model of an unknown provider is not taken for another's of the same name.
    with pytest.raises(UnknownModel, match="DAYCAP_PRICES_FILE") as refused:
        worst(name, 1, provider=provider)
    assert (refused.value.model, refused.value.provider) == (name, provider)


@pytest.mark.parametrize("bad", [-1, True, 1.0, "1", None, 2**53])
@pytest.mark.parametrize("name", ["input_tokens", "max_output_tokens", "max_web_searches"])
def test_what_is_not_a_count_is_refused_by_name(name: str, bad: Any) -> None:
    counts: dict[str, Any] = {"input_tokens": 1, "max_output_tokens": 1, name: bad}
    with pytest.raises(InvalidInput, match=name):
        Prices.default().worst_case_micros("searches", **counts)


@pytest.mark.parametrize(("name", "provider"), [(None, None), (7, None), (["plain"], None), ("plain", 7)])
def test_what_is_not_a_name_is_refused(name: Any, provider: Any) -> None:
    with pytest.raises(InvalidInput, match="strings"):
        worst(name, 1, provider=provider)


def test_more_than_any_amount_is_refused() -> None:
    with pytest.raises(InvalidAmount):
        worst("plain", 1, 2**53 - 1)


def test_prices_that_were_updated_count_at_once() -> None:
    prices = Prices.default()
    assert prices.worst_case_micros("plain", input_tokens=10, max_output_tokens=0) == 10

    # When the snapshot is replaced, as genai-prices' UpdatePrices does
    newer = Provider("shop", "Shop", "", models=[model("plain", flat(input_mtok="2"))], model_match=SHOP.model_match)
    set_custom_snapshot(DataSnapshot([newer], from_auto_update=True))

    # Then what was looked up before is not remembered
    assert prices.worst_case_micros("plain", input_tokens=10, max_output_tokens=0) == 20
    assert get_snapshot().providers == [newer]


def test_only_so_many_names_are_remembered() -> None:
    prices = Prices.default()
    remembered = []
    for number in range(1500):
        prices.worst_case_micros(f"many-{number:04}", input_tokens=1, max_output_tokens=0)
        prices.worst_case_micros(f"many-{number:04}", input_tokens=1, max_output_tokens=0)
        with pytest.raises(UnknownModel):
            prices.worst_case_micros(f"unknown-{number}", input_tokens=1, max_output_tokens=0)
        remembered.append(len(prices._remembered.models))
    assert max(remembered) == 1024
