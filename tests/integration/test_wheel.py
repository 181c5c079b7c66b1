"""The wheel carries the library and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_wheel_contains_the_library_alone(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"daycap"}
    assert {"daycap/py.typed", "daycap/scripts/sync.lua", "daycap/scripts/publish.lua", "daycap/scripts/read.lua"} <= {
        *names
    }

    # And a runner that has only the wheel can use it, without SQLAlchemy, genai-prices or anything of the worker's.
    tried = subprocess.run(
        [sys.executable, "-c", _TRY, str(wheel)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert tried.stdout.strip() == "Reading(micros=4990000, tier='memory')"


_TRY = """
import sys
sys.path[:] = [sys.argv[1]] + [path for path in sys.path if "site-packages" in path or "lib/python" in path]
sys.modules["sqlalchemy"] = sys.modules["genai_prices"] = sys.modules["worker"] = None  # As if they were not installed.
import daycap
assert daycap.__file__.startswith(sys.argv[1]), daycap.__file__
wallet = daycap.Wallet.from_env(caps={"a": daycap.usd(5)}, environ={})
wallet.reserve("a", 20_000).finalize(10_000)
wallet.flush()
print(wallet.remaining("a"))
"""
