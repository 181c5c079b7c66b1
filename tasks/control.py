"""Tasks that runners and the command line send: opening days, administration, queries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from daycap.errors import Unavailable
from daycap.ledger import opening
from daycap.ledger.administration import JSON, Administration, answer, refusal
from daycap.protocol.wire import OPEN_DAY_TASK
from tasks.arguments import checked
from tasks.aside import aside
from worker import dead_letter_replay
from worker.celery import app
from worker.deployment import get_deployment


def administration() -> Administration:
    """Return the operations on this worker's ledger."""
    deployment = get_deployment()
    return Administration(deployment.settings, deployment.ledger, deployment.publisher)


def once(work: Callable[..., JSON]) -> Callable[..., JSON]:
    """Run `work`, but refuse a redelivered message: it may already have been done.

    A cap set again by an old message would undo a newer one.
    """

    @functools.wraps(work)
    def run(*args: Any, **kwargs: Any) -> JSON:
        if app.current_task.request.delivery_info.get("redelivered"):
            return refusal(
                Unavailable("the worker or the broker was lost meanwhile; check whether it was done, then retry")
            )
        return work(*args, **kwargs)

    return run


@app.task(name=OPEN_DAY_TASK)
@checked
def open_day(agent: str, day: str) -> JSON:
    """Open one agent's day in ledger and counter."""
    deployment = get_deployment()
    return answer(opening.open_on_request, deployment.ledger, deployment.publisher, agent, day)


@app.task(name="daycap.add_agents", ignore_result=False)
@once
@checked
def add_agents(caps: dict[str, int], changed_by: str, anchors: dict[str, str] | None = None) -> JSON:
    """Add agents with their daily caps in micros and, where they have one, their identity anchors."""
    return answer(administration().add_agents, caps, changed_by, anchors)


@app.task(name="daycap.set_cap", ignore_result=False)
@once
@checked
def set_cap(agent: str, cap_micros: int, changed_by: str) -> JSON:
    """Change an agent's daily cap, from today on."""
    return answer(administration().set_cap, agent, cap_micros, changed_by)


@app.task(name="daycap.set_status", ignore_result=False)
@once
@checked
def set_status(agent: str, status: str, changed_by: str) -> JSON:
    """Pause or resume an agent."""
    return answer(administration().set_status, agent, status, changed_by)


@app.task(name="daycap.set_anchor", ignore_result=False)
@once
@checked
def set_anchor(agent: str, anchor: str, changed_by: str, rotate: bool = False) -> JSON:
    """Set or rotate an agent's identity anchor. Returns all changes of it."""
    return answer(administration().set_anchor, agent, anchor, changed_by, rotate)


@app.task(name="daycap.find_anchor_changes", ignore_result=False)
@aside
@checked
def find_anchor_changes(agent: str) -> JSON:
    """Return all changes of an agent's identity anchor, oldest first."""
    return answer(administration().find_anchor_changes, agent)


@app.task(name="daycap.find_agents", ignore_result=False)
@aside
@checked
def find_agents(agents: list[str] | None = None, after: str = "", limit: int = 1000) -> JSON:
    """Return accounts with today's figures: those named, or the next `limit` by id after `after`."""
    return answer(administration().find_agents, agents, after, limit)


@app.task(name="daycap.audit", ignore_result=False)
@aside
@checked
def audit_day(day: str | None = None) -> JSON:
    """Check a day's ledger and counter against the promises."""
    return answer(administration().audit, day)


@app.task(name="daycap.count_dead_letters", ignore_result=False)
@aside
@checked
def count_dead_letters() -> JSON:
    """Return the number of dead letters."""
    return answer(administration().count_dead_letters)


@app.task(name="daycap.find_dead_letters", ignore_result=False)
@aside
@checked
def find_dead_letters(kind: str | None = None, agent: str | None = None, limit: int = 50) -> JSON:
    """Return the newest dead letters, without their payloads."""
    return answer(administration().find_dead_letters, kind, agent, limit)


@app.task(name="daycap.show_dead_letter", ignore_result=False)
@aside
@checked
def show_dead_letter(prefix: str) -> JSON:
    """Return one dead letter with its payload."""
    return answer(administration().show_dead_letter, prefix)


@app.task(name="daycap.replay_dead_letters", ignore_result=False)
@checked
def replay_dead_letters(prefixes: list[str], replayed_by: str) -> JSON:
    """Replay these dead letters: as many as fit a time slice, at least one. Ask again for the rest."""
    deployment = get_deployment()
    return answer(lambda: [each._asdict() for each in dead_letter_replay.replay(deployment, prefixes, replayed_by)])


@app.task(name="daycap.replay_next_dead_letters", ignore_result=False)
@checked
def replay_next_dead_letters(replayed_by: str, kind: str | None = None, after: str = "") -> JSON:
    """Replay the dead letters whose ids follow `after`: as many as fit a time slice."""
    deployment = get_deployment()
    replay_next = dead_letter_replay.replay_next
    return answer(lambda: [each._asdict() for each in replay_next(deployment, kind, after, replayed_by)])


@app.task(name="daycap.drop_dead_letters", ignore_result=False)
@checked
def drop_dead_letters(prefixes: list[str], dropped_by: str) -> JSON:
    """Delete dead letters for good. Returns their ids."""
    return answer(administration().drop_dead_letters, prefixes, dropped_by)


@app.task(name="daycap.check_ledger", ignore_result=False)
@aside
@checked
def check_ledger() -> JSON:
    """Check that the ledger answers, is migrated for this release and can be written to."""
    return answer(get_deployment().ledger.check)
