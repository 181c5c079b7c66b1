"""The snippets of docs/how-to/processes.md run as a program that shares its wallet with its children."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT
from tests.spine import Spine
from tests.unit.test_snippets import snippets

MAIN = """
if __name__ == "__main__":
    import os
    from daycap import Wallet

    with Wallet.from_env() as wallet:
        assert answer_all(wallet, ["a", "b"]) == ["A", "B"]
        assert answer_all_in_a_pool(wallet, ["c"]) == ["C"]
        if (child := os.fork()) == 0:
            work(wallet, "d")
            end_the_child(wallet)
        assert os.waitpid(child, 0)[1] == 0
"""


def test_the_page_books_what_its_children_spend(spine: Spine, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("\n".join(snippets("docs/how-to/processes.md")) + MAIN)
    spine.ask("daycap.add_agents", caps={"agent-7": 1_000_000}, changed_by="test")
    environment = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **spine.environment}

    subprocess.run([sys.executable, program], env=environment, check=True, timeout=60)

    assert spine.settled_once("agent-7") == (4, 120_000)
