"""Which migrations of the ledger this release works with: its own newest one, and later ones that say so.

A revision is called `<number>_since_<number>`: the second is that of the oldest release that works with the ledger
once the migration is done, named by the newest migration which that release knows. So a worker can tell from the name
alone whether a ledger that is newer than itself is still one for it. Migrations up to 0003 name none: they are for
their own release only.
"""

from __future__ import annotations

import re

from daycap.errors import LedgerUnavailable

_NAME = re.compile(r"(\d{4})(?:_since_(\d{4}))?")


def check_revision(found: str | None, newest: str) -> None:
    """Raise `LedgerUnavailable`, saying what to do, unless this release works with a ledger at migration `found`.

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
            f"the ledger is at migration {found}, and this release knows {newest}: it is too old for the ledger; "
            "upgrade daycap on this host"
        )


def numbers(revision: str) -> tuple[int, int]:
    """A migration's number, and that of the oldest release that works with it."""
    name = _NAME.fullmatch(revision)
    if name is None:
        raise LedgerUnavailable(f"the ledger is at {revision!r:.40}, which is no migration of daycap's")
    return int(name[1]), int(name[2] or name[1])
