"""An environment of its own for each peer, kept in .run/peers until what it needs changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.peers.contenders import Contender

ROOT = Path(__file__).resolve().parents[3]

_INSTALL_S = 600


class LeftOut(Exception):
    """this peer cannot take part, and why"""


def interpreter(contender: Contender) -> Path:
    """The Python that has what the contender needs. Raises `LeftOut` with the installer's last words."""
    if not contender.requirements:
        return Path(sys.executable)
    directory = ROOT / ".run" / "peers" / contender.adapter
    python, made = directory / "bin" / "python", directory / "made-of"
    wanted = "\n".join((sys.version, *contender.requirements, *contender.overrides))
    if not (made.exists() and made.read_text() == wanted):
        shutil.rmtree(directory, ignore_errors=True)
        _uv("venv", "--quiet", "--python", sys.executable, str(directory))
        overrides = directory / "overrides"
        overrides.write_text("\n".join(contender.overrides))
        with_overrides = ("--override", str(overrides)) if contender.overrides else ()
        _uv("pip", "install", "--quiet", "--python", str(python), *with_overrides, *contender.requirements)
        made.write_text(wanted)
    return python


def _uv(*words: str) -> None:
    uv = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".run" / "tools" / "bin" / "uv")
    try:
        subprocess.run([uv, *words], check=True, capture_output=True, text=True, timeout=_INSTALL_S)
    except FileNotFoundError:
        raise LeftOut("no uv to install it with") from None
    except subprocess.TimeoutExpired:
        raise LeftOut("installing it took too long") from None
    except subprocess.CalledProcessError as error:
        raise LeftOut(f"it cannot be installed: {' '.join(error.stderr.split())[:200]}") from None
