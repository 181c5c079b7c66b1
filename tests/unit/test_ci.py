"""CI fails where it would have skipped what it must not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ci import fail_instead_of_skip


@pytest.mark.parametrize(
    ("ci", "reason", "outcome"),
    [
        ("true", "Skipped: no rabbitmq-server on PATH", "failed"),
        ("true", "Skipped: no pgbouncer here", "failed"),
        ("true", "Skipped: no PostgreSQL server", "failed"),
        ("true", "Skipped: no systemd here", "failed"),
        ("true", "Skipped: PostgreSQL is strict by itself", "skipped"),
        ("true", "Skipped: no container engine answers here", "skipped"),
        ("", "Skipped: no rabbitmq-server on PATH", "skipped"),
    ],
)
def test_a_missing_server_fails_in_ci_alone(ci: str, reason: str, outcome: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("CI", ci)
    report = pytest.TestReport("a", ("a", 1, "a"), {}, "skipped", ("a", 1, reason), "setup")
    fail_instead_of_skip(report)
    assert report.outcome == outcome
