"""The command `daycap`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. It needs the extra `cli`."""
    try:
        from daycap.cli.main import cli  # noqa: PLC0415  (an extra)
    except ModuleNotFoundError as error:
        sys.exit(f'daycap: the command needs {error.name}, which is not installed: pip install "daycap[cli]"')
    cli()


if __name__ == "__main__":
    main()
