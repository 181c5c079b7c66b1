"""A ledger in trouble."""

from __future__ import annotations

import sqlite3


class LockedLedger:
    """Holds the write lock of the SQLite ledger at `path` while a `with` block runs, as a backup might."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._connection = sqlite3.connect(self._path, isolation_level=None, timeout=20)
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *exc_info: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()
