"""Settings that cannot be used are refused, by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from daycap.errors import InvalidSetting
from daycap.settings import Settings


@pytest.mark.parametrize(
    ("close", "retention", "books"), [("2", "400", "3650"), ("8", "7", "3650"), ("7", "400", "399"), ("7", "400", "-1")]
)
def test_days_that_are_kept_too_short_are_refused(close: str, retention: str, books: str) -> None:
    with pytest.raises(InvalidSetting, match=r"DAYCAP_CLOSE_AFTER_DAYS|DAYCAP_BOOKS_DAYS"):
        Settings.from_env(
            {
                "DAYCAP_CLOSE_AFTER_DAYS": close,
                "DAYCAP_RETENTION_DAYS": retention,
                "DAYCAP_BOOKS_DAYS": books,
            }
        )


def test_all_may_be_kept_equally_long() -> None:
    names = ("DAYCAP_CLOSE_AFTER_DAYS", "DAYCAP_RETENTION_DAYS", "DAYCAP_BOOKS_DAYS")
    settings = Settings.from_env(dict.fromkeys(names, "3"))
    assert (settings.close_after_days, settings.retention_days, settings.books_days) == (3, 3, 3)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("DAYCAP_SLICE_SECOND", "DAYCAP_SLICE_SECONDS"),
        ("DAYCAP_BROKER", "DAYCAP_BROKER_URL"),
        ("DAYCAP_REDIS_TIMEOUT", "DAYCAP_REDIS_TIMEOUT_SECONDS"),
        ("DAYCAP_METRIC_PORT", "DAYCAP_METRICS_PORT"),
        ("DAYCAP_FLOWER_PROT", "DAYCAP_FLOWER_PORT"),
        ("DAYCAP_LOGLEVEL", "DAYCAP_LOG_LEVEL"),
    ],
)
@pytest.mark.parametrize("value", ["9100", ""])
def test_misspelt_names_are_refused(misspelt: str, meant: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=f"no setting {misspelt}; did you mean {meant}"):
        Settings.from_env({misspelt: value})


@pytest.mark.parametrize("service", ["", "METRICS_", "FLOWER_", "REDIS_", "BROKER_URL_", "LOG_LEVEL_"])
def test_kubernetes_own_variables_are_ignored(service: str) -> None:
    environ = {
        "DAYCAP_{}SERVICE_HOST": "10.0.0.7",
        "DAYCAP_{}SERVICE_PORT": "9100",
        "DAYCAP_{}SERVICE_PORT_HTTP_METRICS": "9100",
        "DAYCAP_{}PORT": "tcp://10.0.0.7:9100",
        "DAYCAP_{}PORT_9100_TCP": "tcp://10.0.0.7:9100",
        "DAYCAP_{}PORT_9100_TCP_PROTO": "tcp",
        "DAYCAP_{}PORT_9100_TCP_PORT": "9100",
        "DAYCAP_{}PORT_9100_TCP_ADDR": "10.0.0.7",
        "DAYCAP_{}PORT_53_UDP": "udp://[fd00::7]:53",
    }
    named = {name.format(service): value for name, value in environ.items()}
    assert Settings.from_env(named) == Settings()


def test_ports_can_be_set() -> None:
    settings = Settings.from_env(
        {"DAYCAP_METRICS_PORT": "9100", "DAYCAP_BEAT_PORT": "9", "DAYCAP_FLOWER_PORT": "65535"}
    )
    assert (settings.metrics_port, settings.beat_port, settings.flower_port) == (9100, 9, 65535)


@pytest.mark.parametrize("value", ["65536", "-1", "http", "http://10.0.0.7:9100", "tcp://10.0.0.7"])
def test_what_is_no_port_is_refused(value: str) -> None:
    for name in ("DAYCAP_METRICS_PORT", "DAYCAP_BEAT_PORT", "DAYCAP_FLOWER_PORT"):
        with pytest.raises(InvalidSetting, match=name):
            Settings.from_env({name: value})


@pytest.mark.parametrize("name", ["outbox", "prices_file"])
@pytest.mark.parametrize(("given", "meant"), [("~/x", "home/x"), ("x/y", "here/x/y"), ("/x", "/x")], ids=str)
def test_paths_are_expanded(name: str, given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    settings = Settings.from_env({f"DAYCAP_{name.upper()}": given})
    monkeypatch.chdir("/")
    assert getattr(settings, name) == str(tmp_path / meant)
    assert dataclasses.replace(settings) == settings


@pytest.mark.parametrize("name", ["DAYCAP_OUTBOX", "DAYCAP_PRICES_FILE"])
def test_unknown_home_is_refused(name: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{name}='~nobody-here/x'"):
        Settings.from_env({name: "~nobody-here/x"})


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~/spend.db", "{home}/spend.db"),
        ("~/a/b.db?timeout=3", "{home}/a/b.db?timeout=3"),
        ("/~/spend.db", "/~/spend.db"),
        ("spend~.db", "spend~.db"),
    ],
)
def test_ledger_url_expands_home(
    scheme: str, given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.from_env({"DAYCAP_LEDGER_URL": f"{scheme}:///{given}"})
    assert settings.ledger_url == f"{scheme}:///{meant.format(home=tmp_path)}"
    assert settings.embedded


def test_ledger_url_of_an_unknown_home_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="DAYCAP_LEDGER_URL"):
        Settings(ledger_url="sqlite:///~nobody-here/spend.db")


def test_empty_paths_stay_empty() -> None:
    assert (Settings().outbox, Settings().prices_file) == ("", "")
