"""What continuous integration must not skip."""

from __future__ import annotations

import os
import re

import pytest

_INSTALLED_THERE = re.compile(r"rabbitmq|pgbouncer|no postgre|no systemd", re.IGNORECASE)


def fail_instead_of_skip(report: pytest.TestReport) -> None:
    """With CI=true a test that skips for want of a server, which `.ci/run` installs, has failed."""
    if report.skipped and isinstance(report.longrepr, tuple) and os.environ.get("CI") == "true":
        reason = report.longrepr[2]
        if _INSTALLED_THERE.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}; with CI=true it must be there, and .ci/run installs it (as root, by apt-get)"
