"""The journal: a runner's own record of each of its calls, independent of everything that daycap records."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class End(StrEnum):
    """How a call ended: its hold was finalized or released, it was refused, or it got no answer."""

    FINALIZED = "finalized"
    RELEASED = "released"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


class Entry(NamedTuple):
    """One call that ended. Amounts are micros. A call without a hold has no reservation and no day.

    `held_micros` is the estimate if nothing was held. `unavailable` counts the errors `BudgetUnavailable`.
    `stopped_micros` is what a refused call would have cost.
    """

    end: End
    agent: str
    held_micros: int
    unavailable: int = 0
    reservation: str = ""
    day: str = ""
    actual_micros: int = 0
    stopped_micros: int = 0

    @property
    def lease(self) -> str:
        """The lease of the hold."""
        return self.reservation.rpartition("-")[0]

    @property
    def drawn_micros(self) -> int:
        """What the hold drew from its lease."""
        return min(self.actual_micros, self.held_micros)


class JournalWriter:
    """Appends entries to a file, each in one write, so that the kernel keeps it even if the process is killed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, entry: Entry) -> None:
        """Append one entry. Threads may share the journal: the file is in append mode, and a line is one write."""
        self._file.write(json.dumps(entry._asdict()).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


class JournalReader:
    """Follows a journal while it is being written."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")
        self._rest = b""

    def read(self) -> list[Entry]:
        """Return the new entries. An incomplete line waits for the next call."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [Entry(**{**fields, "end": End(fields["end"])}) for fields in map(json.loads, lines)]

    def close(self) -> None:
        self._file.close()
