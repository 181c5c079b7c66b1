"""Finds what the ledger has, page by page: through a worker, or in the ledger itself if none answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from daycap.cli.client import ANSWER_TIMEOUT_S, NoWorker, ask
from daycap.settings import Settings

COUNTER_S = 2
"""How long a command waits for the counter."""


def find_all(task: str, key: str, **which: Any) -> list[dict[str, Any]]:
    """Return all that `task` finds, given its arguments, in the order of the field `key`, which names each."""
    ledger_url = Settings.from_env().ledger_url
    timeout_s = ANSWER_TIMEOUT_S / 3 if ledger_url else ANSWER_TIMEOUT_S
    try:
        return _pages(lambda **arguments: ask(task, timeout_s, **arguments), key, which)
    except NoWorker as error:
        if not ledger_url:
            raise
        click.echo(
            f"{error.message}\nread directly from DAYCAP_LEDGER_URL; events still in the queue are missing", err=True
        )
    from daycap.cli import local  # noqa: PLC0415  (slow to import)

    with local.reading(task, COUNTER_S) as find:
        return _pages(find, key, which)


def _pages(find: Callable[..., list[dict[str, Any]]], key: str, which: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask for a thousand at a time, or once for those that are named."""
    if "agents" in which or "names" in which:
        return find(**which)
    found: list[dict[str, Any]] = []
    while page := find(**which, after=found[-1][key] if found else ""):
        found += page
    return found
