"""What a user reads first works as it stands: examples and types."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USES = "tests/typing/uses.py"

EXAMPLES = {
    "plain_loop": "stopped: agent agent-7: $0.05 would exceed the cap of $0.50",
    "asyncio_fleet": "agent-19",
    "batch_threads": "left for tomorrow",
    "fastapi_endpoint": "402",
    "litellm_router": "gpt-4o-mini",
    "openai_streaming": "Every word of this comes as an event of its own",
}


def run(*words: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DAYCAP_")}
    clean["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # Otherwise it asks the network, and again.
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=clean, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_tried() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run_without_any_server(name: str) -> None:
    assert EXAMPLES[name] in run(f"examples/{name}.py")


def test_mypy_and_pyright_agree_with_every_use() -> None:
    run("-m", "mypy", "--strict", USES)
    run("-m", "basedpyright", "--level", "error", USES)
