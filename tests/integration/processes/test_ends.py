"""Each way to end a process: what it spent is booked or in the outbox; docs/how-to/processes.md has the table."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.processes.programs.ends import (
    CLEAN,
    SUDDEN,
    finalizes_at_the_very_end,
    forked_child_flushes,
    interrupted,
    pool_is_terminated_with_a_handler,
)
from tests.integration.processes.session import run
from tests.spine import Spine

M = 1_000_000
ALL = (4, 4_000)
NOWHERE = "redis://127.0.0.1:1/0"

both = pytest.mark.parametrize("face", ["threads", "loop"])


def end(environment: dict[str, str], way: str, face: str) -> tuple[int, str]:
    """The status of the program that ends in this way, and what it said."""
    status, _, said = run("ends", way, face, environment=environment)
    return status, said


def name(value: Any) -> str | None:
    return value.__name__ if callable(value) else None


@both
@pytest.mark.parametrize(("way", "status"), CLEAN.items(), ids=name)
def test_clean_end_books_all(spine: Spine, way: Callable[..., None], status: int, face: str) -> None:
    agent = spine.add("agent-7", 5 * M)

    ended, said = end(spine.environment, way.__name__, face)

    if way is finalizes_at_the_very_end:  # There the broker has it, at least.
        spine.wait_for(lambda: spine.settled_once(agent) == ALL)
    assert spine.settled_once(agent) == ALL, said
    assert ended == status or (way is interrupted and ended == -signal.SIGINT), said
    if way is not pool_is_terminated_with_a_handler:  # A handler's exception may be raised where Python only shows it.
        assert ("Traceback" in said) == (status == 1), said
        assert "not known to be settled" not in said
    if way in (finalizes_at_the_very_end, forked_child_flushes):  # Nothing is told, or nothing runs, after that.
        return
    (leases,) = spine.counter.leases([(agent, spine.today)])
    assert {lease for lease, each in leases.items() if each.farewell is None or each.outstanding_micros} == set()


@pytest.mark.parametrize(("way", "status"), SUDDEN.items(), ids=name)
def test_outbox_outlives_a_sudden_end(spine: Spine, way: Callable[..., None], status: int, tmp_path: Path) -> None:
    """Given a broker that is away, so that nothing was sent / then the next process books all."""
    agent, outbox = spine.add("agent-7", 5 * M), str(tmp_path / "outbox")
    without_broker = {"DAYCAP_BROKER_URL": NOWHERE, "DAYCAP_OUTBOX": outbox}

    assert end({**spine.environment, **without_broker}, way.__name__, "threads")[0] == status
    assert spine.settled_once(agent) == (0, 0)
    assert spine.wallet(outbox=outbox).flush(timeout=20) == ()

    assert spine.settled_once(agent) == ALL


@both
def test_end_is_bounded_and_says_what_is_lost(spine: Spine, face: str) -> None:
    spine.add("agent-7", 5 * M)
    begun = time.monotonic()

    status, said = end({**spine.environment, "DAYCAP_BROKER_URL": NOWHERE}, "returns", face)

    assert time.monotonic() - begun < 9  # 5 s to end, and the time to start.
    assert status == 0
    assert "4 events are not known to be settled as the process ends; the broker has not taken 4 of them" in said


def test_end_says_that_the_outbox_keeps_events(spine: Spine, tmp_path: Path) -> None:
    agent, outbox = spine.add("agent-7", 5 * M), str(tmp_path / "outbox")

    _, said = end({**spine.environment, "DAYCAP_BROKER_URL": NOWHERE, "DAYCAP_OUTBOX": outbox}, "returns", "threads")

    assert "4 events are not known to be settled as the process ends; the outbox keeps them" in said
    assert spine.wallet(outbox=outbox).flush(timeout=20) == ()
    assert spine.settled_once(agent) == ALL
