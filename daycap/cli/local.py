"""What a worker does for the commands, done here: for a SQLite ledger without broker and Redis, which has no worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from daycap.errors import DaycapError
from daycap.ledger import accounts, anchors, audit, dead_letters
from daycap.ledger.engine import Ledger, unavailable
from daycap.ledger.lock import sqlite_file
from daycap.ledger.publish import CounterPublisher
from daycap.settings import Settings

_Work = Callable[..., Any]


def is_possible(settings: Settings) -> bool:
    """Whether the ledger is one process's own file. An embedded wallet hears of changes when it renews its leases."""
    return not (settings.broker_url or settings.redis_url) and sqlite_file(settings.ledger_url) is not None


def answer_of(settings: Settings, task: str, **kwargs: Any) -> dict[str, Any]:
    """What a worker would answer to `task`. `daycap.add_agents` makes the file, or brings it up to this release."""
    file = sqlite_file(settings.ledger_url)
    work = _works(settings).get(task)
    if work is None or file is None:
        return _refusal(DaycapError("this needs a worker: set DAYCAP_BROKER_URL"))
    may_make = task == "daycap.add_agents"
    if not (may_make or file.exists()):
        return _refusal(DaycapError(f"there is no ledger {file}; daycap agent add makes it"))
    ledger = Ledger(settings.ledger_url)
    try:
        if may_make:
            ledger.migrate()
        else:
            ledger.check_tables()
        return {"result": work(ledger, CounterPublisher(None, settings.terms), **kwargs)}
    except DaycapError as error:
        return _refusal(error)
    except (SQLAlchemyError, OSError) as error:
        return _refusal(unavailable(error))
    finally:
        ledger.close()


def _refusal(error: DaycapError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error)}


def _works(settings: Settings) -> dict[str, _Work]:
    """What can be done without a worker, by the task's name."""
    return {
        "daycap.add_agents": accounts.add,
        "daycap.set_cap": lambda *parts, **given: accounts.set_cap(*parts, **given)._asdict(),
        "daycap.set_status": lambda *parts, **given: accounts.set_status(*parts, **given)._asdict(),
        "daycap.find_agents": lambda *parts, **given: [each._asdict() for each in accounts.find(*parts, **given)],
        "daycap.set_anchor": lambda *parts, **given: [each._asdict() for each in anchors.set_anchor(*parts, **given)],
        "daycap.find_anchor_changes": lambda ledger, _, agent: [
            each._asdict() for each in anchors.history(ledger, agent)
        ],
        "daycap.audit": lambda ledger, nowhere, day: audit.audit(ledger, nowhere, settings, day)._asdict(),
        "daycap.count_dead_letters": lambda ledger, _: dead_letters.count(ledger),
        "daycap.find_dead_letters": lambda ledger, _, **given: [
            each._asdict() for each in dead_letters.find(ledger, **given)
        ],
        "daycap.show_dead_letter": lambda ledger, _, prefix: dead_letters.get(ledger, prefix)._asdict(),
        "daycap.drop_dead_letters": lambda ledger, _, **given: dead_letters.drop(ledger, **given),
    }
