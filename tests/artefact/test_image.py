"""The Dockerfile's steps, without an engine: as root, on overlays over this host's files.

The base image is this host, with this Python at /usr/local. Real are all steps with what .dockerignore lets in, and
what runs on the result, as the image's user on a root that is read-only. No layers, limits or networks are tried.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from demo.local_server import free_port
from tests.artefact.conftest import clean
from tests.processes import ROOT, LocalProcess, procfile


def instructions() -> list[list[str]]:
    """The Dockerfile's, each split at its first space."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    return [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]


FINAL = dict(instructions())
"""The last instruction of each kind: they are those of the final stage."""

OVERLAY = "mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={upper}.work {at}"


def may_mount() -> bool:
    return os.geteuid() == 0 and subprocess.call(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL) == 0


pytestmark = pytest.mark.skipif(not may_mount(), reason="needs root and a mount namespace")


class Stage:
    """A stage of the build: what differs from this host is in `files`."""

    def __init__(self, place: Path) -> None:
        self.files, self._root, self._python = place / "files", place / "root", place / "python"
        for each in (self.files, self._root, self._python):
            each.mkdir(parents=True)
            Path(f"{each}.work").mkdir()
        self.env = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        self.directory = Path("/")

    def build(self, name: str, words: str, others: Mapping[str, Stage]) -> None:
        """Do one instruction."""
        match name:
            case "ENV":
                for word in words.split():
                    variable, _, value = word.partition("=")
                    self.env[variable] = value.replace("$PATH", self.env["PATH"])
            case "WORKDIR":
                self.directory = Path(words)
                self.inside(words).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(words.split(), others)
            case "RUN":
                # The command pip would install beside the Python that its first line names.
                words = words.replace("pip install", "python -m pip install --quiet --root-user-action=ignore")
                env = os.environ | self.env | {"UV_NO_CACHE": "0"}  # What other tests fetched.
                subprocess.run(self.command("sh", "-c", words, sealed=False), env=env, check=True, timeout=250)

    def inside(self, path: str | Path) -> Path:
        """Where a file of the image is here."""
        return self.files / str(self.directory / path).lstrip("/")

    def _copy(self, words: list[str], others: Mapping[str, Stage]) -> None:
        *sources, target = words
        if sources[0].startswith("--from="):
            source = others[sources[0].removeprefix("--from=")].inside(sources[1])
            shutil.copytree(source, self.inside(target), symlinks=True)
            return
        allowed = (ROOT / ".dockerignore").read_text().split()
        for name in sources:
            assert f"!{name}" in allowed, f"{name} is not in the build's context"
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.inside(target), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, self.inside(target))

    def command(self, *words: str, sealed: bool = True) -> list[str]:
        """A command in this stage. Sealed, it runs as the image's user and can write to its data and /tmp only."""
        root, user = self._root, ""
        mounts = [OVERLAY.format(lower="/", upper=self.files, at=root)]
        mounts += [OVERLAY.format(lower=sys.base_prefix, upper=self._python, at=f"{root}/usr/local")]
        if sealed:
            data = f"{root}/var/lib/daycap"
            mounts += [f"mount --bind {data} {data}", f"mount -o remount,bind,ro {root}"]
            mounts += [f"mount -o remount,bind,ro {root}/usr/local", f"mount -t tmpfs tmpfs {root}/tmp"]
            user = f"--userspec={FINAL['USER']} --groups={FINAL['USER'].partition(':')[2]}"
        mounts += [f"mount --rbind /{each} {root}/{each}" for each in ("proc", "dev")]
        run = f"exec chroot {user} {root} sh -c {shlex.quote(f'cd {self.directory} && exec {shlex.join(words)}')}"
        return ["unshare", "--mount", "sh", "-c", " && ".join(["mount --make-rprivate /", *mounts, run])]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    place = tmp_path_factory.mktemp("image")
    stages: dict[str, Stage] = {}
    for name, words in instructions():
        if name == "FROM":
            stages[words.partition(" AS ")[2]] = stage = Stage(place / f"stage{len(stages)}")
        else:
            stage.build(name, words, stages)
    return stage


@pytest.fixture
def env(image: Stage, deployed: dict[str, str]) -> dict[str, str]:
    ports = {"DAYCAP_METRICS_PORT": str(free_port()), "DAYCAP_BEAT_PORT": str(free_port())}
    ledger = {"DAYCAP_LEDGER_URL": "sqlite:////var/lib/daycap/ledger.sqlite3"}
    library = {"LD_LIBRARY_PATH": "/usr/local/lib"}  # This Python was built for a place that only root may look at.
    return clean(deployed) | image.env | ledger | ports | library


class Container(LocalProcess):
    """A long-lived command of the image. It is no container: see above."""

    def __init__(self, image: Stage, directory: Path, env: Mapping[str, str], ready: str, *words: str) -> None:
        self.ready_prompt = ready
        self._command_line = image.command(*words)
        super().__init__(
            ["env", "-i", *(f"{name}={value}" for name, value in env.items()), *self._command_line], directory
        )


def run(image: Stage, env: Mapping[str, str], *words: str, status: int = 0) -> str:
    done = subprocess.run(image.command(*words), env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_image_does_the_whole_job(image: Stage, env: dict[str, str], tmp_path: Path) -> None:
    healthcheck = json.loads(FINAL["HEALTHCHECK"].partition("CMD ")[2])
    probe = [word.replace("9100", env["DAYCAP_METRICS_PORT"]) for word in healthcheck]
    run(image, env, *probe, status=1)
    run(image, env, "alembic", "upgrade", "head")
    worker = Container(image, tmp_path, env, " ready.", *json.loads(FINAL["CMD"]))
    try:
        worker.ready()
        run(image, env, *probe)
        assert "agent-7" in run(image, env, "daycap", "agent", "add", "agent-7", "--cap", "5")
        beat = Container(image, tmp_path, env, "beat: Starting", *procfile("beat"))
        try:
            beat.ready()
            run(image, env, *(word.replace("9100", env["DAYCAP_BEAT_PORT"]) for word in healthcheck))
        finally:
            beat.teardown()
        worker.process.terminate()
        assert worker.process.wait(20) == 0
    finally:
        worker.teardown()


def test_the_user_may_write_to_its_data_only(image: Stage, env: dict[str, str]) -> None:
    assert (run(image, env, "id", "-u"), run(image, env, "id", "-G")) == ("10001\n", "10001\n")
    for place in ("/", "/app", "/app/worker", "/app/.venv", "/etc", "/usr/local", "/root"):
        run(image, env, "test", "-w", place, status=1)
    for place in ("/var/lib/daycap", "/tmp"):
        run(image, env, "test", "-w", place)


def test_nothing_of_a_build_is_left(image: Stage) -> None:
    assert sorted(path.name for path in image.inside(".").iterdir()) == [
        ".venv",
        "celeryconfig.py",
        "migrations",
        "pyproject.toml",
        "tasks",
        "worker",
    ]
    installed = {path.name for path in image.inside(".venv").glob("lib/*/site-packages/*")}
    assert {"daycap", "celery", "flower", "psycopg", "rich"} <= installed
    assert not installed & {"pytest", "mypy", "hatchling", "pip", "uv", "tests", "worker"}
