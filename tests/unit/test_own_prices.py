"""Own prices come first; a file that cannot be used is refused, naming the place."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from daycap import InvalidSetting, UnknownModel
from daycap.prices import Prices
from daycap.settings import Settings
from daycap.wallet.wiring import make_prices

GOOD = """
["gateway/*"]
input = 0.1
output = "2.50"
cached_input = 0.01
cache_write = 0.125
reasoning = 3
request = 0.002
web_search = 0.01

["gateway/special"]
input = 1000
output = 1000

[gpt-4o]
input = 7
output = 7

["azure/my deployment"]
input = 1
output = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prices.toml"


def worst(prices: Prices, model: str, **how: Any) -> int:
    return prices.worst_case_micros(model, input_tokens=1000, max_output_tokens=100, **how)


def as_json(toml: str) -> str:
    return json.dumps(tomllib.loads(toml))


@pytest.mark.parametrize("is_json", [False, True])
def test_each_kind_of_token_has_the_price_that_the_file_says(tmp_path: Path, is_json: bool) -> None:
    path = tmp_path / ("prices.JSON" if is_json else "prices")
    path.write_text(as_json(GOOD) if is_json else GOOD, encoding="utf-8")
    prices = Prices.from_file(path)

    assert worst(prices, "gateway/any") == 125 + 300 + 2000
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 200},
        "completion_tokens_details": {"reasoning_tokens": 40},
        "server_tool_use": {"web_search_requests": 2},
    }
    assert prices.actual_micros("gateway/any", usage) == 50 + 3 + 25 + 150 + 120 + 2000 + 20_000


def test_own_prices_come_first_and_the_first_that_matches_counts(file: Path) -> None:
    file.write_text(GOOD, encoding="utf-8")
    prices = Prices.from_file(file)

    assert worst(prices, "gpt-4o") == 7 * 1100
    assert worst(prices, "GPT-4o") == 7 * 1100
    assert worst(prices, "gateway/special") == worst(prices, "gateway/any")
    # And what it does not name has the price that genai-prices gives it
    assert worst(prices, "gpt-4o-mini") == worst(Prices.default(), "gpt-4o-mini")
    assert worst(prices, "openai/gpt-4o") == worst(Prices.default(), "gpt-4o") < 7 * 1100
    with pytest.raises(UnknownModel):
        worst(prices, "my-gateway/any")


def test_a_pattern_may_name_the_provider(file: Path) -> None:
    file.write_text(GOOD, encoding="utf-8")
    prices = Prices.from_file(file)

    assert worst(prices, "my deployment", provider="azure") == 1100
    assert worst(prices, "azure/my deployment", provider="azure") == 1100
    with pytest.raises(UnknownModel):
        worst(prices, "my deployment")


def test_missing_price_falls_back_to_a_wider_kind(file: Path) -> None:
    file.write_text(GOOD, encoding="utf-8")
    prices = Prices.from_file(file)
    usage = {
        "input_tokens": 1000,
        "cache_read_input_tokens": 50,
        "cache_creation": {"ephemeral_1h_input_tokens": 50},
        "output_tokens": 100,
        "output_tokens_details": {"thinking_tokens": 60},
    }

    assert prices.actual_micros("gpt-4o", usage) == 1200 * 7
    with pytest.raises(UnknownModel, match="web searches"):
        prices.actual_micros("gpt-4o", {**usage, "server_tool_use": {"web_search_requests": 1}})


@pytest.mark.parametrize(("search", "micros"), [("", 1100), ("web_search = 0.01", 1100 + 10_000)])
def test_own_price_says_if_each_call_searches(file: Path, search: str, micros: int) -> None:
    file.write_text(f'["gpt-4o-search-preview"]\ninput = 1\noutput = 1\n{search}\n', encoding="utf-8")

    assert worst(Prices.from_file(file), "gpt-4o-search-preview") == micros


def test_own_prices_cover_tiers_and_cache_times(file: Path) -> None:
    file.write_text(GOOD, encoding="utf-8")
    prices = Prices.from_file(file)
    kept = {"cache_write_tokens": 8, "cache_write_tokens_details": {"ttl_12h_tokens": 8}}

    assert worst(prices, "gpt-4o", service_tier="priority") == 7 * 1100
    assert (
        prices.actual_micros("gateway/x", {"input_tokens": 8, "output_tokens": 0, "input_tokens_details": kept}) == 2001
    )


def test_a_price_may_be_nothing_or_a_million_or_a_millionth_of_a_micro(file: Path) -> None:
    file.write_text('["x"]\ninput = 0\noutput = 1_000_000\ncache_write = 0.000000000001', encoding="utf-8")
    prices = Prices.from_file(file)

    assert prices.worst_case_micros("x", input_tokens=0, max_output_tokens=1) == 1_000_000
    assert prices.worst_case_micros("x", input_tokens=10**12, max_output_tokens=0) == 1
    assert prices.worst_case_micros("x", input_tokens=10**12 + 1, max_output_tokens=0) == 2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('["x"\ninput = 1', "line 1"),
        ('["x"]\ninput = 1\noutput = \n', "line 3"),
        ('["x"]\ninput = 1\n', r'\["x"\] has no output'),
        ('["x"]\noutput = 1\n', r'\["x"\] has no input'),
        ('["x"]\ninput = 1\noutput = 1\noutptu = 2\n', r"\[\"x\"\] has the unknown key 'outptu'; use input, output"),
        (
            "[gpt-4.1]\ninput = 1\noutput = 1\n",
            r"\[\"gpt-4\"\] has the unknown key .1.; .*quote a model name with dots",
        ),
        ("input = 1\noutput = 1\n", "'input' must be a table"),
        ('["x"]\ninput = 1\noutput = -1\n', r'\["x"\] output = -1'),
        ('["x"]\ninput = 1\noutput = -0.5\n', r"output = Decimal\('-0.5'\)"),
        ('["x"]\ninput = true\noutput = 1\n', "input = True"),
        ('["x"]\ninput = nan\noutput = 1\n', "input = "),
        ('["x"]\ninput = inf\noutput = 1\n', "input = "),
        ('["x"]\ninput = 1_000_001\noutput = 1\n', "from 0 to a million"),
        ('["x"]\ninput = 0.0000000000001\noutput = 1\n', "at most 12 decimals"),
        ('["x"]\ninput = "1e3"\noutput = 1\n', "input = '1e3'"),
        ('["x"]\ninput = ""\noutput = 1\n', "input = ''"),
        ('["x"]\ninput = [1]\noutput = 1\n', r"input = \[1\]"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_naming_the_place(file: Path, text: str, what: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSetting, match=rf"(?s)DAYCAP_PRICES_FILE=.*prices\.toml.*{what}"):
        Prices.from_file(file)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "line 1"),
        ('{"x": {"input": 1,\n "output": }}', "line 2"),
        ("[]", "must be an object"),
        ('{"x": 7}', "'x' must be a table"),
        ('{"x": {"input": 1, "output": NaN}}', "output = "),
        ('{"x": {"input": 1, "output": Infinity}}', "output = "),
        ('{"x": {"input": 1, "output": 1, "output": 2}}', r"\[output] appears twice"),
        ('{"x": {"input": 1, "output": 1}, "x": {"input": 1, "output": 1}}', r"\[x\] appears twice"),
        ("[" * 100_000, ""),
    ],
)
def test_a_json_file_that_cannot_be_used_is_refused_naming_the_place(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSetting, match=rf"(?s)DAYCAP_PRICES_FILE=.*prices\.json.*{what}"):
        Prices.from_file(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"DAYCAP_PRICES_FILE=.*nonesuch.*cannot be read"):
        Prices.from_file(tmp_path / "nonesuch")
    with pytest.raises(InvalidSetting, match="cannot be read"):
        Prices.from_file(tmp_path)
    latin = tmp_path / "latin"
    latin.write_bytes(b"\xff")
    with pytest.raises(InvalidSetting, match="cannot be read"):
        Prices.from_file(latin)


def test_own_prices_come_from_the_named_file(file: Path) -> None:
    file.write_text(GOOD, encoding="utf-8")

    assert worst(make_prices(Settings.from_env({"DAYCAP_PRICES_FILE": str(file)})), "gpt-4o") == 7 * 1100
    assert worst(make_prices(Settings.from_env({})), "gpt-4o") == worst(Prices.default(), "gpt-4o")


def test_without_genai_prices_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "daycap.pricing.prices", None)

    with pytest.raises(InvalidSetting, match=r"pip install .*daycap\[prices\]"):
        make_prices(Settings())


def test_a_price_in_text_may_have_the_exponent_of_a_small_float(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text('{"x": {"input": "7.5e-05", "output": 7.5e-05}}')

    assert Prices.from_file(file).worst_case_micros("x", input_tokens=10**6, max_output_tokens=10**6) == 150
