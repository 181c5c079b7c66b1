"""What a command imports before it does anything: its user waits for that each time."""

from __future__ import annotations

import subprocess
import sys

_SLOW = {"alembic", "genai_prices", "litellm", "psycopg", "sqlalchemy"}


def test_commands_start_without_a_database() -> None:
    program = f"import sys, daycap.cli.main; print(sorted({_SLOW} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
