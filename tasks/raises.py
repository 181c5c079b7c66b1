"""Tasks that the command line sends about raises and resets of caps."""

from __future__ import annotations

from daycap.ledger.administration import JSON, answer
from tasks.arguments import checked
from tasks.aside import aside
from tasks.control import administration, once
from worker.celery import app


@app.task(name="daycap.raise_cap", ignore_result=False)
@once
@checked
def raise_cap(
    by_micros: int,
    changed_by: str,
    agent: str | None = None,
    budget: str | None = None,
    reason: str | None = None,
    until_ms: int | None = None,
    for_ms: int | None = None,
) -> JSON:
    """Raise the cap of an agent's day, or of a budget's current period, for a while."""
    return answer(administration().raise_cap, by_micros, changed_by, agent, budget, reason, until_ms, for_ms)


@app.task(name="daycap.reset_cap", ignore_result=False)
@once
@checked
def reset_cap(changed_by: str, agent: str | None = None, budget: str | None = None, reason: str | None = None) -> JSON:
    """Give an agent's day, or a budget's current period, its whole cap again."""
    return answer(administration().reset_cap, changed_by, agent, budget, reason)


@app.task(name="daycap.cancel_raise", ignore_result=False)
@once
@checked
def cancel_raise(number: int, changed_by: str, reason: str | None = None) -> JSON:
    """End a raise before its time."""
    return answer(administration().cancel_raise, number, changed_by, reason)


@app.task(name="daycap.find_raises", ignore_result=False)
@aside
@checked
def find_raises(agent: str | None = None, budget: str | None = None, ended: bool = False, limit: int = 1000) -> JSON:
    """Return the raises in force, or also those of the past; the newest first."""
    return answer(administration().find_raises, agent, budget, ended, limit)
