"""A short campaign, so that the long one cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.rabbitmq import rabbitmq_program


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_two_rounds_of_faults_break_no_promise(tmp_path: Path, broker: str) -> None:
    """Given a deployment at work / when parts of it fail and heal / then its books agree with its runners."""
    if broker == "rabbitmq" and rabbitmq_program() is None:
        pytest.skip("no rabbitmq-server on PATH")
    file = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "tests.chaos", "--rounds", "2", "--seed", "4", "--json", str(file)]
    command += ["--broker", broker]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)

    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(file.read_text())
    assert (said["rounds"], said["violations"]) == (2, [])
    assert said["finalized"] > 0
    assert said["faults"] >= 2
