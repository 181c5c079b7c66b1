"""Reads and changes the ledger in this process, where there is no worker to do it.

Commands import this only when they need it: SQLAlchemy doubles the time that a command takes to start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from daycap.counters.redis import RedisCounter
from daycap.errors import DaycapError
from daycap.ledger import dead_letters
from daycap.ledger.administration import Administration, answer, refusal
from daycap.ledger.engine import Ledger, ReadOnlyLedger, unavailable
from daycap.ledger.lock import sqlite_file
from daycap.ledger.publish import CounterPublisher
from daycap.settings import Settings

_WORKS: dict[str, Callable[..., Any]] = {
    f"daycap.{work.__name__}": work
    for work in (
        Administration.add_agents,
        Administration.set_cap,
        Administration.set_status,
        Administration.find_agents,
        Administration.set_anchor,
        Administration.find_anchor_changes,
        Administration.add_budget,
        Administration.set_budget,
        Administration.remove_budget,
        Administration.find_budgets,
        Administration.add_group,
        Administration.join_group,
        Administration.leave_group,
        Administration.remove_group,
        Administration.find_groups,
        Administration.find_budget_changes,
        Administration.apply_budgets,
        Administration.raise_cap,
        Administration.reset_cap,
        Administration.cancel_raise,
        Administration.find_raises,
        Administration.audit,
        Administration.count_dead_letters,
        Administration.find_dead_letters,
        Administration.show_dead_letter,
    )
}
"""The operations that need no worker, by task name."""


def _drop_dead_letters(administration: Administration, prefixes: list[str], dropped_by: str) -> list[str]:
    """Drop dead letters, and print each one on stderr: there is no worker whose log would keep the payload."""

    def echo(letter: dead_letters.Letter) -> None:
        click.echo(f"dead letter {letter.id} ({letter.kind}) dropped by {dropped_by}: {letter.payload}", err=True)

    return dead_letters.drop(administration.ledger, prefixes, echo)


_WORKS["daycap.drop_dead_letters"] = _drop_dead_letters


def is_possible(settings: Settings) -> bool:
    """Return whether this is the embedded set-up. The wallet picks up changes when it renews its leases."""
    return settings.embedded and sqlite_file(settings.ledger_url) is not None


def answer_of(settings: Settings, task: str, **kwargs: Any) -> dict[str, Any]:
    """Answer `task` as a worker would. `daycap.add_agents` creates the file, or migrates it."""
    file = sqlite_file(settings.ledger_url)
    work = _WORKS.get(task)
    if work is None or file is None:
        return refusal(DaycapError("this needs a worker: set DAYCAP_BROKER_URL"))
    may_create = task == "daycap.add_agents"
    if not (may_create or file.exists()):
        return refusal(DaycapError(f"there is no ledger {file}; create it with: daycap agent add"))
    ledger = Ledger(settings.ledger_url)
    administration = Administration(settings, ledger, CounterPublisher(None, settings.terms))
    try:
        if may_create:
            ledger.migrate()
        else:
            ledger.check_tables()
        return answer(lambda: work(administration, **kwargs))
    except DaycapError as error:
        return refusal(error)
    except (SQLAlchemyError, OSError) as error:
        return refusal(unavailable(error))
    finally:
        ledger.close()


@contextmanager
def reading(task: str, counter_timeout_s: float) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Answer `task`, which finds something, here, as a worker would, from a read-only ledger."""
    settings = Settings.from_env()
    ledger = ReadOnlyLedger(settings.ledger_url)
    counter = RedisCounter(settings.redis_url, counter_timeout_s) if settings.redis_url else None
    administration = Administration(settings, ledger, CounterPublisher(counter, settings.terms))
    try:
        yield lambda **which: _WORKS[task](administration, **which)
    except SQLAlchemyError as error:
        raise unavailable(error) from error
    finally:
        ledger.close()
        if counter is not None:
            counter.close()
