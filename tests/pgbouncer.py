"""A real pgbouncer on 127.0.0.1, in transaction mode before a test's PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy as sa

from demo.local_server import free_port

_START_S = 20


def missing(package: str) -> NoReturn:
    """Skip the test for want of a program of Debian's `package`; in CI that is a failure."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs: apt-get install {package}")


class PgBouncer:
    """A pooler before the server of `url`, with so few sessions that its clients have to share them.

    Pgbouncer refuses to run as root: for root it runs as the server's user.
    """

    def __init__(self, directory: Path, url: str, sessions: int = 2, settings: str = "") -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            missing("pgbouncer")
        self._server = sa.make_url(url)
        self._port = free_port()
        self._log = directory / "pgbouncer.log"
        config = directory / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={self._server.query['host']} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self._port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {sessions}\n{settings}\n"
        )
        owner = Path(str(self._server.query["host"])).stat()
        root = os.geteuid() == 0
        as_user: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": ()} if root else {}
        with self._log.open("wb") as output, config.open("rb") as opened:
            # By descriptor: pytest's directories are closed to others.
            self._process = subprocess.Popen(
                [program, f"/dev/fd/{opened.fileno()}"],
                pass_fds=[opened.fileno()],
                stdout=output,
                stderr=output,
                **as_user,
            )
        end = time.monotonic() + _START_S
        while "process up" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, "pgbouncer did not start"
            time.sleep(0.01)

    @property
    def url(self) -> str:
        """The same database, through the pooler."""
        through = sa.URL.create("postgresql", "postgres", host="127.0.0.1", port=self._port)
        return through.set(database=self._server.database).render_as_string(hide_password=False)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
