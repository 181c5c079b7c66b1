"""Which schema versions this release works with: its own newest migration, and later ones that declare it.

A revision is called `<number>_since_<number>`. The second number identifies the oldest release that still works with
the migrated ledger, by the newest migration that this release knows. So a worker can tell from the name whether it
works with a ledger that is newer than itself. Migrations up to 0003 have no second number: they work only with their
own release.
"""

from __future__ import annotations

import re

from daycap.errors import LedgerUnavailable

_NAME = re.compile(r"(\d{4})(?:_since_(\d{4}))?")


def check_revision(found: str | None, newest: str) -> None:
    """Raise `LedgerUnavailable`, with what to do, unless this release works with a ledger at migration `found`.

    `newest` is the newest migration that this release knows.
    """
    if found is None:
        raise LedgerUnavailable("the ledger is empty; if it is new, run: alembic upgrade head")
    number, since = numbers(found)
    own, _ = numbers(newest)
    if number < own:
        raise LedgerUnavailable(f"the ledger is at migration {found}, not {newest}; run: alembic upgrade head")
    if own < since:
        raise LedgerUnavailable(
            f"the ledger is at migration {found}, but this release of daycap only knows {newest}; "
            "upgrade daycap on this host"
        )


def numbers(revision: str) -> tuple[int, int]:
    """Return a migration's number and the number of the oldest release that works with it."""
    name = _NAME.fullmatch(revision)
    if name is None:
        raise LedgerUnavailable(f"the ledger is at {revision!r:.40}, which is not a migration of daycap")
    return int(name[1]), int(name[2] or name[1])
