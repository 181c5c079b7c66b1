"""Ledgers for tests, made by the migrations and by nothing else."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import alembic.command

from daycap.ledger.engine import Ledger, alembic_config


def migrate(ledger: Ledger, revision: str = "head") -> None:
    """Bring the ledger up, or down, to a revision."""
    config = alembic_config()
    with ledger.writing() as connection:
        config.attributes["connection"] = connection
        (alembic.command.downgrade if revision == "base" else alembic.command.upgrade)(config, revision)


def migrated_sqlite(path: Path) -> Path:
    """A new SQLite ledger at `path`, closed."""
    ledger = Ledger(f"sqlite:///{path}")
    migrate(ledger)
    ledger.close()  # The last connection takes the write-ahead log back into the file.
    return path


@contextmanager
def quiet_ledger() -> Iterator[tuple[Path, Ledger]]:
    """A directory, in memory where possible, and a migrated ledger in it; daycap logs nothing until the end."""
    memory, logger = Path("/dev/shm"), logging.getLogger("daycap")
    level = logger.level
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        directory = Path(name)
        logger.setLevel(logging.CRITICAL)
        try:
            with closing(Ledger(f"sqlite:///{migrated_sqlite(directory / 'ledger.sqlite3')}")) as ledger:
                yield directory, ledger
        finally:
            logger.setLevel(level)
