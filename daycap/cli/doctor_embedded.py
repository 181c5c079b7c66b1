"""daycap doctor without servers: checks the SQLite file of an embedded wallet, and changes nothing in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from daycap.cli.finding import FAIL, OK, WARN, Finding, dead_letters, plans
from daycap.clock import day_of, wall_ms
from daycap.errors import LedgerUnavailable
from daycap.ledger import dead_letters as letters
from daycap.ledger.engine import Ledger, ReadOnlyLedger, alembic_config, unavailable
from daycap.ledger.lock import holder_of, sqlite_file
from daycap.ledger.plan_check import check_plans
from daycap.ledger.revisions import check_revision, numbers
from daycap.ledger.tables import agent_accounts, daily_agent_spending
from daycap.protocol.counter import ACTIVE
from daycap.settings import Settings

_ADD = "daycap agent add NAME --cap USD"


def check(settings: Settings) -> Iterator[Finding]:
    """Check the file, its schema, its lock, today's books and the dead letters."""
    file = sqlite_file(settings.ledger_url)
    if file is None:
        yield Finding(
            "ledger", FAIL, "DAYCAP_LEDGER_URL does not name a plain file", "set it to sqlite:///path/to/file"
        )
        return
    found = _check_file(file)
    yield found
    yield _check_lock(file)
    if not file.exists() or found.state == FAIL:
        return
    with closing(ReadOnlyLedger(settings.ledger_url)) as ledger:
        try:
            schema = _check_schema(ledger)
            yield schema
            if schema.state == OK:
                yield _check_today(ledger)
                yield plans(lambda after: check_plans(ledger, after)._asdict())
                yield dead_letters(letters.count(ledger))
        except (SQLAlchemyError, OSError) as error:
            yield Finding("ledger", FAIL, str(unavailable(error)), "restore the file from a backup")


def _check_file(file: Path) -> Finding:
    place = file if file.exists() else file.parent
    if not place.exists():
        return Finding("ledger", FAIL, f"there is no directory {place}", "create it, or change DAYCAP_LEDGER_URL")
    # SQLite creates files beside the database, so the directory must be writable too.
    for path in {file.parent, place}:
        if not os.access(path, os.R_OK | os.W_OK):
            return Finding("ledger", FAIL, f"this user cannot read and write {path}", "change its owner or mode")
    if place != file:
        return Finding("ledger", WARN, f"{file} does not exist yet", f"a wallet creates it, or: {_ADD}")
    if not file.is_file():
        return Finding("ledger", FAIL, f"{file} is not a file", "set DAYCAP_LEDGER_URL to a file")
    return Finding("ledger", OK, f"{file}, {file.stat().st_size / 1e6:,.1f} MB")


def _check_lock(file: Path) -> Finding:
    try:
        holder = holder_of(file)
    except OSError as error:
        return Finding("lock", FAIL, f"cannot open {error.filename}: {error.strerror}", "change its owner or mode")
    return Finding("lock", OK, f"held by {holder}" if holder else "free: no wallet is using the ledger")


def _check_schema(ledger: Ledger) -> Finding:
    newest = str(ScriptDirectory.from_config(alembic_config()).get_current_head())
    with ledger.reading() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    migrates = f"the next wallet migrates it, or: {_ADD}"
    if revision is None:
        return Finding("schema", WARN, "the file has no tables yet", migrates)
    try:
        if numbers(revision) < numbers(newest):
            return Finding("schema", WARN, f"migration {revision}; this release has {newest}", migrates)
        check_revision(revision, newest)
    except LedgerUnavailable as error:
        found, _, advice = str(error).partition("; ")
        return Finding("schema", FAIL, found, advice or "set DAYCAP_LEDGER_URL to a ledger of daycap")
    return Finding("schema", OK, f"migration {revision}")


def _check_today(ledger: Ledger) -> Finding:
    today = day_of(wall_ms())
    accounts, days = agent_accounts.c, daily_agent_spending.c
    of_today = sa.and_(days.agent_account_id == accounts.agent_account_id, days.spending_date == today)
    statement = (
        sa.select(sa.func.count(), sa.func.count(days.spending_date))
        .join_from(agent_accounts, daily_agent_spending, of_today, isouter=True)
        .where(accounts.status == ACTIVE)
    )
    with ledger.reading() as connection:
        agents, opened = connection.execute(statement).one()
    if not agents:
        return Finding("today", WARN, f"{today}: no active agents", _ADD)
    advice = "the others open with their first call" if opened < agents else ""
    return Finding("today", OK, f"{today}: open for {opened:,} of {agents:,} active agents", advice)
