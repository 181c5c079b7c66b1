"""What a user reads first works as it stands: examples, README, types."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
USES = "tests/typing/uses.py"

EXAMPLES = {
    "plain_loop": "stopped: agent agent-7: $0.05 would pass the cap of $0.50",
    "asyncio_fleet": "agent-19",
    "batch_threads": "left for tomorrow",
    "fastapi_endpoint": "402",
    "litellm_router": "gpt-4o-mini",
    "openai_streaming": "Every word of this comes as an event of its own",
}


def run(*words: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DAYCAP_")}
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


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)


@pytest.mark.filterwarnings("ignore:Item:UserWarning")  # Pydantic, of a type of LiteLLM's with fields to read only.
def test_the_readmes_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one after the other, as someone would who reads on; with a client that answers without a network."""
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    answer = SimpleNamespace(cost=Decimal("0.0312"), usage=usage)
    completions = SimpleNamespace(create=lambda **_: answer)
    client = SimpleNamespace(complete=lambda _: answer, chat=SimpleNamespace(completions=completions))
    names: dict[str, Any] = {"client": client}
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")

    for each in snippets():
        exec(each.replace("from_env()", 'from_env(caps={"agent-7": usd(1)}, environ={})'), names)

    with names["wallet"] as wallet:
        assert names["call"]("?") is answer
        assert names["chat"]([], 100) is answer
        asked = names["ask"]([{"role": "user", "content": "?"}], mock_response="hi")
        assert asked.choices[0].message.content == "hi"
        assert names["complete"]("?") is answer
        names["inside_its_cap"].close()
        assert wallet.flush() == ()
        assert wallet.spent("agent-7").micros > 31_200
