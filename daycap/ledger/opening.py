"""Open: make the books of agents' days and tell the counter, one agent at a request or all before midnight."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import sqlalchemy as sa

from daycap.clock import DAY_MS, day_of
from daycap.ledger import days
from daycap.ledger.agent_days import AgentDay
from daycap.ledger.engine import Ledger
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import Place, Slice
from daycap.ledger.snapshots import read_snapshots
from daycap.ledger.tables import agent_accounts as accounts
from daycap.ledger.tables import daily_agent_spending
from daycap.protocol.counter import ACTIVE
from daycap.protocol.wire import agent_id

logger = logging.getLogger("daycap.worker")

_AGENTS_AT_ONCE = 1000


def open_days(ledger: Ledger, publisher: CounterPublisher, agent_days: Iterable[AgentDay]) -> int:
    """Open the days that are not yet, in one transaction, and publish them. Returns how many were new.

    Only the call that inserts a day's row may open the counter without a fence: nobody can hold a lease of it. Where
    another one's publish overtakes it, the fence that was raised falls when it comes.
    """
    wanted = sorted(set(agent_days))
    opened_at_ms = publisher.now_ms()
    now_ms = publisher.last_heard_ms() if opened_at_ms is None else opened_at_ms
    with ledger.writing() as connection:
        made = days.insert_missing(connection, wanted, now_ms)
    # Read by itself: the rows are not locked here, and several statements must see one state of them.
    with ledger.reading() as connection:
        snapshots = read_snapshots(connection, wanted)
    publisher.publish([s for s in snapshots if (s.agent, s.day) in made], opened_at_ms=opened_at_ms)
    publisher.publish([s for s in snapshots if (s.agent, s.day) not in made])
    return len(made)


def open_on_request(ledger: Ledger, publisher: CounterPublisher, agent: str, day: str) -> int:
    """What a runner asks for when the counter answers NOT_OPEN. Days that are not now are left alone.

    An agent that has no account is published as unknown, so that the runner need not wait. Raises `InvalidInput`.
    """
    agent_id(agent)
    now_ms = publisher.authoritative_ms()
    if day not in {day_of(now_ms + offset_ms) for offset_ms in (-DAY_MS, 0, DAY_MS)}:
        logger.warning("not opening %s for agent %s: it is not yesterday, today or tomorrow", day, agent)
        return 0
    return open_days(ledger, publisher, [(agent, day)])


def rollover(ledger: Ledger, publisher: CounterPublisher, ahead_ms: int, place: Place) -> Slice:
    """A step of opening today and what begins within `ahead_ms` for every active agent. Counts `opened`.

    Safe to run twice at once, late, and from the beginning: it looks for what is missing.
    """
    now_ms = publisher.authoritative_ms()
    on = {day_of(now_ms), day_of(now_ms + ahead_ms)}
    missing = days.walk(on, place, lambda day, last: _agents_without(ledger, day, last))
    if not missing:
        return Slice({"opened": 0}, None)
    return Slice({"opened": open_days(ledger, publisher, missing)}, days.place_after(missing))


def _agents_without(ledger: Ledger, day: str, after: str) -> list[str]:
    """The next active agents, by id, whose `day` has no row yet."""
    spending = daily_agent_spending
    has_row = sa.exists().where(
        spending.c.agent_account_id == accounts.c.agent_account_id, spending.c.spending_date == day
    )
    statement = (
        sa.select(accounts.c.agent_account_id)
        .where(accounts.c.status == ACTIVE, accounts.c.agent_account_id > after, ~has_row)
        .order_by(accounts.c.agent_account_id)
        .limit(_AGENTS_AT_ONCE)
    )
    with ledger.reading() as connection:
        return list(connection.scalars(statement))
