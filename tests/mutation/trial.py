"""One try of a mutant: a forked process that has the libraries loaded already runs its tests in a tree of its own."""

from __future__ import annotations

import compileall
import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

# What takes long to load and is no part of the project; each trial's process begins with it.
import alembic.command  # noqa: F401
import celery  # noqa: F401
import lupa.lua51  # noqa: F401
import pytest
import pytest_timeout  # noqa: F401
import redis  # noqa: F401
import sqlalchemy.dialects.sqlite  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
_TREE = ("daycap", "worker", "tasks", "demo", "migrations", "tests", "celeryconfig.py", "Procfile", "pyproject.toml")


def prepare(tree: Path) -> Path:
    """Copy the project to `tree`."""
    for name in _TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name)
        else:
            shutil.copy(ROOT / name, tree / name)
    compileall.compile_dir(tree, quiet=1)
    return tree


class Trial:
    """The tests under way with `content` in place of `file`. They have survived it if the result is True."""

    def __init__(self, tree: Path, file: str, content: bytes, tests: list[str], seeds: int, timeout_s: float) -> None:
        self.tree = tree
        self._file = tree / file
        self._original = (ROOT / file).read_bytes()
        self._write(content)
        self._end_s = time.monotonic() + timeout_s
        self._status: int | None = None
        self._process = os.fork()
        if self._process == 0:
            _run(tree, tests, seeds)

    def _write(self, content: bytes) -> None:
        self._file.write_bytes(content)
        for stale in (self._file.parent / "__pycache__").glob(f"{self._file.stem}.*.pyc"):
            stale.unlink()  # It may be of the same second and size.

    @property
    def ended(self) -> bool:
        """Whether it has; one that takes too long is ended here."""
        if self._status is None:
            if late := time.monotonic() > self._end_s:
                self.kill()
            pid, status = os.waitpid(self._process, 0 if late else os.WNOHANG)
            if pid:
                self._status = status
                self._write(self._original)
        return self._status is not None

    def kill(self) -> None:
        """End it at once, with what it started."""
        os.kill(self._process, signal.SIGKILL)  # It may not have made its group yet.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)

    @property
    def output(self) -> str:
        """What it wrote."""
        return (self.tree / "output").read_text(errors="replace")

    def result(self) -> bool:
        """Wait for it. True if no test failed."""
        while not self.ended:
            time.sleep(0.01)
        return self._status == 0


def _run(tree: Path, tests: list[str], seeds: int) -> None:
    """In the forked process: never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(tree / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        for name in [name for name in sys.modules if name.split(".")[0] in ("daycap", "worker", "tasks", "tests")]:
            del sys.modules[name]
        sys.path.insert(0, str(tree))
        sys.dont_write_bytecode = True
        os.environ.update(PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(tree), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        status = int(
            pytest.main(["-x", "-q", "--assert=plain", "-p", "pytest_timeout", f"--basetemp={tree / 'tmp'}", *tests])
        )
        if status == 0 and seeds:
            from tests.simulation.seeds import SCENARIOS, Seeds

            with Seeds() as some:
                for seed in range(seeds):
                    for scenario in SCENARIOS:
                        some.run(scenario, seed)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        os._exit(status)
