"""The systemd units: accepted by systemd's own tools, hardened, and with the Procfile's commands. None is started."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_deployment_files import SHELL_FREE

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
PROCESSES = ("release", "worker", "beat", "flower")
MOST_EXPOSED = "15"
"""Tenths of a point, of 100. What is left is the network and the host's own root directory."""

systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")


def run(*words: str | Path) -> str:
    """What a command wrote; it must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def setting(process: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", (UNITS / f"daycap-{process}.service").read_text(), re.MULTILINE)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_unit_runs_the_command_of_the_procfile(process: str) -> None:
    (command,) = setting(process, "ExecStart")
    assert command == "/opt/daycap/.venv/bin/" + SHELL_FREE[process].replace(":-INFO", "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's files with the units where an operator puts them."""
    shutil.copytree("/usr/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    (tmp_path / "etc/systemd").mkdir(parents=True)
    shutil.copytree(UNITS, tmp_path / "etc/systemd/system")
    (tmp_path / "opt/daycap/.venv/bin").mkdir(parents=True)
    for command in ("alembic", "celery"):
        (tmp_path / "opt/daycap/.venv/bin" / command).touch(0o755)
    return tmp_path


@systemd
def test_systemd_understands_every_line(root: Path) -> None:
    units = [unit.name for pattern in ("*.service", "*.target") for unit in UNITS.glob(pattern)]
    assert len(units) == 5
    said = run("systemd-analyze", "verify", "--man=no", f"--root={root}", *units)
    assert [line for line in said.splitlines() if "daycap" in line] == []


@systemd
@pytest.mark.parametrize("process", PROCESSES)
def test_a_unit_exposes_little(process: str, root: Path) -> None:
    security = "systemd-analyze", "security", "--offline=true", f"--root={root}"
    run(*security, f"--threshold={MOST_EXPOSED}", f"daycap-{process}.service")


@systemd
def test_user_and_directories_are_created(root: Path) -> None:
    run("systemd-sysusers", f"--root={root}", UNITS / "daycap.sysusers.conf")
    assert re.search(r"^daycap:.*:/var/lib/daycap:/usr/sbin/nologin$", (root / "etc/passwd").read_text(), re.MULTILINE)
    (root / "etc/daycap").mkdir()
    (root / "etc/daycap/daycap.env").touch(0o644)
    run("systemd-tmpfiles", "--create", f"--root={root}", UNITS / "daycap.tmpfiles.conf")
    assert (root / "etc/daycap/daycap.env").stat().st_mode & 0o777 == 0o600
