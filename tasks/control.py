"""Opening days, administration and looking: tasks that runners and the command line send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daycap.errors import DaycapError
from daycap.wire import OPEN_DAY_TASK
from worker import accounts, audit, opening
from worker.celery import app
from worker.deployment import deployment

JSON = dict[str, Any]


def answer(work: Callable[[], Any]) -> JSON:
    """What the one who waits gets: the result, or the refusal in words."""
    try:
        return {"result": work()}
    except DaycapError as error:
        return {"error": type(error).__name__, "message": str(error)}


@app.task(name=OPEN_DAY_TASK)
def open_day(agent: str, day: str) -> JSON:
    """Open one agent's day in ledger and counter."""
    parts = deployment()
    return answer(lambda: opening.open_on_request(parts.ledger, parts.publisher, agent, day))


@app.task(name="daycap.add_agents", ignore_result=False)
def add_agents(caps: dict[str, int], changed_by: str) -> JSON:
    """Add agents with their daily caps in micros."""
    parts = deployment()
    return answer(lambda: accounts.add(parts.ledger, parts.publisher, caps, changed_by))


@app.task(name="daycap.set_cap", ignore_result=False)
def set_cap(agent: str, cap_micros: int, changed_by: str) -> JSON:
    """Change an agent's daily cap, from today on."""
    parts = deployment()
    return answer(lambda: accounts.set_cap(parts.ledger, parts.publisher, agent, cap_micros, changed_by)._asdict())


@app.task(name="daycap.set_status", ignore_result=False)
def set_status(agent: str, status: str, changed_by: str) -> JSON:
    """Pause or resume an agent."""
    parts = deployment()
    return answer(lambda: accounts.set_status(parts.ledger, parts.publisher, agent, status, changed_by)._asdict())


@app.task(name="daycap.find_agents", ignore_result=False)
def find_agents(agents: list[str] | None = None, after: str = "", limit: int = 1000) -> JSON:
    """Accounts with their day in the ledger: those named, or the next `limit` by id."""
    parts = deployment()
    return answer(lambda: [a._asdict() for a in accounts.find(parts.ledger, parts.publisher, agents, after, limit)])


@app.task(name="daycap.audit", ignore_result=False)
def audit_day(day: str | None = None) -> JSON:
    """Hold a day's ledger and counter against the promises."""
    parts = deployment()
    return answer(lambda: audit.audit(parts.ledger, parts.publisher, parts.settings, day)._asdict())


@app.task(name="daycap.check_ledger", ignore_result=False)
def check_ledger() -> JSON:
    """Whether the ledger answers and is at the newest migration."""
    return answer(deployment().ledger.check_head)
