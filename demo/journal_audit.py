"""Compares the runners' journals with the ledger and the counter, promise by promise."""

from __future__ import annotations

from collections import Counter as Count
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from daycap.clock import day_of
from daycap.ledger.audit_counter import Difference
from daycap.ledger.tables import budget_periods, daily_agent_spending, dead_letters, lease_totals, settlements
from daycap.protocol.counter import Counter, DayReading
from demo.journal import End, Entry

_AT_ONCE = 300


class Recorded(NamedTuple):
    """The records of the demo's agents: rows of the ledger's tables, readings of the counter."""

    days: list[Any]
    settlements: list[Any]
    leases: list[Any]
    dead_letters: list[Any]
    readings: list[tuple[str, str, DayReading | None]]
    team: list[tuple[Any, DayReading | None]]
    """The periods of the budget that all agents share, in the ledger and in the counter."""


class Check(NamedTuple):
    """One comparison: the promise, its meaning, how many things were compared, and the differences."""

    promise: str
    says: str
    compared: int
    differences: list[Difference]


def read_recorded(
    ledger: sa.Engine, counter: Counter, agents: Sequence[str], entries: Sequence[Entry], team: str = ""
) -> Recorded:
    """Return the records of `agents` on the journals' days and today, and of the budget `team`, if they share one.

    Raises `CounterUnavailable` or the database's error.
    """
    days = sorted({entry.day for entry in entries if entry.day} | {day_of(counter.now_ms())})
    found = Recorded([], [], [], [], [], [])
    with ledger.connect() as connection:
        for start in range(0, len(agents), _AT_ONCE):
            batch = agents[start : start + _AT_ONCE]
            for table, rows in (
                (daily_agent_spending, found.days),
                (settlements, found.settlements),
                (lease_totals, found.leases),
            ):
                is_theirs = table.c.agent_account_id.in_(batch) & table.c.spending_date.in_(days)
                rows.extend(connection.execute(sa.select(table).where(is_theirs)))
        found.dead_letters.extend(_letters_of(connection, agents))
        of_team = sa.select(budget_periods).where(budget_periods.c.budget_id == team)
        periods = connection.execute(of_team).all()
    agent_days = [(agent, day) for day in days for agent in agents]
    readings = counter.read(agent_days)
    found.readings.extend((*pair, reading) for pair, reading in zip(agent_days, readings, strict=True))
    of_counter = counter.read([(team, row.period_id) for row in periods])
    found.team.extend(zip(periods, of_counter, strict=True))
    return found


def compare(entries: Sequence[Entry], recorded: Recorded) -> list[Check]:
    """Return all checks, in the order of the promises."""
    finalized = [entry for entry in entries if entry.end is End.FINALIZED]
    letters = [Difference("P7", "", f"dead letter: {row.reason}", "none", row.payload) for row in recorded.dead_letters]
    checks: list[tuple[str, str, int, Callable[[], Iterator[Difference]]]] = [
        ("P1", "spent <= cap", len(recorded.days), lambda: _check_caps(recorded)),
        ("P2", "each hold settled once", len(finalized), lambda: _check_holds(finalized, recorded)),
        ("P2", "lease totals match holds", len(recorded.leases), lambda: _check_leases(finalized, recorded)),
        ("P3", "spent = sum of settlements", len(recorded.days), lambda: _check_sums(recorded)),
        ("P3", "Redis = ledger", len(recorded.readings), lambda: _check_counter(recorded)),
        ("P4", "true cost <= cap", len(recorded.days), lambda: _check_true_spending(finalized, recorded)),
        ("P5", "nothing left leased", len(recorded.readings), lambda: _check_leased(recorded)),
        ("P6", "no refusal below half a cap", len(entries), lambda: _check_refusals(entries, recorded)),
        ("P7", "no dead letters", len(finalized), lambda: iter(letters)),
    ]
    if recorded.team:
        of_team = ("P3", "team's month = its calls", len(finalized), lambda: _check_team(finalized, recorded))
        checks.insert(5, of_team)
    return [Check(promise, says, compared, list(check())) for promise, says, compared, check in checks]


def excess_micros(entries: Sequence[Entry]) -> int:
    """Return by how much calls cost more than their holds."""
    return sum(entry.actual_micros - entry.drawn_micros for entry in entries if entry.end is End.FINALIZED)


def _check_caps(recorded: Recorded) -> Iterator[Difference]:
    for row in recorded.days:
        if row.spent_micros > row.cap_micros:
            yield Difference("P1", row.agent_account_id, "spent exceeds the cap", row.cap_micros, row.spent_micros)


def _check_holds(finalized: Sequence[Entry], recorded: Recorded) -> Iterator[Difference]:
    settled = {row.reservation_id: row for row in recorded.settlements}
    journal = {entry.reservation: entry for entry in finalized}
    for reservation, times in Count(entry.reservation for entry in finalized).items():
        if times > 1:
            yield Difference("P2", journal[reservation].agent, f"hold {reservation} in the journals", 1, times)
    for reservation, entry in journal.items():
        row = settled.pop(reservation, None)
        if row is None:
            yield Difference("P7", entry.agent, f"hold {reservation} was not settled", entry.actual_micros, "none")
            continue
        expected = (entry.agent, entry.day, entry.held_micros, entry.actual_micros)
        booked = (row.agent_account_id, row.spending_date, row.held_micros, row.actual_micros)
        if expected != booked:
            yield Difference(
                "P2", entry.agent, f"hold {reservation} was settled as another", str(expected), str(booked)
            )
    for reservation, row in settled.items():
        yield Difference(
            "P2", row.agent_account_id, f"settlement {reservation} is of no finalized hold", "none", row.actual_micros
        )


def _check_leases(finalized: Sequence[Entry], recorded: Recorded) -> Iterator[Difference]:
    events, drawn = Count[str](), Count[str]()
    for entry in finalized:
        events[entry.lease] += 1
        drawn[entry.lease] += entry.drawn_micros
    for row in recorded.leases:
        expected, booked = (events[row.lease_id], drawn[row.lease_id]), (row.events, row.drawn_micros)
        if expected != booked:
            what = f"events and drawn of lease {row.lease_id}"
            yield Difference("P2", row.agent_account_id, what, str(expected), str(booked))


def _check_sums(recorded: Recorded) -> Iterator[Difference]:
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in recorded.settlements:
        of_day = sums[row.agent_account_id, row.spending_date]
        of_day[0] += 1
        of_day[1] += row.charged_micros
        of_day[2] += row.actual_micros - row.charged_micros
    for row in recorded.days:
        names = ("settled_count", "spent_micros", "uncovered_micros")
        for name, expected in zip(names, sums[row.agent_account_id, row.spending_date], strict=True):
            found = getattr(row, name)
            if found != expected:
                yield Difference("P3", row.agent_account_id, f"{name} of {row.spending_date}", expected, found)


def _check_counter(recorded: Recorded) -> Iterator[Difference]:
    days = {(row.agent_account_id, row.spending_date): row for row in recorded.days}
    for agent, day, reading in recorded.readings:
        row = days.get((agent, day))
        if reading is None or row is None:
            if row is not None and row.settled_count:
                yield Difference("P3", agent, f"{day} in the counter", row.spent_micros, "not open")
            continue
        for name in ("cap_micros", "spent_micros", "seq"):
            if getattr(reading, name) != getattr(row, name):
                yield Difference("P3", agent, f"{name} in the counter", getattr(row, name), getattr(reading, name))


def _check_team(finalized: Sequence[Entry], recorded: Recorded) -> Iterator[Difference]:
    """Check the budget that all agents share: every call counts in it, and the counter has what the ledger has."""
    cost = sum(entry.actual_micros for entry in finalized)
    booked = sum(row.spent_micros + row.uncovered_micros for row, _ in recorded.team)
    if booked != cost:
        yield Difference("P3", "team", "spent and uncovered in its month", cost, booked)
    for row, reading in recorded.team:
        if row.spent_micros > row.cap_micros:
            yield Difference("P1", "team", "spent exceeds the cap", row.cap_micros, row.spent_micros)
        found = None if reading is None else (reading.seq, reading.spent_micros, reading.leased_micros)
        if row.settled_count and found != (expected := (row.seq, row.spent_micros, 0)):
            yield Difference("P3", "team", "seq, spent and leased in the counter", str(expected), str(found))


def _check_true_spending(finalized: Sequence[Entry], recorded: Recorded) -> Iterator[Difference]:
    """Check the true spending: what the calls cost, whether or not it was recorded."""
    spent, excess = Count[tuple[str, str]](), Count[tuple[str, str]]()
    for entry in finalized:
        spent[entry.agent, entry.day] += entry.actual_micros
        excess[entry.agent, entry.day] += entry.actual_micros - entry.drawn_micros
    given_up = {(agent, day): r.given_up_micros for agent, day, r in recorded.readings if r is not None}
    for row in recorded.days:
        key = (row.agent_account_id, row.spending_date)
        most = row.cap_micros + given_up.get(key, 0) + excess[key]
        if spent[key] > most:
            yield Difference("P4", key[0], "true spending passes cap, given up and excess", most, spent[key])


def _check_leased(recorded: Recorded) -> Iterator[Difference]:
    for agent, day, reading in recorded.readings:
        if reading is not None and reading.leased_micros and not reading.fenced:
            yield Difference("P5", agent, f"leased on {day} after all runners ended", 0, reading.leased_micros)


def _check_refusals(entries: Sequence[Entry], recorded: Recorded) -> Iterator[Difference]:
    """Find unjustified refusals: if all requests add up to less than half the cap, other leases cannot explain one."""
    asked, refused = Count[str](), Count[str]()
    for entry in entries:
        asked[entry.agent] += max(entry.held_micros, entry.actual_micros)
        refused[entry.agent] += entry.end is End.REFUSED
    for row in recorded.days:
        agent = row.agent_account_id
        if refused[agent] and asked[agent] <= row.cap_micros // 2:
            what = f"refusals, {asked[agent]} micros asked of a cap of {row.cap_micros}"
            yield Difference("P6", agent, what, 0, refused[agent])


def _letters_of(connection: sa.Connection, agents: Sequence[str]) -> list[Any]:
    """Return the dead letters that name one of the agents."""
    letters = connection.execute(sa.select(dead_letters).order_by(dead_letters.c.last_seen_at.desc()).limit(10_000))
    return [row for row in letters if any(f'"{agent}"' in row.payload for agent in agents)]
