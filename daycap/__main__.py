"""The command `daycap`. Its parts live beside the worker, in a checkout, not in the wheel."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run the command line of the checkout that this library lies in."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "worker" / "command_line").is_dir():
        sys.exit(
            "daycap: only the library is installed here (import daycap). The command needs daycap's checkout, "
            "as a worker does: in it, uv sync --no-dev --extra cli, then uv run --no-sync daycap"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    try:
        from worker.command_line.main import cli  # noqa: PLC0415  (it is not there where only the wheel is)
    except ModuleNotFoundError as error:
        sys.exit(f"daycap: the command needs {error.name}, which is not installed: uv sync --no-dev --extra cli")

    cli()


if __name__ == "__main__":
    main()
