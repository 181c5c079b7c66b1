"""What people install: the wheel in environments that have nothing else, and a worker as docs/how-to/deploy.md says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from demo.local_server import LocalServer
from tests.processes import ROOT, LocalProcess
from tests.spine import environment

Install = Callable[..., "Installed"]


def clean(given: Mapping[str, str]) -> dict[str, str]:
    """An environment in which nothing leads to the checkout or to this process's packages."""
    kept = ("HOME", "LANG", "PATH", "SSL_CERT_FILE", "TMPDIR")
    without_network = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return {name: os.environ[name] for name in kept if name in os.environ} | without_network | dict(given)


class Installed:
    """A virtual environment. Commands of it run in `directory`, outside of the checkout."""

    def __init__(self, place: Path, directory: Path) -> None:
        self.bin = place / "bin"
        self._directory = directory

    def run(
        self, *words: str, env: Mapping[str, str] | None = None, directory: Path | None = None, status: int = 0
    ) -> str:
        """What one of its commands wrote."""
        done = subprocess.run(
            [self.bin / words[0], *words[1:]],
            cwd=directory or self._directory,
            env=clean(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def python(self, program: str, *words: str, env: Mapping[str, str] | None = None, status: int = 0) -> str:
        """What a program wrote: the checkout is not on its path."""
        return self.run("python", "-I", "-c", program, *words, env=env, status=status)


class Started(LocalProcess):
    """A long-lived command of an installation."""

    def __init__(
        self, installed: Installed, checkout: Path, directory: Path, env: Mapping[str, str], ready: str, *words: str
    ) -> None:
        self.ready_prompt = ready
        self._checkout = checkout
        self._clean = clean(env)
        super().__init__([str(installed.bin / words[0]), *words[1:]], directory)

    def start(self) -> None:
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                cwd=self._checkout,
                env=self._clean,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def end(self) -> int:
        """Its status after SIGTERM."""
        self.process.terminate()
        return int(self.process.wait(20))


def _uv(*words: str, **env: str) -> None:
    uv = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".run" / "tools" / "bin" / "uv")
    done = subprocess.run([uv, "--quiet", *words], env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def pythons() -> list[str]:
    """This Python and every other one here that daycap is for."""
    others = [
        str(found)
        for minor in range(11, 20)
        if minor != sys.version_info.minor
        for found in sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))[-1:]
    ]
    return [sys.executable, *others]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout as for a release."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Make an environment with the wheel and the extras that are named, once for the session."""

    @cache
    def make(*extras: str, python: str = sys.executable, resolution: str = "highest") -> Installed:
        directory = tmp_path_factory.mktemp("installed")
        place = directory / "env"
        _uv("venv", "--python", python, str(place))
        wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
        _uv("pip", "install", "--python", str(place / "bin" / "python"), "--resolution", resolution, wanted)
        return Installed(place, directory)

    return make


@pytest.fixture(scope="session")
def sync(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Make an environment of the checkout, once for the session: docs/how-to/deploy.md says how."""

    @cache
    def make(*extras: str) -> Installed:
        directory = tmp_path_factory.mktemp("synced")
        place = directory / "env"
        wanted = [word for extra in extras for word in ("--extra", extra)]
        _uv(
            *("sync", "--locked", "--no-dev", "--project", str(ROOT), *wanted),
            UV_PROJECT_ENVIRONMENT=str(place),
            UV_PYTHON=sys.executable,
        )
        return Installed(place, directory)

    return make


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Counter and broker on a server of the test's own; a ledger that is not there yet."""
    server = LocalServer().start()
    yield environment(server.url().rpartition("/")[0], tmp_path / "ledger.sqlite3")
    server.stop()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without the library, for a worker whose library is the wheel."""
    place = tmp_path / "checkout"
    for name in ("worker", "tasks", "migrations"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("celeryconfig.py", "pyproject.toml"):
        shutil.copy(ROOT / name, place / name)
    return place
