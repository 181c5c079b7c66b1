"""Runs Alembic's migrations on the ledger at `DAYCAP_LEDGER_URL`, or on a connection that the caller passes."""

from __future__ import annotations

from alembic import context
from alembic.util import CommandError

from daycap.errors import InvalidSetting
from daycap.ledger.engine import Ledger
from daycap.ledger.tables import metadata
from daycap.settings import Settings


def run() -> None:
    """Run the requested migrations in one transaction."""
    if context.is_offline_mode():
        raise CommandError("daycap's migrations need a connection to the ledger: leave out --sql")
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _migrate(connection)
        return
    try:
        url = Settings.from_env().ledger_url
        if not url:
            raise InvalidSetting("set DAYCAP_LEDGER_URL, for example sqlite:///daycap.sqlite3")
        ledger = Ledger(url)
    except InvalidSetting as error:
        raise CommandError(str(error)) from error
    with ledger.writing() as connection:
        _migrate(connection)
    ledger.close()


def _migrate(connection: object) -> None:
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


run()
