"""Settings that cannot be used are refused, by name."""

from __future__ import annotations

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
