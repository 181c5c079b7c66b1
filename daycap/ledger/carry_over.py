"""Carry over: add what a budget's period left, up to a limit, to the cap of the next one.

That is done once for each period, after its begin. What is carried leaves the cap of the former period, so that what is
charged there afterwards and what was carried never exceed the cap that it had. What is still leased of it may yet be
spent there and is not carried, so it waits a while for leases to come back.
"""

from __future__ import annotations

import sqlalchemy as sa

from daycap.ledger import caps, days, raises
from daycap.ledger.budget_rows import rule_of
from daycap.ledger.caps import CARRY, RAISE
from daycap.ledger.engine import Ledger
from daycap.ledger.plans import changing
from daycap.ledger.publish import CounterPublisher
from daycap.ledger.slices import Place, Slice
from daycap.ledger.tables import budget_periods, budgets
from daycap.protocol.counter import AgentDay, DayReading
from daycap.protocol.plan import ENFORCE

WAITS_MS = 600_000
"""How long after a period's begin leases of the former one, or a counter that lost its data, are waited for."""


def adjust_caps(ledger: Ledger, publisher: CounterPublisher, place: Place) -> Slice:
    """End the raises that are due, then carry over. One step; counts those `ended` and the periods `carried` from.

    Safe to run late, or twice at once. Raises `CounterUnavailable`.
    """
    ended = raises.end_due(ledger, publisher, place)
    if ended.place is not None:
        return ended
    return Slice({**ended.counts, "carried": _carry_over(ledger, publisher)}, None)


def _carry_over(ledger: Ledger, publisher: CounterPublisher) -> int:
    now_ms = publisher.authoritative_ms()
    columns = budgets.c
    statement = sa.select(columns.budget_id, columns.period, columns.mode, columns.created_at)
    former_of: dict[AgentDay, AgentDay] = {}
    waits: set[AgentDay] = set()
    with ledger.reading() as connection:
        for row in connection.execute(statement.where(columns.carry_over_micros > 0, columns.removed_at.is_(None))):
            rule = rule_of(row.period)
            current = rule.at(now_ms)
            if row.created_at < current.start_ms:
                where = (row.budget_id, current.id)
                former_of[where] = (row.budget_id, rule.at(current.start_ms - 1).id)
                if row.mode == ENFORCE and now_ms < current.start_ms + WAITS_MS:
                    waits.add(where)
        done = {
            where
            for where, its in caps.raises_of(connection, former_of).items()
            if any(each.kind == CARRY for each in its)
        }
    wanted = [where for where in former_of if where not in done]
    readings = dict(zip(wanted, publisher.read([former_of[where] for where in wanted]), strict=False))
    ready = [where for where in wanted if where not in waits or _is_back(readings.get(where))]
    for where in ready:
        _carry(ledger, publisher, former_of[where], where, _leased(readings.get(where)))
    return len(ready)


def _is_back(reading: DayReading | None) -> bool:
    return reading is not None and not reading.fenced and reading.leased_micros == 0


def _leased(reading: DayReading | None) -> int:
    return 0 if reading is None else reading.leased_micros


def _carry(
    ledger: Ledger, publisher: CounterPublisher, former: AgentDay, current: AgentDay, leased_micros: int
) -> None:
    """Carry over from one period. `leased_micros`: what was leased of it, read after its end: it can only get less."""
    budget = current[0]
    with ledger.reading() as connection:
        mode = connection.scalar(sa.select(budgets.c.mode).where(budgets.c.budget_id == budget))
    raises.insert_row(ledger, publisher, current, enforced=mode == ENFORCE)
    with ledger.writing() as connection:  # Of a period in which nobody called everything is left.
        days.insert_missing(connection, [former], publisher.authoritative_ms())
    with changing(ledger, publisher, "daycap", f"what {former[1]} left") as change:
        change.lock(budget_ids=[budget], ended=[former])
        connection, columns = change.connection, budget_periods.c
        its_raises = caps.raises_of(connection, [former, current])
        if any(each.kind == CARRY for each in its_raises.get(current, ())):
            return
        this = sa.and_(columns.budget_id == budget, columns.period_id == former[1])
        row = connection.execute(sa.select(budget_periods).where(this)).one()
        most = connection.scalar(sa.select(budgets.c.carry_over_micros).where(budgets.c.budget_id == budget)) or 0
        raised = sum(
            each.amount_micros for each in its_raises.get(former, ()) if each.kind == RAISE and each.ended_at is None
        )
        left = row.cap_micros - raised - max(row.spent_micros, row.drawn_micros) - leased_micros
        amount = max(0, min(most, left))
        if amount == 0:
            caps.insert_raise(change, current, CARRY, 0)
            return
        lowered = {"cap_micros": columns.cap_micros - amount, "seq": columns.seq + 1, "updated_at": change.now_ms}
        connection.execute(sa.update(budget_periods).where(this).values(**lowered))
        if mode == ENFORCE:
            change.periods.append(former)
        raises.add(change, current, CARRY, amount, None)
