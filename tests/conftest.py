"""Real servers for the tests: each is a process of its own on 127.0.0.1, ended when the session ends."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import redis

from daycap.wallet.renewer import Renewer
from demo.local_server import LocalServer
from tests.ci import fail_instead_of_skip
from tests.in_loop import FACES
from tests.migrated import migrated_sqlite
from tests.postgresql import LocalPostgreSQL
from tests.side_by_side import pytest_collection_modifyitems, pytest_xdist_make_scheduler  # noqa: F401  (hooks)
from tests.spine import Spine

# Many container images forbid it; then pytest rewrites every test, and each process compiles its modules, every time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_configure() -> None:
    """What daycap logs outside of a test is not written between the reports."""
    logging.getLogger("daycap").addHandler(logging.NullHandler())


_imported = 0
"""How many modules there were when their objects were frozen."""


def pytest_runtest_setup() -> None:
    """Keep what was imported, two million objects, out of all later garbage collections."""
    global _imported  # noqa: PLW0603
    if len(sys.modules) > _imported + 100:  # Tests import clients of models when they need them.
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a test failed, what its worker said last: another machine's cannot be asked later."""
    report = yield
    fail_instead_of_skip(report)
    spine = getattr(item, "funcargs", {}).get("spine")
    if report.failed and isinstance(spine, Spine):
        report.sections.append(("worker", spine.worker.container.logs()[-10_000:]))
    return report


@pytest.fixture(autouse=True)
def closed_wallets_end() -> Iterator[None]:
    """End what follows a closed wallet's unsettled events: it would go on, and restore leases, in other tests."""
    yield
    for thread in threading.enumerate():
        renewer = getattr(getattr(thread, "_target", None), "__self__", None)
        if isinstance(renewer, Renewer) and (end_parts := renewer._finish) is not None:
            renewer.stop(5)
            end_parts()


@pytest.fixture(autouse=True)
def log_level_stays() -> Iterator[None]:
    """Undo what the command line sets for its whole process, also in fixtures of a module: other tests read the log."""
    logging.getLogger("daycap").setLevel(logging.NOTSET)
    yield
    logging.getLogger("daycap").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[LocalServer]:
    """One redis-server for the whole session."""
    server = LocalServer().start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: LocalServer) -> str:
    """An empty database on the session's server."""
    with redis.Redis.from_url(redis_server.url()) as client:
        client.flushall()
    return redis_server.url()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[LocalPostgreSQL]:
    """One PostgreSQL server for the whole session."""
    # Not below pytest's directory: root's server runs as another user, whom the next session's pytest shuts out there.
    with tempfile.TemporaryDirectory(prefix="daycap-postgresql-", ignore_cleanup_errors=True) as directory:
        server = LocalPostgreSQL(Path(directory))
        yield server
        server.close()


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite ledger with nothing in it, to be copied."""
    return migrated_sqlite(tmp_path_factory.mktemp("ledger") / "empty.sqlite3")


@pytest.fixture(params=FACES)
def both_faces(request: pytest.FixtureRequest, spine: Spine) -> None:
    """The test's wallets are those of threads, and then those of an event loop."""
    spine.face = FACES[request.param].from_settings
