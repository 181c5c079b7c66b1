"""Ledgers for tests, made by the migrations and by nothing else."""

from __future__ import annotations

from pathlib import Path

import alembic.command

from worker.ledger import Ledger, alembic_config


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
