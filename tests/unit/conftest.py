"""Finalize events, outboxes in one directory as processes of their own open it, and a deployment in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from daycap.delivery.outbox import SEGMENT_BYTES, Outbox
from daycap.protocol.wire import FinalizeEvent
from tests.in_loop import FACES
from tests.in_memory import Deployment

DAY = "2026-11-24"
ROOM = 64 * SEGMENT_BYTES

Opened = Callable[..., Outbox]


def made(number: int, lease: str = "a" * 26) -> FinalizeEvent:
    """Event `number` of a lease."""
    return FinalizeEvent(lease, number, number, "agent-7", DAY, 50_000, 31_200, 1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def opened(directory: Path) -> Iterator[Opened]:
    """Open the outbox as one process does; all are let go at the end."""
    with ExitStack() as stack:

        def make(limit_bytes: int = ROOM) -> Outbox:
            outbox = Outbox(directory, limit_bytes)
            stack.callback(outbox.close)
            return outbox

        yield make


@pytest.fixture(params=FACES)
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """Its wallets are those of threads, and then those of an event loop."""
    deployment = Deployment(FACES[request.param])
    yield deployment
    deployment.close()
